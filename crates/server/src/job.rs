//! Jobs: the durable record of one wanted change of a sandbox. Nothing waits on a job; the sandbox's row is
//! the queue.

use dispense_api::id::{JobId, RunnerId, SandboxId};

/// What was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobType {
    Create,
    Delete,
    Start,
    Stop,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobStatus {
    /// Waits for a runner.
    Pending,
    /// Its runner was told.
    Running,
    Completed,
    Failed,
}

impl JobType {
    pub(crate) const ALL: [Self; 4] = [Self::Create, Self::Delete, Self::Start, Self::Stop];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Start => "start",
            Self::Stop => "stop",
        }
    }
}

impl JobStatus {
    pub(crate) const ALL: [Self; 4] = [Self::Pending, Self::Running, Self::Completed, Self::Failed];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// One job, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) kind: JobType,
    pub(crate) sandbox: SandboxId,
    pub(crate) runner: Option<RunnerId>,
    pub(crate) status: JobStatus,
    pub(crate) error: String,
    pub(crate) created_at: i64,
    pub(crate) started_at: Option<i64>,
    pub(crate) finished_at: Option<i64>,
}
