//! Backends make boxes and open one byte stream to the agent in each ([`Backend::dial`]).
//!
//! INVARIANT (I1): a backend never execs in a box, copies files, allocates terminals or forwards ports. All of
//! that exists once, in the agent; so every backend behaves alike, and a new one is one folder that passes
//! [`testing::conformance`].
//!
//! A box is what a backend makes for one sandbox and one generation: a root file system and, while it runs,
//! an agent as its first process. A backend persists what it needs before it acts, so that [`Backend::list`]
//! tells the truth after a crash and [`Backend::adopt`] takes a running box over after a restart.

#[cfg(feature = "testing")]
pub mod fake;
pub mod native;
#[cfg(feature = "testing")]
pub mod testing;

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use dispense_api::id::{Generation, SandboxId};
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to an agent. Shutting down its write side half-closes it.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Makes boxes. Every method is idempotent: repeated on a box that is already so, it succeeds.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// What this backend can do on this machine. Cheap: it may be asked often.
    fn capabilities(&self) -> Capabilities;

    /// Validates the whole spec, then makes the box without starting it. On an error nothing is left.
    async fn create(&self, spec: &BoxSpec) -> Result<(), BackendError>;

    /// Takes over a box that an earlier process of this runner started, as [`Backend::list`] told it.
    async fn adopt(&self, sandbox: &SandboxId) -> Result<(), BackendError>;

    /// Boots the agent. Returns when [`Backend::dial`] can be called; the agent may still be booting.
    async fn start(&self, sandbox: &SandboxId) -> Result<(), BackendError>;

    /// Ends every process of the box at once, keeps its files. The graceful part is the agent's `Shutdown`.
    async fn stop(&self, sandbox: &SandboxId) -> Result<(), BackendError>;

    /// Ends every process and removes everything, whatever state the box is in. Goes on to the end and
    /// returns what could not be removed.
    async fn destroy(&self, sandbox: &SandboxId) -> Result<(), BackendError>;

    /// Every box there is, running or not, broken records included.
    async fn list(&self) -> Result<Vec<BoxReport>, BackendError>;

    /// Opens one byte stream to the agent of a started box.
    async fn dial(&self, sandbox: &SandboxId) -> Result<Box<dyn ByteStream>, BackendError>;

    /// Returns when the box's first process has ended; at once when it does not run.
    async fn wait(&self, sandbox: &SandboxId) -> Result<BoxExit, BackendError>;

    /// Finishes what runs in the background, such as the removal of files. Boxes live on.
    async fn close(&self);
}

/// What a backend can do on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// E.g. `native`.
    pub backend: String,
    /// Templates by name.
    pub templates: Vec<String>,
    /// Networks it can give.
    pub networks: Vec<Network>,
    /// Limits that it cannot enforce (`cpu`, `memory`, `disk`, `pids`), each with the reason.
    pub unenforced_limits: BTreeMap<String, String>,
    /// Why a disk with a limit is in memory here, and its files are lost when the box stops; `None` where they are kept.
    pub disk_in_memory: Option<String>,
    /// Why no box can be made at all, e.g. user namespaces are switched off.
    pub unusable: Option<String>,
}

/// What the box's processes can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// Loopback only.
    None,
    /// Outbound connections to public addresses.
    Nat,
}

/// Limits of a box. All are set; the defaults were filled in by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Disk in bytes; 0 means no limit of its own.
    pub disk_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxSpec {
    /// Whose box.
    pub sandbox: SandboxId,
    /// Of this placement.
    pub generation: Generation,
    /// A name out of [`Capabilities::templates`].
    pub template: String,
    /// Limits to enforce.
    pub limits: Limits,
    /// Refuse when a limit cannot be enforced.
    pub require_limits: bool,
    /// What it can reach.
    pub network: Network,
    /// Host name inside.
    pub hostname: String,
    /// Environment of the agent: `AGENT_*` configure it, the rest is what every process inherits.
    pub env: BTreeMap<String, String>,
}

/// A box as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxReport {
    /// Whose box.
    pub sandbox: SandboxId,
    /// Of which placement.
    pub generation: Generation,
    /// What it does.
    pub state: BoxState,
    /// The limits that are not enforced for it, each with the reason.
    pub unenforced_limits: BTreeMap<String, String>,
}

/// What a box does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoxState {
    /// Its first process lives.
    Running,
    /// Made, or stopped.
    Stopped,
    /// Its record or files cannot be used; only `destroy` is possible.
    Broken(String),
}

/// How a box's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BoxExit {
    /// The kernel killed processes of the box for want of memory.
    pub out_of_memory: bool,
}

/// Why a backend did not do it.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// There is no such box.
    #[error("sandbox {0} has no box on this runner")]
    Unknown(SandboxId),
    /// The box is there with another generation or spec.
    #[error("sandbox {0} has a box of generation {1} already")]
    Exists(SandboxId, Generation),
    /// The box does not run.
    #[error("the box of sandbox {0} does not run")]
    NotRunning(SandboxId),
    /// The user asked for something that cannot be had here.
    #[error("{message}")]
    Refused {
        /// A stable reason out of [`dispense_api::error::reason`].
        reason: &'static str,
        /// A sentence that names the thing and the next step.
        message: String,
    },
    /// The machine did not play along.
    #[error("failed to {action}")]
    Failed {
        /// What was being done, naming the thing.
        action: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BackendError {
    /// A failure of the machine.
    pub fn failed(action: impl fmt::Display, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed { action: action.to_string(), source: source.into() }
    }
}
