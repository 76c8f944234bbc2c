//! Whom the host asks for names.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

/// Where the host says it; systemd's stub is of no use to others, its upstream servers are.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The host's nameservers that others can ask by themselves: IPv4 and not on the host.
pub(super) fn reachable() -> Vec<Ipv4Addr> {
    let texts = FILES.iter().map(|file| fs::read_to_string(file).unwrap_or_default());
    texts.map(|text| reachable_in(&text)).find(|servers| !servers.is_empty()).unwrap_or_default()
}

/// The nameserver that the host asks first, wherever it is.
pub(super) async fn first() -> Option<IpAddr> {
    usable_in(&tokio::fs::read_to_string(FILES[0]).await.unwrap_or_default()).next()
}

fn reachable_in(text: &str) -> Vec<Ipv4Addr> {
    let reachable = usable_in(text).filter_map(|address| match address {
        IpAddr::V4(v4) if !v4.is_loopback() => Some(v4),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    });
    reachable.collect()
}

fn usable_in(text: &str) -> impl Iterator<Item = IpAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        address.parse::<IpAddr>().ok()
    });
    addresses.filter(|address| !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# comment\nnameserver 0.0.0.0\nnameserver 127.0.0.53\nnameserver ::1\nnameserver\t192.0.2.1\n \
                        nameserver 10.0.0.1 \nnameserver fe80::1%eth0\nsearch x\n";

    #[test]
    fn only_nameservers_that_a_box_can_ask_are_told() {
        assert_eq!(reachable_in(TEXT), [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 0, 0, 1)]);
    }

    #[test]
    fn the_host_asks_its_own_stub_for_a_box() {
        assert_eq!(usable_in(TEXT).next(), Some(IpAddr::from([127, 0, 0, 53])));
        assert_eq!(usable_in("# none\nnameserver\n").next(), None);
    }
}
