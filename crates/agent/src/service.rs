//! What the agent listens for inside the sandbox and the server serves: the workspace's Socket.IO, and SSH.
//!
//! ```text
//! program ──► :3001 or :2222 ──► Visit ──► runner ──► server
//! program ◄──────── byte stream by `OpenPort` ──────────┘
//! ```
//!
//! So each protocol has one implementation, and the sandbox holds no key that would let anybody in.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use dispense_api::agent::{Service, Visit};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

use crate::port::{Came, Stay};
use crate::serve::{self, Agent};

/// Told to nobody so far; an older one has been given up.
const UNTOLD_MAX: usize = 256;

/// Who has come, and whom the runner has not been told of.
#[derive(Debug, Default)]
pub(crate) struct Visits {
    untold: Mutex<VecDeque<Visit>>,
    came: Notify,
    /// Where the services listen.
    ports: OnceLock<Vec<u16>>,
}

impl Visits {
    fn put(&self, visit: Visit) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        if untold.len() >= UNTOLD_MAX {
            untold.pop_front();
        }
        untold.push_back(visit);
        drop(untold);
        self.came.notify_one();
    }

    /// The next one.
    ///
    /// CANCEL SAFETY: one is taken only when it is returned.
    pub(crate) async fn next(&self) -> Visit {
        loop {
            let next = self.untold.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(visit) = next {
                return visit;
            }
            self.came.notified().await;
        }
    }

    /// Whether a port is one of the agent's own services.
    pub(crate) fn owns(&self, port: u16) -> bool {
        self.ports.get().is_some_and(|ports| ports.contains(&port))
    }
}

/// Listens until the agent ends. A port that another program has, or that nobody may have, is told and left.
pub async fn serve_inside(agent: Arc<Agent>) {
    let config = agent.config.clone();
    let slots = Arc::new(Semaphore::new(config.max_sessions));
    let mut ports = Vec::new();
    for (service, port) in [(Service::Workspace, config.workspace_port), (Service::Ssh, config.ssh_port)] {
        let Some(port) = port else { continue };
        match bind(port).await {
            Ok(listener) => {
                ports.push(port);
                agent.spawn(listen(agent.clone(), service, listener, slots.clone()));
            }
            Err(error) => tracing::warn!(port, %error, "{} is not served inside the sandbox", service.as_str_name()),
        }
    }
    // Once: it is called by whoever runs the agent.
    let _ = agent.visits.ports.set(ports);
}

async fn bind(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(both) => Ok(both),
        // A kernel without IPv6.
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

async fn listen(agent: Arc<Agent>, service: Service, listener: TcpListener, slots: Arc<Semaphore>) {
    while let Some((stream, _)) = serve::accept(&agent, || listener.accept()).await {
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!("AGENT_MAX_SESSIONS are open: one more was closed");
            continue;
        };
        stream.set_nodelay(true).ok();
        let stay = Stay { idle_timeout: agent.config.idle_timeout, _slot: slot };
        if let Some(connection) = agent.clone().offer(Came::Tcp(stream), Some(stay)) {
            agent.visits.put(Visit { service: service.into(), connection });
        }
    }
}
