//! Tells waiters that a sandbox's row changed. They read the row and decide; a notice carries nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dispense_api::id::SandboxId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Who waits for which sandbox. BOUND: an entry lives as long as somebody waits.
#[derive(Default)]
pub(crate) struct Notices {
    waiting: Mutex<HashMap<SandboxId, Arc<Notify>>>,
    closed: CancellationToken,
}

/// A place in the queue of one sandbox.
pub(crate) struct Subscription<'a> {
    notices: &'a Notices,
    sandbox: SandboxId,
    pub(crate) changed: Arc<Notify>,
}

impl Notices {
    /// Registers before the row is read, so that no change is missed.
    pub(crate) fn subscribe(&self, sandbox: &SandboxId) -> Subscription<'_> {
        let mut waiting = self.waiting.lock().expect("no holder panics");
        let changed = waiting.entry(sandbox.clone()).or_default().clone();
        Subscription { notices: self, sandbox: sandbox.clone(), changed }
    }

    /// Nobody waits any more: the server is about to end.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Returns when that is so.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Wakes whoever waits for `sandbox`.
    pub(crate) fn publish(&self, sandbox: &SandboxId) {
        if let Some(changed) = self.waiting.lock().expect("no holder panics").get(sandbox) {
            changed.notify_waiters();
        }
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        let mut waiting = self.notices.waiting.lock().expect("no holder panics");
        // The map's and this one.
        if Arc::strong_count(&self.changed) <= 2 {
            waiting.remove(&self.sandbox);
        }
    }
}
