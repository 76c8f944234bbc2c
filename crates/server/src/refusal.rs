//! From the errors of the domain to what a client is told. The cause is logged here, once.

use dispense_api::error::{Code, Error, reason};
use dispense_api::id::SandboxId;

use crate::sandbox::lifecycle::Denied;
use crate::store::StoreError;

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        match &error {
            StoreError::Taken => Self::new(Code::AlreadyExists, "exists", "it exists already"),
            StoreError::Full => {
                tracing::error!("the server's disk is full");
                let message = "the server's disk is full and nothing was changed: free some space there";
                Self::new(Code::ResourceExhausted, reason::DISK_FULL, message)
            }
            StoreError::ReadOnly => {
                tracing::error!("the server's database is read-only");
                let message = "the server's database is read-only and nothing was changed: \
                               make its file and directory writable there";
                Self::new(Code::Unavailable, "database", message)
            }
            StoreError::Silent | StoreError::Former | StoreError::Sql(_) => {
                tracing::error!(%error, %cause, "database");
                let message = "the server's database did not take the request: try again, and see the server's log";
                Self::new(Code::Unavailable, "database", message)
            }
            StoreError::Unsure => {
                tracing::error!(%error, "database");
                let message =
                    "the server's database did not say whether it took the request: look before you try again";
                Self::new(Code::Unavailable, "database", message)
            }
            StoreError::Closed => Self::new(Code::Unavailable, "shutdown", "the server is shutting down"),
            StoreError::Migrate(_) | StoreError::Row { .. } => {
                tracing::error!(%error, %cause, "database");
                Self::new(
                    Code::Internal,
                    "database",
                    "the server's database has a row that cannot be read: see its log",
                )
            }
        }
    }
}

/// The server does not begin, or go on with, what takes long.
pub(crate) fn draining() -> Error {
    Error::new(Code::Unavailable, "draining", "this server is about to end: ask again, or another")
}

/// No such sandbox.
pub(crate) fn unknown_sandbox(id_or_name: &str) -> Error {
    let shown = crate::sandbox::spec::clip(id_or_name);
    let message = format!(
        "sandbox `{shown}` does not exist: `dispense list` shows those that do, with --all also those that were deleted"
    );
    Error::new(Code::NotFound, reason::SANDBOX_UNKNOWN, message).with("sandbox", shown)
}

/// No such runner.
pub(crate) fn unknown_runner(id_or_name: &str) -> Error {
    let shown = crate::sandbox::spec::clip(id_or_name);
    let message = format!("runner `{shown}` does not exist: `dispense runner list` shows those that do");
    Error::new(Code::NotFound, "runner_unknown", message)
}

/// No such job.
pub(crate) fn unknown_job(id: &str) -> Error {
    let shown = crate::sandbox::spec::clip(id);
    Error::new(Code::NotFound, "job_unknown", format!("job `{shown}` does not exist"))
}

/// A request that the sandbox's state does not allow.
pub(crate) fn denied(id: &SandboxId, name: &str, denied: Denied) -> Error {
    match denied {
        Denied::Deleting => {
            Error::new(Code::FailedPrecondition, "sandbox_deleting", format!("sandbox `{name}`: {denied}"))
                .with("sandbox", id.to_string())
        }
    }
}
