//! The door inside a sandbox: what its own programs reach on the agent's ports, the workspace and SSH.
//!
//! The agent accepts and passes bytes; who calls is asked here, as at the doors outside, and for one sandbox only.
//! What a runner tells is believed for the sandboxes that it has.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use dispense_api::agent::Service;
use dispense_api::error::{Code, Error, reason};
use dispense_api::id::{RunnerId, SandboxId};
use dispense_api::runner::Visit;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Parts;
use super::listener;
use super::ssh::SshDoor;
use super::workspace::WorkspaceDoor;
use crate::relay::Route;
use crate::relay::port::PortStream;

/// Visits at the same time, of all sandboxes and of one.
const VISITS_MAX: usize = 4096;
const VISITS_OF_ONE_MAX: usize = 64;
/// Who is inside a sandbox has no address that says anything outside.
const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// HTTP/2 window of a connection.
const WINDOW_BYTES: u32 = 1 << 20;

/// The door.
pub(crate) struct InsideDoor {
    pub(crate) parts: Arc<Parts>,
    pub(crate) workspace: WorkspaceDoor,
    /// Where SSH is switched on.
    pub(crate) ssh: Option<SshDoor>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
    pub(crate) open: Mutex<HashMap<SandboxId, usize>>,
}

/// Counts an open visit.
struct Inside(Arc<InsideDoor>, SandboxId);

impl Drop for Inside {
    fn drop(&mut self) {
        let mut open = self.0.open.lock().expect("no holder panics");
        if let Some(count) = open.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.1);
            }
        }
    }
}

impl InsideDoor {
    /// A runner tells that somebody has come to a service of one of its sandboxes. One that is not taken is closed by
    /// the agent.
    pub(crate) fn visit(self: &Arc<Self>, runner: &RunnerId, visit: &Visit) -> Result<(), Error> {
        let malformed = |what| Error::new(Code::InvalidArgument, reason::PROTOCOL, format!("a visit {what}"));
        let sandbox: SandboxId = visit.sandbox_id.parse().map_err(|_| malformed("names no sandbox"))?;
        let (service, connection, generation) = (visit.service(), visit.connection, visit.generation);
        if service == Service::Unspecified {
            return Err(malformed("is to no service"));
        }
        let Some(inside) = self.enter(&sandbox) else {
            tracing::debug!(%sandbox, "too many visits are open: one more is not taken");
            return Ok(());
        };
        let (door, runner) = (self.clone(), runner.clone());
        self.tasks.spawn(async move {
            let taken = async {
                let row = door.parts.sandboxes.get(sandbox.as_str()).await?;
                if row.runner.as_ref() != Some(&runner) || row.life.generation.0 != generation {
                    return Err(malformed("is to a sandbox that this runner has not"));
                }
                row.spec.offers_services()?;
                door.parts.relay.take_connection(&Route::to(&row, &runner), connection).await
            };
            match taken.await {
                Ok(stream) => door.serve(service, &sandbox, stream).await,
                Err(error) => tracing::debug!(%sandbox, %error, "a visit was not taken"),
            }
            drop(inside);
        });
        Ok(())
    }

    /// Counts a visit, unless there are too many.
    fn enter(self: &Arc<Self>, sandbox: &SandboxId) -> Option<Inside> {
        let mut open = self.open.lock().expect("no holder panics");
        let all: usize = open.values().sum();
        let of_one = open.get(sandbox).copied().unwrap_or_default();
        if all >= VISITS_MAX || of_one >= VISITS_OF_ONE_MAX {
            return None;
        }
        open.insert(sandbox.clone(), of_one + 1);
        Some(Inside(self.clone(), sandbox.clone()))
    }

    async fn serve(&self, service: Service, sandbox: &SandboxId, stream: PortStream) {
        match (service, &self.ssh) {
            (Service::Workspace, _) => {
                let (workspace, name) = (self.workspace.clone(), sandbox.to_string());
                let service = move |request: http::Request<Incoming>| {
                    workspace.clone().serve_own(name.clone(), request.map(Body::new))
                };
                listener::connection(stream, PEER, WINDOW_BYTES, service, self.shutdown.clone()).await;
            }
            (Service::Ssh, Some(ssh)) => ssh.clone().inside(stream, PEER, sandbox, self.shutdown.clone()).await,
            // SSH is switched off: the connection is taken, and closed.
            (Service::Ssh, None) | (Service::Unspecified, _) => {}
        }
    }
}
