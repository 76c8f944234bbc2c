//! The runner: one a host. It connects out to the server, keeps the boxes that the server wants on its
//! backend, and joins sessions to the agents in them.
//!
//! It decides nothing about placement, and reads no frame of a session.
//!
//! ```text
//! link (control stream) ──Desired──► supervisor ──► one owner task a sandbox ──► backend
//!      ▲                                                   │
//!      └───────────── reports (latest state a sandbox) ◄───┘
//! link ──OpenSession──► session: dials the agent, dials back, copies bytes
//! ```

mod agent;
pub mod backend;
mod content;
mod identity;
mod link;
mod logs;
mod machine;
mod owner;
mod plan;
mod reports;
mod session;
mod supervisor;
mod wanted;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use dispense_backend::Backend;
use tokio_util::sync::CancellationToken;

pub use dispense_api::dial::{Connection, Dialler, Dialling};
pub use identity::IdentityError;
pub use link::LinkError;
pub use machine::{Capacity, Offer};

use content::Contents;
use logs::Logs;
use reports::Reports;
use supervisor::Supervisor;

/// How a runner is set up.
#[derive(Debug, Clone)]
pub struct RunnerConfig {
    /// Where the server takes runners, e.g. `http://127.0.0.1:50051`.
    pub server_url: String,
    /// The join token; not needed once the runner has its own credential.
    pub join_token: Option<String>,
    /// Identity and boxes.
    pub state_dir: PathBuf,
    /// For people; by default the machine's host name.
    pub name: Option<String>,
    /// For placement.
    pub labels: BTreeMap<String, String>,
    /// What it promises to sandboxes in all.
    pub offer: Offer,
    /// Directories that sandboxes may be filled from; absolute.
    pub source_roots: Vec<PathBuf>,
    /// It runs in the server's own process.
    pub embedded: bool,
}

/// Why a runner ended.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The identity file cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The state directory cannot be used.
    #[error("failed to use {}", path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server refused it for good.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The backend does not tell what it has.
    #[error("failed to list the boxes of this runner")]
    Backend(#[from] dispense_backend::BackendError),
}

/// Runs until `shutdown`; boxes live on after it. Returns early only when the server refuses the runner.
pub async fn run(
    config: RunnerConfig,
    backend: Arc<dyn Backend>,
    shutdown: CancellationToken,
) -> Result<(), RunnerError> {
    run_over(config, backend, shutdown, None).await
}

/// The same, over connections that the caller makes.
pub async fn run_over(
    config: RunnerConfig,
    backend: Arc<dyn Backend>,
    shutdown: CancellationToken,
    dialler: Option<Dialler>,
) -> Result<(), RunnerError> {
    let identity = identity::Identity::open(&config.state_dir)?;
    let reports = Arc::new(Reports::default());
    let logs = Arc::new(Logs::default());
    let contents = Contents::open(&config.state_dir, config.source_roots.clone());
    let contents = contents.map_err(|source| RunnerError::State { path: config.state_dir.clone(), source })?;
    let supervisor = Supervisor::start(backend.clone(), reports.clone(), logs.clone(), Arc::new(contents)).await?;
    let link = link::Link {
        config,
        dialler,
        identity,
        backend: backend.clone(),
        reports,
        logs,
        supervisor: supervisor.clone(),
    };
    let result = link.run(&shutdown).await;
    supervisor.stop().await;
    backend.close().await;
    Ok(result?)
}
