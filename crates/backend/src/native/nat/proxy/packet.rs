//! Headers of an IPv4 datagram that answers for somebody else (RFC 791, RFC 768).

use std::net::SocketAddrV4;

/// Bytes of both headers.
pub(super) const HEADERS_BYTES: usize = IP_BYTES + UDP_BYTES;
/// What one datagram carries at most. With its headers it is below the 65,536 bytes that pass over loopback at once,
/// so none is fragmented.
pub(super) const PAYLOAD_MAX_BYTES: usize = 65_535 - HEADERS_BYTES;
const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const UDP: u8 = 17;
const TTL: u8 = 64;

/// Writes the headers in front of the payload that `packet` has behind them. The kernel fills in length, id and
/// checksum of the IP header.
pub(super) fn write_headers(packet: &mut [u8], source: SocketAddrV4, destination: SocketAddrV4) {
    let udp_len = u16::try_from(packet.len() - IP_BYTES).unwrap_or(u16::MAX);
    let (ip, udp) = packet.split_at_mut(IP_BYTES);
    ip.fill(0);
    // Version 4, five words of header.
    ip[0] = 0x45;
    ip[8] = TTL;
    ip[9] = UDP;
    ip[12..16].copy_from_slice(&source.ip().octets());
    ip[16..20].copy_from_slice(&destination.ip().octets());
    udp[0..2].copy_from_slice(&source.port().to_be_bytes());
    udp[2..4].copy_from_slice(&destination.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    udp[6..8].fill(0);
    let pseudo = sum(&ip[12..20]) + u64::from(UDP) + u64::from(udp_len);
    // A checksum of zero means that there is none, so that one that comes out as zero is sent as its other zero.
    let checksum = match !fold(pseudo + sum(udp)) {
        0 => u16::MAX,
        checksum => checksum,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>() + last
}

fn fold(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // Odd and even, empty, and one whose sum carries.
        for payload in [&b"abc"[..], b"", b"\xff\xff\xff\xff", &[0xab; 1473]] {
            let mut packet = vec![0; HEADERS_BYTES];
            packet.extend_from_slice(payload);
            write_headers(&mut packet, "8.8.8.8:53".parse().expect("valid"), "198.18.0.2:4000".parse().expect("valid"));
            // The sum over pseudo header, header and payload is all ones.
            let udp = &packet[IP_BYTES..];
            let total = sum(&packet[12..20]) + u64::from(UDP) + udp.len() as u64 + sum(udp);
            assert_eq!(fold(total), u16::MAX, "{payload:?}");
            assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), UDP_BYTES + payload.len());
        }
    }
}
