//! Network `nat`: outbound connections to public addresses. As root a link of the box's own ([`veth`]), as an ordinary
//! user a proxy of the runner's ([`proxy`]); what may be reached is the same ([`refused`]).

mod command;
mod proxy;
mod refused;
mod resolv;
mod veth;

use std::sync::Arc;

use dispense_api::id::SandboxId;

use super::boxes::Live;
use super::spawner::Spawner;
use crate::BackendError;
use proxy::Proxy;
use veth::Veth;

/// What makes networks.
pub(super) enum Nat {
    /// As root.
    Veth(Veth),
    /// As an ordinary user.
    Proxy(Proxy),
}

/// A started box that is to have a network.
pub(super) struct Place<'a> {
    pub(super) sandbox: &'a SandboxId,
    /// Its own among this runner's, as root.
    pub(super) slot: Option<u32>,
    /// Its first process.
    pub(super) pid: i32,
    pub(super) live: &'a Arc<Live>,
}

impl Nat {
    /// Looks whether this user on this machine can make networks; `Err` says why not.
    pub(super) async fn probe(instance: &str, as_root: bool) -> Result<Self, String> {
        if let Some(why) = command::missing() {
            return Err(why);
        }
        if as_root { Ok(Self::Veth(Veth::new(instance))) } else { Proxy::probe().await.map(Self::Proxy) }
    }

    /// Gives a box that has just been started its network.
    pub(super) async fn attach(&self, place: &Place<'_>, spawner: &Spawner) -> Result<(), BackendError> {
        match (self, place.slot) {
            (Self::Veth(veth), Some(slot)) => veth.attach(slot, place.pid).await,
            (Self::Veth(_), None) => Err(BackendError::failed(
                format!("make the network of {}", place.sandbox),
                "it was made by an ordinary user: run the runner as that user, or create a new sandbox",
            )),
            (Self::Proxy(proxy), _) => proxy.attach(place, spawner).await,
        }
    }

    /// Goes on with the network of a box that an earlier process of this runner started.
    pub(super) async fn adopt(&self, place: &Place<'_>, spawner: &Spawner) -> Result<(), BackendError> {
        match (self, place.slot) {
            (Self::Veth(veth), Some(slot)) => veth.adopt(slot),
            (Self::Veth(_), None) => {}
            (Self::Proxy(proxy), _) => proxy.attach(place, spawner).await?,
        }
        Ok(())
    }

    /// Takes a box's network away. It may be gone with its namespace.
    pub(super) async fn detach(&self, sandbox: &SandboxId, slot: Option<u32>) {
        match (self, slot) {
            (Self::Veth(veth), Some(slot)) => veth.detach(slot).await,
            (Self::Veth(_), None) => {}
            (Self::Proxy(proxy), _) => proxy.detach(sandbox).await,
        }
    }

    /// `/etc/resolv.conf` of a box with this network.
    pub(super) fn resolv_conf(&self) -> String {
        match self {
            Self::Veth(_) => veth::resolv_conf(),
            Self::Proxy(_) => proxy::resolv_conf(),
        }
    }
}
