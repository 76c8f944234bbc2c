//! Who listens, asked from the kernel by `sock_diag(7)`: it walks the listening sockets only, where
//! `/proc/net/tcp` walks the whole table of connections at every read.

use std::io;
use std::net::IpAddr;

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use super::Listener;

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP` of `linux/netlink.h`.
const REQUEST_DUMP: u16 = 0x301;
/// Types of answers that end a dump.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// One bit a state: `TCP_LISTEN` is 10.
const LISTENING: u32 = 1 << 10;
/// Of a message's header, of `inet_diag_req_v2` and of `inet_diag_msg`.
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = 56;
const MESSAGE_BYTES: usize = 72;
/// As large as the kernel makes a part of a dump.
const BUFFER_BYTES: usize = 32 << 10;

/// Everything that listens, IPv6 first.
pub(super) fn listeners() -> io::Result<Vec<Listener>> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(SOCK_DIAG))?;
    let mut found = Vec::new();
    for family in [AF_INET6, AF_INET] {
        sendto(&socket, &request(family), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            // The answer to a dump is there when the request returns, so this does not block.
            let (count, _) = recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
            if messages(&buffer[..count], &mut found)? {
                break;
            }
        }
    }
    Ok(found)
}

fn request(family: u8) -> [u8; HEADER_BYTES + REQUEST_BYTES] {
    let mut bytes = [0; HEADER_BYTES + REQUEST_BYTES];
    bytes[..4].copy_from_slice(&((HEADER_BYTES + REQUEST_BYTES) as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    bytes[16] = family;
    bytes[17] = TCP;
    bytes[20..24].copy_from_slice(&LISTENING.to_ne_bytes());
    bytes
}

/// Takes the messages of one datagram; `true` after the last of the dump.
fn messages(mut datagram: &[u8], found: &mut Vec<Listener>) -> io::Result<bool> {
    while let Some((header, _)) = datagram.split_first_chunk::<HEADER_BYTES>() {
        let [a, b, c, d, e, f, ..] = *header;
        let len = u32::from_ne_bytes([a, b, c, d]) as usize;
        let payload = datagram.get(HEADER_BYTES..len).ok_or(io::ErrorKind::InvalidData)?;
        match u16::from_ne_bytes([e, f]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(io::ErrorKind::Unsupported.into()),
            _ => found.extend(listener(payload)),
        }
        // Messages are aligned to four bytes.
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn listener(payload: &[u8]) -> Option<Listener> {
    let message: &[u8; MESSAGE_BYTES] = payload.first_chunk()?;
    let port = u16::from_be_bytes([message[4], message[5]]);
    let address = match message[0] {
        AF_INET => IpAddr::from(<[u8; 4]>::try_from(&message[8..12]).ok()?),
        AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(&message[8..24]).ok()?),
        _ => return None,
    };
    let inode = u32::from_ne_bytes(message[68..72].try_into().ok()?);
    Some(Listener { port, address, inode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_a_listener_of_ours() {
        let v4 = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = v4.local_addr().expect("bound").port();
        let found = listeners().expect("the kernel answers");
        let ours = found.iter().find(|listener| listener.port == port).expect("it listens");
        assert_eq!(ours.address.to_string(), "127.0.0.1");
        assert!(ours.inode > 0);
        drop(v4);
        assert!(!listeners().expect("the kernel answers").iter().any(|listener| listener.port == port));
    }

    #[test]
    fn a_cut_datagram_is_refused_and_never_panics() {
        let whole = request(AF_INET);
        for cut in 0..whole.len() {
            let _ = messages(&whole[..cut], &mut Vec::new());
        }
        assert!(messages(&[255; 64], &mut Vec::new()).is_err());
    }
}
