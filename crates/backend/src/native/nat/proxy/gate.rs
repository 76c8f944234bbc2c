//! Where a box's connection or datagram may go. Everything asked here is the box's word, and hostile.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use super::super::{refused, resolv};

/// The box's own address, the same in every box: no two share a network.
pub(super) const BOX: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Stands for the host's nameserver, which may be on the host's own loopback.
pub(super) const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);
pub(super) const DNS_PORT: u16 = 53;

/// Why a destination is not reached.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReachDenied {
    /// An answer to it would come in again as if it were the box's own.
    #[error("{0} is not the box's address")]
    Spoofed(Ipv4Addr),
    #[error("{0} is in a range that no sandbox may reach")]
    Refused(Ipv4Addr),
    #[error("{0} is the host itself")]
    Host(Ipv4Addr),
    #[error("the host names no nameserver in /etc/resolv.conf")]
    NoNameserver,
}

/// Whom to connect to for a box that wants `wanted` from its `source`.
pub(super) async fn destination(source: SocketAddrV4, wanted: SocketAddrV4) -> Result<SocketAddr, ReachDenied> {
    if *source.ip() != BOX {
        return Err(ReachDenied::Spoofed(*source.ip()));
    }
    if is_dns(wanted) {
        let server = resolv::first().await.ok_or(ReachDenied::NoNameserver)?;
        return Ok((server, DNS_PORT).into());
    }
    if refused::is_refused(*wanted.ip()) {
        return Err(ReachDenied::Refused(*wanted.ip()));
    }
    if is_host(*wanted.ip()) {
        return Err(ReachDenied::Host(*wanted.ip()));
    }
    Ok(wanted.into())
}

/// Whether it is for the host's nameserver.
pub(super) fn is_dns(wanted: SocketAddrV4) -> bool {
    wanted == SocketAddrV4::new(RESOLVER, DNS_PORT)
}

/// Whether an address is one of the host's own: what it sends there comes from that very address. One that has no
/// route at all is nobody's, and the connection fails by itself.
fn is_host(address: Ipv4Addr) -> bool {
    let local = || -> io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // Sends nothing; the kernel looks the route up.
        socket.connect((address, DNS_PORT))?;
        Ok(socket.local_addr()?.ip())
    };
    local().is_ok_and(|local| local == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddrV4 {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn private_addresses_and_spoofed_sources_are_refused() {
        let source = SocketAddrV4::new(BOX, 40_000);
        for wanted in ["10.0.0.1:80", "127.0.0.1:22", "169.254.169.254:80", "198.18.0.2:1", "198.18.0.3:54"] {
            let wanted = address(wanted);
            assert_eq!(destination(source, wanted).await, Err(ReachDenied::Refused(*wanted.ip())));
        }
        let spoofed = destination(address("9.9.9.9:53"), address("8.8.8.8:53")).await;
        assert_eq!(spoofed, Err(ReachDenied::Spoofed(Ipv4Addr::new(9, 9, 9, 9))));
    }

    #[test]
    fn the_hosts_own_addresses_are_known_by_the_route_to_them() {
        assert!(is_host(Ipv4Addr::LOCALHOST));
        assert!(!is_host(Ipv4Addr::new(198, 51, 100, 1)));
    }
}
