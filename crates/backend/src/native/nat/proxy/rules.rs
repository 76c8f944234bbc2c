//! What the box's own network namespace is told: its address, its route, and the rules of nftables.

use super::super::refused;
use super::gate::{BOX, DNS_PORT, RESOLVER};

/// The ports of the runner's sockets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) tcp: u16,
    pub(super) udp: u16,
}

/// For `ip -batch`. `replace`, since a box that is taken over has them already.
pub(super) fn interface() -> String {
    format!("link set lo up\naddress replace {BOX}/32 dev lo\nroute replace local default dev lo src {BOX}\n")
}

/// For `nft`. `add` and `flush` first: the rules of an earlier runner are replaced at once, not doubled.
///
/// What goes out is refused with an error that programs get at once. Answers to the box's own address pass. What comes
/// in again at loopback is handed to the runner's sockets; while nobody has them, nothing else inside may take it for
/// its own, though every address is local.
pub(super) fn text(ports: Ports) -> String {
    let refused = refused::as_elements();
    let Ports { tcp, udp } = ports;
    format!(
        "add table ip dispense\nflush table ip dispense\ntable ip dispense {{\n\
         chain output {{\ntype filter hook output priority -150; policy accept;\n\
         ip daddr {{ 127.0.0.0/8, {BOX} }} accept\n\
         ip saddr != {BOX} reject with icmp type admin-prohibited\n\
         ip daddr {RESOLVER} meta l4proto {{ tcp, udp }} th dport {DNS_PORT} accept\n\
         ip daddr {{ {refused} }} reject with icmp type admin-prohibited\n\
         meta l4proto != {{ tcp, udp }} reject with icmp type admin-prohibited\n}}\n\
         chain prerouting {{\ntype filter hook prerouting priority -150; policy accept;\n\
         ip daddr {{ 127.0.0.0/8, {BOX} }} accept\n\
         meta l4proto tcp tproxy to :{tcp} accept\n\
         meta l4proto udp tproxy to :{udp} accept\n\
         meta l4proto tcp reject with tcp reset\n\
         drop\n}}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_come_before_what_is_let_out_and_nothing_inside_gets_the_rest() {
        let text = text(Ports { tcp: 4001, udp: 4002 });
        let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("{needle} in {text}"));
        assert!(at("ip daddr 198.18.0.3 meta") < at("169.254.0.0/16"), "the resolver is in a refused range");
        assert!(at("tproxy to :4001") < at("tcp reset") && at("tproxy to :4002") < at("\ndrop"));
        assert!(text.starts_with("add table ip dispense\nflush table ip dispense\n"));
    }
}
