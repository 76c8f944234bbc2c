//! What the store says of ports, kept in memory: each request of a preview asks. While a server leads, nobody else writes it.

use std::collections::HashMap;
use std::sync::RwLock;

use dispense_api::id::SandboxId;
use tokio::sync::watch;

use crate::store::previews::{Access, access};
use crate::store::{Readers, StoreError};

/// Ports that are remembered; then all are asked for anew.
const PORTS_MAX: usize = 16_384;

#[derive(Default)]
pub(crate) struct Known {
    ports: RwLock<Ports>,
    /// Told of each change, for those who wait for one.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Ports {
    /// Grows with each change, so that nobody puts back what they read before one.
    changes: u64,
    access: HashMap<(SandboxId, u16), Access>,
}

impl Known {
    pub(crate) async fn access(&self, readers: &Readers, sandbox: &SandboxId, port: u16) -> Result<Access, StoreError> {
        let place = (sandbox.clone(), port);
        let changes = {
            let ports = self.ports.read().expect("no holder panics");
            if let Some(access) = ports.access.get(&place) {
                return Ok(*access);
            }
            ports.changes
        };
        let read = access(readers, sandbox, port).await?;
        let mut ports = self.ports.write().expect("no holder panics");
        if ports.changes == changes {
            if ports.access.len() >= PORTS_MAX {
                ports.access.clear();
            }
            ports.access.insert(place, read);
        }
        Ok(read)
    }

    /// Something was written about a port, or may have been.
    pub(crate) fn forget(&self, sandbox: &SandboxId, port: u16) {
        let mut ports = self.ports.write().expect("no holder panics");
        ports.changes += 1;
        ports.access.remove(&(sandbox.clone(), port));
        drop(ports);
        self.changed.send_replace(());
    }

    /// Told of each change from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
