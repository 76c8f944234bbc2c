//! The addresses that no box may reach, whatever the host's routes say: written once, for the rules of nftables and
//! for the proxy's own check.

use std::fmt;
use std::net::Ipv4Addr;

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cidr {
    first: Ipv4Addr,
    /// Bits that all its addresses share.
    bits: u32,
}

/// Reserved for tests between networks (RFC 2544) and so in no route of anybody: boxes have their addresses there.
pub(super) const SUBNET: Cidr = cidr([198, 18, 0, 0], 15);

/// In ascending order, and apart from each other.
pub(super) const REFUSED: [Cidr; 10] = [
    cidr([0, 0, 0, 0], 8),
    // Private networks (RFC 1918), and that of carriers (RFC 6598).
    cidr([10, 0, 0, 0], 8),
    cidr([100, 64, 0, 0], 10),
    cidr([127, 0, 0, 0], 8),
    // Link-local: the metadata services of clouds.
    cidr([169, 254, 0, 0], 16),
    cidr([172, 16, 0, 0], 12),
    cidr([192, 0, 0, 0], 24),
    cidr([192, 168, 0, 0], 16),
    SUBNET,
    // Multicast, reserved, broadcast.
    cidr([224, 0, 0, 0], 3),
];

const fn cidr(octets: [u8; 4], bits: u32) -> Cidr {
    Cidr { first: Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]), bits }
}

impl Cidr {
    fn contains(self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.first.to_bits()) >> (32 - self.bits) == 0
    }

    /// Its first address.
    pub(super) const fn first(self) -> Ipv4Addr {
        self.first
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

/// Whether no box may reach `address`.
pub(super) fn is_refused(address: Ipv4Addr) -> bool {
    REFUSED.iter().any(|range| range.contains(address))
}

/// The ranges as elements of a set of nftables.
pub(super) fn as_elements() -> String {
    REFUSED.map(|range| range.to_string()).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_where_they_should() {
        for refused in [
            "0.0.0.0",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.53",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.255.255",
            "198.18.0.2",
            "198.19.255.255",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(is_refused(refused.parse().expect("an address")), "{refused}");
        }
        for allowed in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.0.1",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.167.1.1",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
        ] {
            assert!(!is_refused(allowed.parse().expect("an address")), "{allowed}");
        }
    }

    #[test]
    fn the_kernel_gets_the_same_ranges() {
        assert_eq!(
            as_elements(),
            "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, \
             192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3"
        );
    }
}
