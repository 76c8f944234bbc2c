//! When the sandbox was used last: a call, output or input. The server stops those that nobody uses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The last use.
#[derive(Debug)]
pub(crate) struct Activity {
    start: Instant,
    last_ms: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { start: Instant::now(), last_ms: AtomicU64::new(0) }
    }
}

impl Activity {
    /// It is used now.
    pub(crate) fn mark(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Seconds since the last use.
    pub(crate) fn idle_secs(&self) -> u64 {
        self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed)) / 1000
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
