//! TCP of a box: each connection that the box makes is one of the runner's own to the same address.
//!
//! A flow that does not end well on both sides ends as a reset on both, so that no program takes half of something for
//! the whole. That holds for a runner that is killed too: the option is set before the first byte.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::Budget;
use super::gate::{self, ReachDenied};

/// BOUND: connections of one box.
pub(super) const FLOWS_MAX: usize = 1024;
/// Open files of a flow.
pub(super) const DESCRIPTORS: usize = 2;
/// A program has given up by then, and the kernel has sent the fifth SYN.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Of each direction. BOUND: 128 MiB for a box whose every flow is stuck.
const BUFFER_BYTES: usize = 64 << 10;
/// An idle flow lives for as long as both ends do: asked after a minute, given up after another.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_COUNT: u32 = 4;
/// After a failure to accept, which is mostly that of open files: they come back when flows end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a flow ended before its end.
#[derive(Debug, thiserror::Error)]
enum FlowError {
    #[error("failed to reach the destination")]
    Denied(#[from] ReachDenied),
    #[error("failed to connect to {0}")]
    Connect(SocketAddr, #[source] io::Error),
    #[error("failed to connect to {target} within {} s", CONNECT_TIMEOUT.as_secs())]
    Deadline { target: SocketAddr },
    #[error("failed to copy")]
    Copy(#[from] io::Error),
    #[error("failed to learn where an IPv4 connection goes")]
    Address,
}

/// Serves the connections that come by `listener`. Dropping it resets them all.
pub(super) async fn serve(listener: TcpListener, budget: &Budget) {
    let mut flows = JoinSet::new();
    let mut told = false;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((inner, source)) => {
                    // Whatever becomes of it but a good end is a reset.
                    let _ = inner.set_zero_linger();
                    let permit = budget.descriptors.clone().try_acquire_many_owned(DESCRIPTORS as u32).ok();
                    match permit.filter(|_| flows.len() < budget.flows_max) {
                        Some(permit) => {
                            told = false;
                            flows.spawn(run(inner, source, permit).in_current_span());
                        }
                        None if !told => {
                            told = true;
                            tracing::debug!(flows = flows.len(), "connections of a box are refused: it has too many");
                        }
                        None => {}
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection of a box could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = flows.join_next() => {}
        }
    }
}

async fn run(inner: TcpStream, source: SocketAddr, _permit: OwnedSemaphorePermit) {
    if let Err(error) = flow(inner, source).await {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::debug!(%error, source, "a connection of a box ended");
    }
}

async fn flow(mut inner: TcpStream, source: SocketAddr) -> Result<(), FlowError> {
    let (SocketAddr::V4(source), SocketAddr::V4(wanted)) = (source, inner.local_addr()?) else {
        return Err(FlowError::Address);
    };
    let mut outer = connect(source, wanted).await?;
    for socket in [&inner, &outer] {
        // Both ends decide themselves when to send; and both are asked whether they are still there.
        socket.set_nodelay(true)?;
        keep_alive(socket).map_err(io::Error::from)?;
    }
    tokio::io::copy_bidirectional_with_sizes(&mut inner, &mut outer, BUFFER_BYTES, BUFFER_BYTES).await?;
    for socket in [&inner, &outer] {
        // Both directions have ended; what the kernel still has to send it sends.
        sockopt::set_socket_linger(socket.as_fd(), None).map_err(io::Error::from)?;
    }
    Ok(())
}

async fn connect(source: SocketAddrV4, wanted: SocketAddrV4) -> Result<TcpStream, FlowError> {
    let target = gate::destination(source, wanted).await?;
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await;
    let outer = connected.map_err(|_| FlowError::Deadline { target })?;
    let outer = outer.map_err(|error| FlowError::Connect(target, error))?;
    outer.set_zero_linger()?;
    Ok(outer)
}

fn keep_alive(socket: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_COUNT)
}
