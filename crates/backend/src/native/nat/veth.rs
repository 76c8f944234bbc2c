//! Network `nat` as root: a routed veth pair a box, masqueraded by nftables.
//!
//! ```text
//! box: eth0 198.18.x.y ─── veth ─── host: dsp… (no bridge, which would end at 1,023 boxes) ─── uplink
//! ```
//!
//! Refused: the host itself, private and metadata ranges, other boxes, spoofed sources, IPv6. Allowed: public
//! addresses, and port 53 of the host's nameservers wherever they are. The rules match interfaces by prefix in a
//! table of our own, so a box costs no rule; the host's other tables are untouched.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::sync::Mutex;

use super::command::run;
use super::refused::{self, SUBNET};
use super::resolv;
use crate::BackendError;

/// Pairs that are tried when another runner of this machine has taken the first.
const PAIR_ATTEMPTS: u32 = 64;
/// Pairs in the subnet.
const PAIRS: u32 = 65_536;

/// What makes networks.
pub(in crate::native) struct Veth {
    /// First part of every interface's name.
    prefix: String,
    table: String,
    /// Pairs in use, and whether the table stands.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    attached: BTreeSet<u32>,
    table: bool,
}

impl Veth {
    pub(super) fn new(instance: &str) -> Self {
        let short = &instance[..4.min(instance.len())];
        Self { prefix: format!("dsp{short}"), table: format!("dispense_{instance}"), state: Mutex::default() }
    }

    /// Gives the box whose first process is `pid` an interface; `slot` is its own among this runner's.
    pub(super) async fn attach(&self, slot: u32, pid: i32) -> Result<(), BackendError> {
        let failed = |error: String| BackendError::failed("make the network of a box", error);
        self.make_table().await.map_err(failed)?;
        let name = self.name(slot);
        let mut last = String::new();
        for attempt in 0..PAIR_ATTEMPTS {
            let (gateway, address) = pair((slot + attempt * 1021) % PAIRS);
            let outside = format!(
                "link add {name} type veth peer name eth0 netns {pid}\n\
                 addr add {gateway} dev {name} peer {address}/32\nlink set {name} up\n"
            );
            last = match run("ip", &["-batch", "-"], &outside).await {
                Ok(()) => {
                    harden(&name).map_err(|error| failed(error.to_string()))?;
                    let inside = format!(
                        "addr add {address} dev eth0 peer {gateway}/32\nlink set eth0 up\n\
                         route add default via {gateway} dev eth0\n"
                    );
                    let namespace = format!("--net=/proc/{pid}/ns/net");
                    run("nsenter", &[&namespace, "ip", "-batch", "-"], &inside).await.map_err(failed)?;
                    self.state().attached.insert(slot);
                    return Ok(());
                }
                Err(error) => error,
            };
            // Half of it may stand: e.g. the address is that of another runner's box.
            let _ = run("ip", &["link", "del", &name], "").await;
        }
        Err(failed(last))
    }

    /// A box that an earlier process of this runner attached.
    pub(super) fn adopt(&self, slot: u32) {
        let mut state = self.state();
        state.attached.insert(slot);
        state.table = true;
    }

    /// Takes a box's interface away; the last one takes the table with it. It may be gone with its namespace.
    pub(super) async fn detach(&self, slot: u32) {
        let last = {
            let mut state = self.state();
            if !state.attached.remove(&slot) {
                return;
            }
            let last = state.attached.is_empty();
            state.table &= !last;
            last
        };
        let _ = run("ip", &["link", "del", &self.name(slot)], "").await;
        if last && let Err(error) = run("nft", &["delete", "table", "inet", &self.table], "").await {
            tracing::warn!(table = %self.table, %error, "rules of network `nat` are left");
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn name(&self, slot: u32) -> String {
        format!("{}{slot:x}", self.prefix)
    }

    async fn make_table(&self) -> Result<(), String> {
        if self.state().table {
            return Ok(());
        }
        run("nft", &["-f", "-"], &rules(&self.table, &self.prefix, &resolv::reachable())).await?;
        // Forwarding is off by default; with it the host routes between its own interfaces as it is told to.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(|error| format!("switch forwarding on: {error}"))?;
        self.state().table = true;
        Ok(())
    }
}

/// The two addresses of a pair: the host's and the box's.
fn pair(index: u32) -> (Ipv4Addr, Ipv4Addr) {
    let base = SUBNET.first().to_bits() + index * 2;
    (Ipv4Addr::from(base), Ipv4Addr::from(base + 1))
}

/// A packet from a box with an address that is not the box's is dropped, and IPv6 is off.
fn harden(name: &str) -> std::io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1")?;
    // A kernel without IPv6 has nothing to switch off.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    Ok(())
}

fn rules(table: &str, prefix: &str, nameservers: &[Ipv4Addr]) -> String {
    let boxes = format!("\"{prefix}*\"");
    let refused = refused::as_elements();
    let servers: Vec<String> = nameservers.iter().map(ToString::to_string).collect();
    let dns = match servers.as_slice() {
        [] => String::new(),
        servers => {
            let list = servers.join(", ");
            format!(
                "iifname {boxes} ip daddr {{ {list} }} udp dport 53 accept\n\
                 iifname {boxes} ip daddr {{ {list} }} tcp dport 53 accept\n"
            )
        }
    };
    // `add` and `flush` first: rules that a crash left are replaced, not doubled.
    format!(
        "add table inet {table}\nflush table inet {table}\ntable inet {table} {{\n\
         chain input {{\ntype filter hook input priority -10; policy accept;\niifname {boxes} drop\n}}\n\
         chain forward {{\ntype filter hook forward priority -10; policy accept;\n\
         iifname {boxes} meta nfproto ipv6 drop\n\
         iifname {boxes} ip saddr != {SUBNET} drop\n\
         iifname {boxes} oifname \"dsp*\" drop\n\
         {dns}\
         iifname {boxes} ip daddr {{ {refused} }} drop\n\
         oifname {boxes} ct state established,related accept\n\
         oifname {boxes} drop\n}}\n\
         chain postrouting {{\ntype nat hook postrouting priority 100; policy accept;\n\
         iifname {boxes} ip saddr {SUBNET} oifname != \"dsp*\" masquerade\n}}\n}}\n"
    )
}

/// `/etc/resolv.conf` of a box.
pub(super) fn resolv_conf() -> String {
    let servers = resolv::reachable();
    if servers.is_empty() {
        return "# The host's nameservers are its own or speak IPv6, so that no sandbox can ask them.\n".to_owned();
    }
    servers.iter().map(|server| format!("nameserver {server}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_do_not_overlap_and_stay_in_the_subnet() {
        let mut seen = BTreeSet::new();
        for index in [0, 1, 127, 128, 4095, PAIRS - 1] {
            let (gateway, address) = pair(index);
            assert!(seen.insert(gateway) && seen.insert(address));
            assert!([18, 19].contains(&gateway.octets()[1]) && gateway.octets()[0] == 198);
        }
    }
}
