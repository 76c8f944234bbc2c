//! Connections to programs in sandboxes, kept for the next request: opening one costs a session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use dispense_api::error::{Code, Error};
use dispense_api::id::{Generation, SandboxId};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::relay::{Relay, Route};

/// For a sandbox that is starting.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection that waits longer is closed. It counts as use of the sandbox, so this is short.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Kept connections of one port, as browsers and load generators use them.
const IDLE_PER_PORT_MAX: usize = 64;
/// Kept connections in all: each is a session of its runner.
const IDLE_MAX: usize = 1024;
/// The head of one answer.
const HEAD_MAX_BYTES: usize = 128 << 10;

type Key = (SandboxId, Generation, u16);

/// A connection that takes one request at a time.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Body>,
    /// It carried a request before, so the program may have closed it meanwhile.
    pub(super) kept: bool,
    key: Key,
}

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

impl Idle {
    fn is_of_use(&self) -> bool {
        !self.sender.is_closed() && self.since.elapsed() < IDLE_TIMEOUT
    }
}

/// The kept ones.
pub(super) struct Pool {
    relay: Arc<Relay>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    ports: HashMap<Key, Vec<Idle>>,
    /// Somebody closes what waits too long.
    swept: bool,
}

impl Kept {
    fn sweep(&mut self) {
        self.ports.retain(|_, waiting| {
            waiting.retain(Idle::is_of_use);
            !waiting.is_empty()
        });
    }

    fn has_room(&self, key: &Key) -> bool {
        let total: usize = self.ports.values().map(Vec::len).sum();
        total < IDLE_MAX && self.ports.get(key).is_none_or(|waiting| waiting.len() < IDLE_PER_PORT_MAX)
    }
}

impl Pool {
    pub(super) fn new(relay: Arc<Relay>) -> Self {
        Self { relay, kept: Mutex::default() }
    }

    /// A kept connection, or a new one.
    pub(super) async fn take(&self, route: &Route, port: u16) -> Result<Connection, Error> {
        let key = (route.sandbox.clone(), route.generation, port);
        if let Some(sender) = self.take_idle(&key) {
            return Ok(Connection { sender, kept: true, key });
        }
        let stream = self.relay.connect_port(route, port, START_TIMEOUT).await?;
        let failed = |error: hyper::Error| Error::new(Code::Unavailable, "preview_cut", error.to_string());
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_MAX_BYTES).preserve_header_case(true);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(failed)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection of a preview ended");
            }
        });
        Ok(Connection { sender, kept: false, key })
    }

    fn take_idle(&self, key: &Key) -> Option<SendRequest<Body>> {
        let mut kept = self.kept.lock().expect("no holder panics");
        let waiting = kept.ports.get_mut(key)?;
        waiting.retain(|idle| !idle.sender.is_closed());
        // The youngest of those whose answer has been read to its end.
        let ready = waiting.iter().rposition(|idle| idle.sender.is_ready() && idle.is_of_use())?;
        Some(waiting.remove(ready).sender)
    }

    /// Keeps a connection for the next request, once its answer has been read.
    pub(super) fn put(self: &Arc<Self>, connection: Connection) {
        let mut kept = self.kept.lock().expect("no holder panics");
        if !kept.has_room(&connection.key) {
            kept.sweep();
            if !kept.has_room(&connection.key) {
                return;
            }
        }
        let waiting = kept.ports.entry(connection.key).or_default();
        waiting.push(Idle { sender: connection.sender, since: Instant::now() });
        if !std::mem::replace(&mut kept.swept, true) {
            let pool = self.clone();
            tokio::spawn(async move { pool.sweep_task().await });
        }
    }

    /// Closes what waits too long, as long as anything waits.
    async fn sweep_task(&self) {
        loop {
            tokio::time::sleep(IDLE_TIMEOUT).await;
            let mut kept = self.kept.lock().expect("no holder panics");
            kept.sweep();
            if kept.ports.is_empty() {
                kept.swept = false;
                return;
            }
        }
    }
}
