//! Jobs: the durable record of one wanted change of a sandbox. Nothing waits on a job; the sandbox's row is
//! the queue.

use std::time::Duration;

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

/// A change that has not come about by then does not: the longest is a large template on a slow disk, or a
/// wait for a runner that is being repaired.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3600);

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Attempt {
    pub(crate) at: i64,
    pub(crate) runner: String,
    pub(crate) error: String,
}

impl Job {
    /// A job that was just asked for; with a runner it is told at once.
    pub(crate) fn new(kind: JobType, sandbox: &SandboxId, runner: Option<&RunnerId>, now: i64) -> Self {
        Self {
            id: JobId::random(),
            kind,
            sandbox: sandbox.clone(),
            runner: runner.cloned(),
            status: if runner.is_some() { JobStatus::Running } else { JobStatus::Pending },
            error: String::new(),
            attempts: vec![],
            created_at: now,
            deadline_at: now.saturating_add(i64::try_from(DEADLINE.as_micros()).unwrap_or(i64::MAX)),
            started_at: runner.is_some().then_some(now),
            finished_at: None,
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
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) created_at: i64,
    pub(crate) deadline_at: i64,
    pub(crate) started_at: Option<i64>,
    pub(crate) finished_at: Option<i64>,
}
