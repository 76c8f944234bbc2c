//! The ends of finished processes' output, on their way to the server: a queue that a link empties when there
//! is one.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dispense_api::runner::{KeepLogsRequest, SandboxLog};
use prost::Message;
use tokio::sync::Notify;

use crate::link::RunnerLink;

/// What waits for a server that is away; the oldest go first.
const QUEUE_MAX_BYTES: usize = 32 << 20;
/// Of one request: below the bound of a message.
const BATCH_MAX_BYTES: usize = 2 << 20;
/// Logs that come within this time share a request.
const BATCH_DELAY: Duration = Duration::from_millis(20);
const KEEP_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Queue {
    logs: VecDeque<SandboxLog>,
    bytes: usize,
}

/// Shared by the owners of the boxes, who write, and the link, which sends.
#[derive(Default)]
pub(crate) struct Logs {
    queue: Mutex<Queue>,
    something: Notify,
}

impl Logs {
    /// Queues a log.
    pub(crate) fn put(&self, log: SandboxLog) {
        let mut queue = self.lock();
        queue.bytes += log.encoded_len();
        queue.logs.push_back(log);
        while queue.bytes > QUEUE_MAX_BYTES
            && let Some(oldest) = queue.logs.pop_front()
        {
            queue.bytes -= oldest.encoded_len();
            tracing::warn!(sandbox = %oldest.sandbox_id, "log was dropped: the server has been away for too long");
        }
        drop(queue);
        self.something.notify_one();
    }

    /// Sends what comes, until the link fails; what was not taken stays in the queue.
    pub(crate) async fn send(&self, mut link: RunnerLink) -> tonic::Status {
        loop {
            let batch = self.batch().await;
            let request = KeepLogsRequest { logs: batch.clone() };
            match tokio::time::timeout(KEEP_TIMEOUT, link.keep_logs(request)).await {
                Ok(Ok(_)) => self.done(&batch),
                Ok(Err(status)) if status.code() == tonic::Code::InvalidArgument => {
                    tracing::warn!(%status, "the server does not take logs: they are dropped");
                    self.done(&batch);
                }
                Ok(Err(status)) => return status,
                Err(_) => return tonic::Status::deadline_exceeded("the server does not take logs"),
            }
        }
    }

    /// Waits for logs and copies the oldest.
    async fn batch(&self) -> Vec<SandboxLog> {
        while self.lock().logs.is_empty() {
            self.something.notified().await;
        }
        tokio::time::sleep(BATCH_DELAY).await;
        let mut room = BATCH_MAX_BYTES;
        let fits = |log: &&SandboxLog| {
            let len = log.encoded_len();
            let first = room == BATCH_MAX_BYTES;
            room = room.saturating_sub(len);
            first || room > 0
        };
        self.lock().logs.iter().take_while(fits).cloned().collect()
    }

    /// The server has them: those that have not been dropped meanwhile are the oldest here.
    fn done(&self, batch: &[SandboxLog]) {
        let mut queue = self.lock();
        for log in batch {
            if queue.logs.front() == Some(log) {
                queue.logs.pop_front();
                queue.bytes -= log.encoded_len();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
