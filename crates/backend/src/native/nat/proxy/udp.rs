//! UDP of a box: for each pair of source and destination a connected socket of the runner's own, whose answers are
//! sent into the box with the destination as their source.
//!
//! There is no queue: a datagram is passed at once or, when the kernel's buffer is full, dropped as any network does.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{SendFlags, send, sendto};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::Budget;
use super::gate;
use super::packet::{HEADERS_BYTES, PAYLOAD_MAX_BYTES, write_headers};
use crate::native::sys::{self, Datagram};

/// BOUND: associations of one box; the one that is idle for longest makes room.
const ASSOCIATIONS_MAX: usize = 256;
/// What network devices forget an association after.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A resolver that has waited for so long has asked again, from another port.
const DNS_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pair {
    source: SocketAddrV4,
    wanted: SocketAddrV4,
}

struct Association {
    socket: Arc<UdpSocket>,
    used: Arc<LastUse>,
    /// Passes the answers.
    task: AbortHandle,
}

/// When a datagram last passed, in either direction.
struct LastUse(Mutex<Instant>);

impl LastUse {
    fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn at(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends into the box. One buffer serves all associations, since nothing waits while it is held.
#[derive(Clone)]
struct Answers {
    raw: Arc<OwnedFd>,
    packet: Arc<Mutex<Vec<u8>>>,
}

/// The associations of a box.
struct Associations<'a> {
    budget: &'a Budget,
    answers: Answers,
    table: HashMap<Pair, Association>,
    tasks: JoinSet<()>,
}

/// Serves the datagrams that come by `socket`; `raw` answers them.
pub(super) async fn serve(socket: UdpSocket, raw: Arc<OwnedFd>, budget: &Budget) {
    let mut associations = Associations::new(raw, budget);
    let mut buffer = vec![0; PAYLOAD_MAX_BYTES];
    loop {
        let received = socket.async_io(Interest::READABLE, || sys::receive_datagram(&socket, &mut buffer));
        tokio::select! {
            received = received => match received {
                Ok(Datagram { bytes, source, destination }) => {
                    associations.pass(Pair { source, wanted: destination }, &buffer[..bytes]).await;
                }
                Err(error) => tracing::debug!(%error, "a datagram of a box could not be received"),
            },
            Some(ended) = associations.tasks.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                associations.table.retain(|_, association| association.task.id() != id);
            }
        }
    }
}

impl<'a> Associations<'a> {
    fn new(raw: Arc<OwnedFd>, budget: &'a Budget) -> Self {
        let packet = Arc::new(Mutex::new(vec![0; HEADERS_BYTES + PAYLOAD_MAX_BYTES]));
        Self { budget, answers: Answers { raw, packet }, table: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Sends what the box sends.
    async fn pass(&mut self, pair: Pair, payload: &[u8]) {
        let known = self.table.get(&pair).filter(|association| !association.task.is_finished());
        let association = match known {
            Some(known) => known,
            None => match self.open(pair).await {
                Ok(()) => match self.table.get(&pair) {
                    Some(opened) => opened,
                    None => return,
                },
                Err(error) => {
                    tracing::debug!(wanted = %pair.wanted, %error, "datagrams of a box go nowhere");
                    return;
                }
            },
        };
        association.used.touch();
        // Not by way of the event loop, which would wait. What does not go now does not go.
        let _ = send(&association.socket, payload, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    async fn open(&mut self, pair: Pair) -> io::Result<()> {
        let target = gate::destination(pair.source, pair.wanted).await.map_err(io::Error::other)?;
        self.open_to(pair, target).await
    }

    async fn open_to(&mut self, pair: Pair, target: SocketAddr) -> io::Result<()> {
        self.make_room();
        let permit = self.budget.descriptors.clone().try_acquire_owned().map_err(io::Error::other)?;
        let any: SocketAddr = match target {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(target).await?;
        let (socket, used) = (Arc::new(socket), Arc::new(LastUse(Mutex::new(Instant::now()))));
        let task = self.tasks.spawn(pass_answers(socket.clone(), pair, self.answers.clone(), used.clone(), permit));
        self.table.insert(pair, Association { socket, used, task });
        Ok(())
    }

    fn make_room(&mut self) {
        while self.table.len() >= ASSOCIATIONS_MAX {
            let oldest = self.table.iter().min_by_key(|(_, association)| association.used.at());
            let Some(pair) = oldest.map(|(pair, _)| *pair) else { return };
            if let Some(association) = self.table.remove(&pair) {
                association.task.abort();
            }
        }
    }
}

/// Passes the answers until there are none for a while.
async fn pass_answers(
    socket: Arc<UdpSocket>,
    pair: Pair,
    answers: Answers,
    used: Arc<LastUse>,
    _permit: OwnedSemaphorePermit,
) {
    let idle = if gate::is_dns(pair.wanted) { DNS_IDLE_TIMEOUT } else { IDLE_TIMEOUT };
    loop {
        let deadline = used.at() + idle;
        match tokio::time::timeout_at(deadline, socket.readable()).await {
            Ok(Ok(())) => match answers.pass(&socket, pair) {
                Ok(()) => used.touch(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // E.g. nobody listens there. The next datagram starts again.
                Err(_) => return,
            },
            Ok(Err(_)) => return,
            // The box may have sent something meanwhile.
            Err(_) if used.at() + idle > deadline => {}
            Err(_) => return,
        }
    }
}

impl Answers {
    /// Passes one answer, if there is one.
    fn pass(&self, socket: &UdpSocket, pair: Pair) -> io::Result<()> {
        let mut packet = self.packet.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = socket.try_recv(&mut packet[HEADERS_BYTES..])?;
        let packet = &mut packet[..HEADERS_BYTES + bytes];
        write_headers(packet, pair.wanted, pair.source);
        // A box that does not read loses its answers.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = sendto(&self.raw, packet, flags, &SocketAddrV4::new(*pair.source.ip(), 0));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somewhere to send to, which never answers, and what would answer.
    fn ends() -> (std::net::UdpSocket, Arc<OwnedFd>) {
        let bind = || std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback");
        (bind(), Arc::new(bind().into()))
    }

    fn pair(port: u16, wanted: &str) -> Pair {
        Pair { source: SocketAddrV4::new(gate::BOX, port), wanted: wanted.parse().expect("an address") }
    }

    #[tokio::test(start_paused = true)]
    async fn an_association_ends_when_nothing_has_passed_for_a_while() {
        let ((silent, raw), budget) = (ends(), Budget::new());
        let mut associations = Associations::new(raw, &budget);
        let target = silent.local_addr().expect("bound");
        for (wanted, idle) in [("1.1.1.1:443", IDLE_TIMEOUT), ("198.18.0.3:53", DNS_IDLE_TIMEOUT)] {
            let began = Instant::now();
            let pair = pair(4000, wanted);
            associations.open_to(pair, target).await.expect("loopback");
            // Half of its time later it is used again.
            tokio::time::timeout(idle / 2, associations.tasks.join_next()).await.expect_err("it lives");
            associations.table[&pair].used.touch();
            associations.tasks.join_next().await.expect("one").expect("no panic");
            assert_eq!(began.elapsed().as_secs(), (idle + idle / 2).as_secs(), "{wanted}");
        }
    }

    #[tokio::test]
    async fn the_one_that_is_idle_for_longest_makes_room() {
        let ((silent, raw), budget) = (ends(), Budget::new());
        let mut associations = Associations::new(raw, &budget);
        let target = silent.local_addr().expect("bound");
        let pair = |index: usize| pair(u16::try_from(1000 + index).expect("small"), "1.1.1.1:443");
        for index in 0..ASSOCIATIONS_MAX {
            associations.open_to(pair(index), target).await.expect("loopback");
        }
        associations.table[&pair(0)].used.touch();
        associations.open_to(pair(ASSOCIATIONS_MAX), target).await.expect("loopback");
        assert_eq!(associations.table.len(), ASSOCIATIONS_MAX);
        let there = |index| associations.table.contains_key(&pair(index));
        assert!(there(0) && !there(1) && there(2) && there(ASSOCIATIONS_MAX));
        let free = budget.descriptors.available_permits();
        let ended = associations.tasks.join_next().await.expect("one");
        assert!(ended.is_err_and(|error| error.is_cancelled()));
        assert_eq!(budget.descriptors.available_permits(), free + 1, "its descriptor is free again");
    }
}
