//! The sockets of a box's network `nat`, made inside its network namespace and passed out of it: a socket stays in the
//! namespace in which it was made, whoever holds it.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use dispense_spawner::{Network, send};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, bind, ipproto, listen, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys::{self, Cloned};

/// Connections that wait to be accepted; programs of the box wait longer beyond it.
const BACKLOG: i32 = 256;

/// Starts a process that enters the box's namespaces, makes the sockets there and passes them; how it went is told on
/// the status pipe as a box's start is.
pub(crate) fn start(fds: Vec<OwnedFd>) -> Result<(i32, OwnedFd), String> {
    let Ok([user, net, status, reply]) = <[OwnedFd; 4]>::try_from(fds) else {
        return Err("make a network: it takes four descriptors".to_owned());
    };
    match sys::clone(0, None).map_err(|error| format!("clone: {error}"))? {
        Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Cloned::Child => {
            if let Err((step, error)) = make(&user, &net, &reply) {
                let text = format!("{step}\0{}\0{error}", error.raw_os_error().unwrap_or(0));
                let _ = fs::File::from(status).write_all(text.as_bytes());
            }
            sys::exit(0)
        }
    }
}

fn make(user: &OwnedFd, net: &OwnedFd, reply: &OwnedFd) -> Result<(), (&'static str, io::Error)> {
    // The user namespace first: only its own root may enter the network namespace that it owns.
    for (fd, kind) in [(user, LinkNameSpaceType::User), (net, LinkNameSpaceType::Network)] {
        move_into_link_name_space(fd.as_fd(), Some(kind))
            .map_err(|error| ("enter the namespaces of a box", error.into()))?;
    }
    let made = sockets().map_err(|error| ("make the sockets of a box's network", error))?;
    let fds = [made.tcp.as_fd(), made.udp.as_fd(), made.raw.as_fd()];
    send(reply, &(), &fds).map_err(|error| ("pass the sockets of a box's network", io::Error::other(error)))
}

fn sockets() -> io::Result<Network> {
    let make = |kind, protocol: Option<Protocol>| {
        socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, protocol)
    };
    let network = Network {
        tcp: make(SocketType::STREAM, None)?,
        udp: make(SocketType::DGRAM, None)?,
        raw: make(SocketType::RAW, Some(ipproto::RAW))?,
    };
    sys::switch_on(&network.tcp, libc::IP_TRANSPARENT)?;
    sys::switch_on(&network.udp, libc::IP_TRANSPARENT)?;
    sys::switch_on(&network.udp, libc::IP_RECVORIGDSTADDR)?;
    // Ports that no program of the box has; the backend reads which they are.
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    bind(&network.tcp, &any)?;
    bind(&network.udp, &any)?;
    listen(&network.tcp, BACKLOG)?;
    Ok(network)
}
