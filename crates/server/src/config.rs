//! How a server is set up.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderValue, Uri};

use crate::clock::WallClock;
use crate::data_dir::DataDirError;
use crate::door::tls::TlsConfig;
use crate::preview::PreviewConfig;
use crate::ssh::SshConfig;
use crate::store::{Database, StoreError, StoreMode};

/// How a server is set up.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Database, keys, lock.
    pub data_dir: PathBuf,
    /// The public door; port 0 takes a free one.
    pub address: SocketAddr,
    /// Where runners connect to; port 0 takes a free one.
    pub runner_address: SocketAddr,
    /// It serves one user's commands and ends with them: sandboxes that an earlier life left with a lease
    /// are deleted at the start.
    pub embedded: bool,
    /// What is kept of each stream of a finished process when its sandbox is gone; 0 keeps nothing.
    pub log_tail_bytes: u32,
    /// Who may call, and how often.
    pub access: AccessConfig,
    /// By default a file in the data directory.
    pub database: Option<Database>,
    /// Where the other servers of a shared database reach this one's ports: a name or an address of this machine.
    pub advertised_host: String,
    /// What is sealed in the database is sealed anew, with a key that is made now; the old one is forgotten.
    pub rotate_secrets: bool,
    /// Without it both ports are plain.
    pub tls: Option<TlsConfig>,
    /// Where previews are.
    pub previews: PreviewConfig,
    /// The workspaces in browsers.
    pub workspace: WorkspaceConfig,
    /// SSH, where it is switched on.
    pub ssh: Option<SshConfig>,
    /// The API of the coding agents' model provider; `None` to ask nobody about a key.
    pub provider_url: Option<Uri>,
}

impl ServerConfig {
    /// The names of previews and workspaces.
    pub(crate) fn wildcards(&self) -> Vec<String> {
        let PreviewConfig { domain, app_domain, .. } = &self.previews;
        let domains = [domain, app_domain].into_iter().chain(&self.workspace.domain);
        domains.map(|domain| format!("*.{domain}")).collect()
    }
}

/// The workspaces in browsers.
#[derive(Debug, Clone)]
pub struct WorkspaceConfig {
    /// Below it each sandbox's workspace has a name; `None` where workspaces have none. No page of a preview has a name
    /// there.
    pub domain: Option<String>,
    /// Of a `.gitignore` so much counts.
    pub ignore_file_bytes: usize,
}

impl Default for WorkspaceConfig {
    fn default() -> Self {
        Self { domain: None, ignore_file_bytes: 64 << 10 }
    }
}

/// What is asked of callers.
#[derive(Debug, Clone)]
pub struct AccessConfig {
    /// Without it everybody who reaches the port is an administrator.
    pub key_required: bool,
    /// Requests a minute of one account; `None` for no limit.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Origins of pages whose scripts may call, e.g. `https://console.example.org`.
    pub allowed_origins: Vec<HeaderValue>,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self { key_required: true, requests_per_minute: None, allowed_origins: vec![] }
    }
}

/// A screen or two of text, and the end of most stack traces.
pub const LOG_TAIL_BYTES_DEFAULT: u32 = 64 << 10;

/// What a server takes from the machine beside its files.
pub struct Surroundings {
    /// The machine's clock.
    pub wall_clock: WallClock,
    /// How the database answers.
    pub store: StoreMode,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self { wall_clock: Arc::new(std::time::SystemTime::now), store: StoreMode::Free }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The database cannot be opened.
    #[error("failed to open the database {database}: {cause}")]
    Store {
        /// Which one.
        database: String,
        /// Why.
        cause: String,
    },
    /// A port could not be taken back from those that were served before this server led.
    #[error("failed to take the lead: {source}: start the server again")]
    Standby {
        /// Why not.
        source: std::io::Error,
    },
    /// The certificate cannot be used.
    #[error("failed to set TLS up: {0}")]
    Tls(String),
    /// What is sealed in the database cannot be opened.
    #[error("failed to open the stored secrets: {0}")]
    Vault(String),
    /// The port is taken, or not ours to take.
    #[error("failed to listen on {address}: {source}: choose another with {flag}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Which flag sets it.
        flag: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl StartError {
    pub(crate) fn store(database: &Database, error: &StoreError) -> Self {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        Self::Store { database: database.to_string(), cause: format!("{error}{source}") }
    }
}
