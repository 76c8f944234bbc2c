//! Reaps children: those that were started here, and, as the first process of a sandbox, every orphan.
//!
//! One owner: a map from pid to whoever waits. A child is forked and registered under the map's lock, and
//! reaped under it, so no exit is missed and no pid is mistaken.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::sys::{self, Ended};

type Waiters = HashMap<i32, oneshot::Sender<Ended>>;

static WAITERS: LazyLock<Mutex<Waiters>> = LazyLock::new(Mutex::default);

/// Starts a child and registers it; the receiver gets how it ended.
pub(crate) fn spawn<E>(start: impl FnOnce() -> Result<i32, E>) -> Result<(i32, oneshot::Receiver<Ended>), E> {
    let mut waiters = WAITERS.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = start()?;
    let (sender, receiver) = oneshot::channel();
    waiters.insert(pid, sender);
    Ok((pid, receiver))
}

/// Reaps at every SIGCHLD, for as long as it is polled.
pub(crate) async fn run() -> std::io::Error {
    let mut children = match signal(SignalKind::child()) {
        Ok(children) => children,
        Err(error) => return error,
    };
    let is_first = std::process::id() == 1;
    loop {
        reap(is_first);
        children.recv().await;
    }
}

fn reap(orphans_too: bool) {
    let mut waiters = WAITERS.lock().unwrap_or_else(PoisonError::into_inner);
    let pids: Vec<i32> = waiters.keys().copied().collect();
    for pid in pids {
        if let Some((pid, ended)) = sys::reap(Some(pid)) {
            tell(&mut waiters, pid, ended);
        }
    }
    while orphans_too && let Some((pid, ended)) = sys::reap(None) {
        tell(&mut waiters, pid, ended);
    }
}

fn tell(waiters: &mut Waiters, pid: i32, ended: Ended) {
    if let Some(waiter) = waiters.remove(&pid) {
        // Nobody waits any more for a process that was forgotten.
        let _ = waiter.send(ended);
    }
}
