//! How a process is named to its agent.

use crate::v1::{Process, ProcessRef, process_ref};

impl ProcessRef {
    /// The one that lives with this pid, or else the one that started last with it.
    pub fn by_pid(pid: u32) -> Self {
        Self { by: Some(process_ref::By::Pid(pid)), started_at: None }
    }
}

/// This process and no other.
impl From<&Process> for ProcessRef {
    fn from(process: &Process) -> Self {
        Self { started_at: process.started_at, ..Self::by_pid(process.pid) }
    }
}
