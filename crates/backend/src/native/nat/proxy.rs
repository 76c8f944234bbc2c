//! Network `nat` as an ordinary user: the runner connects for the box.
//!
//! ```text
//! program ─ connect(1.1.1.1:443) ─► lo of the box ─ tproxy ─► socket in the box's namespace, held by the runner
//!                                                                      │ gate: may this address be reached?
//!                                       1.1.1.1:443 ◄── host's network ─┘ a connection of the runner's own
//! ```
//!
//! Inside the box every IPv4 address is routed to its own loopback, where rules of nftables hand connections and
//! datagrams to sockets that were made there and passed out by the spawner; so the TCP inside is the kernel's, and
//! takes no device and no program of root's. Not offered: ICMP, IPv6, and being reached.
//!
//! INVARIANT: what a box may reach is decided by [`gate`] alone. The rules inside only tell programs at once; whoever
//! is root in the box's namespace may change them and reaches no more by it.

mod gate;
mod packet;
mod rules;
mod tcp;
mod udp;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use dispense_api::id::SandboxId;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::Place;
use super::command::run;
use crate::BackendError;
use crate::native::boxes::Live;
use crate::native::spawner::Spawner;
use rules::Ports;

/// What a runner raises its own limit of open files to, as far as it may: a thousand connections take two thousand.
const DESCRIPTORS_WANTED: u64 = 65_536;
/// Where nobody limits them.
const DESCRIPTORS_MAX: u64 = 1 << 20;

/// What makes networks.
pub(in crate::native) struct Proxy {
    /// The task of each box's network.
    boxes: Mutex<HashMap<SandboxId, JoinSet<()>>>,
    budget: OnceLock<Budget>,
}

/// BOUND: open files of all networks together, so that no box takes the runner's last.
#[derive(Clone)]
struct Budget {
    descriptors: Arc<Semaphore>,
    /// Connections of one box at most.
    flows_max: usize,
}

impl Budget {
    /// Half of what this process may open; one box takes a quarter of that.
    fn new() -> Self {
        let limit = getrlimit(Resource::Nofile);
        let wanted = limit.maximum.map_or(DESCRIPTORS_WANTED, |maximum| maximum.min(DESCRIPTORS_WANTED));
        if limit.current.is_some_and(|current| current < wanted) {
            // The spawner has been started before, so that boxes keep the limit that they always had.
            let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
        }
        let now = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS_MAX).min(DESCRIPTORS_MAX);
        let all = usize::try_from(now / 2).unwrap_or(Semaphore::MAX_PERMITS);
        Self { descriptors: Arc::new(Semaphore::new(all)), flows_max: tcp::FLOWS_MAX.min(all / 4 / tcp::DESCRIPTORS) }
    }
}

impl Proxy {
    /// Tries the rules once in a namespace that is thrown away: kernels differ in what they allow and have.
    pub(super) async fn probe() -> Result<Self, String> {
        if let Some(why) = crate::native::machine::unusable() {
            return Err(why);
        }
        let args = ["--user", "--map-root-user", "--net", "nft", "-f", "-"];
        let trial = run("unshare", &args, &rules::text(Ports { tcp: 1, udp: 1 })).await;
        trial.map_err(|error| {
            format!(
                "network `nat` as an ordinary user needs nftables with `tproxy` and `reject` in the kernel \
                 ({error}): run `modprobe -a nft_tproxy nft_reject_ipv4` as root, or run the runner as root"
            )
        })?;
        Ok(Self { boxes: Mutex::default(), budget: OnceLock::new() })
    }

    /// Makes a box's network, or makes it anew for a box that lives already: connections of before are gone with the
    /// process that served them.
    pub(super) async fn attach(&self, place: &Place<'_>, spawner: &Spawner) -> Result<(), BackendError> {
        let failed = |why: String| BackendError::failed(format!("make the network of {}", place.sandbox), why);
        let io_failed = |error: io::Error| failed(error.to_string());
        let open = |kind| File::open(format!("/proc/{}/ns/{kind}", place.pid));
        let (user, net) = (open("user").map_err(io_failed)?, open("net").map_err(io_failed)?);
        // While the box's descriptor says that it lives its pid is its own, and so were the namespaces.
        if place.live.has_ended() {
            return Err(failed("the box has ended".to_owned()));
        }
        let made = spawner.network(user.as_fd(), net.as_fd()).await?;
        let (tcp, udp) = (TcpListener::from(made.tcp), UdpSocket::from(made.udp));
        let port = |address: io::Result<std::net::SocketAddr>| address.map(|address| address.port());
        let ports =
            Ports { tcp: port(tcp.local_addr()).map_err(io_failed)?, udp: port(udp.local_addr()).map_err(io_failed)? };
        // Through this process's descriptors, which name these namespaces whatever becomes of the pid.
        let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let enter = [format!("--user={}", path(&user)), format!("--net={}", path(&net))];
        let inside = async |words: &[&str], input: &str| {
            // Its own ids are root's there already; others may not exist.
            let args = [&[enter[0].as_str(), enter[1].as_str(), "--preserve-credentials"], words].concat();
            run("nsenter", &args, input).await
        };
        let (interface, rules) = (rules::interface(), rules::text(ports));
        tokio::try_join!(inside(&["ip", "-batch", "-"], &interface), inside(&["nft", "-f", "-"], &rules))
            .map_err(failed)?;
        let budget = self.budget.get_or_init(Budget::new).clone();
        let network = Network {
            tcp: tokio::net::TcpListener::from_std(tcp).map_err(io_failed)?,
            udp: tokio::net::UdpSocket::from_std(udp).map_err(io_failed)?,
            raw: Arc::new(made.raw),
        };
        let mut task = JoinSet::new();
        let span = tracing::debug_span!("network", sandbox = %place.sandbox);
        task.spawn(network.serve(place.live.clone(), budget).instrument(span));
        self.boxes().insert(place.sandbox.clone(), task);
        Ok(())
    }

    /// Ends a box's network, and with it the last thing that holds its namespace.
    pub(super) async fn detach(&self, sandbox: &SandboxId) {
        let task = self.boxes().remove(sandbox);
        if let Some(mut task) = task {
            task.shutdown().await;
        }
    }

    fn boxes(&self) -> MutexGuard<'_, HashMap<SandboxId, JoinSet<()>>> {
        self.boxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sockets of one box's network.
struct Network {
    tcp: tokio::net::TcpListener,
    udp: tokio::net::UdpSocket,
    raw: Arc<std::os::fd::OwnedFd>,
}

impl Network {
    /// Serves the box until it ends.
    async fn serve(self, live: Arc<Live>, budget: Budget) {
        tokio::select! {
            () = live.ended() => {}
            () = tcp::serve(self.tcp, &budget) => {}
            () = udp::serve(self.udp, self.raw, &budget) => {}
        }
    }
}

/// `/etc/resolv.conf` of a box: the same whatever the host's says, and as good when that has changed.
pub(super) fn resolv_conf() -> String {
    format!("nameserver {}\n", gate::RESOLVER)
}
