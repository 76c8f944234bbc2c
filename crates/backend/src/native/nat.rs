//! Network `nat`: a routed veth pair a box, masqueraded by nftables; root only.
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
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::BackendError;

/// Reserved for tests between networks (RFC 2544) and so in no route of anybody: 65,536 pairs.
const SUBNET: [u8; 2] = [198, 18];
const SUBNET_CIDR: &str = "198.18.0.0/15";
/// No box may reach these, whatever the host's routes say.
const REFUSED_CIDRS: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, \
                             192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";
/// A command of a few netlink messages.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Pairs that are tried when another runner of this machine has taken the first.
const PAIR_ATTEMPTS: u32 = 64;
/// Pairs in the subnet.
const PAIRS: u32 = 65_536;
/// Where the host says whom it asks; systemd's stub is of no use to others, its upstream servers are.
const RESOLV_FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What makes networks.
pub(super) struct Nat {
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

impl Nat {
    /// Looks whether this user on this machine can make networks; `Err` says why not.
    pub(super) fn probe(instance: &str, as_root: bool) -> Result<Self, String> {
        if !as_root {
            return Err("network `nat` needs root: run the runner as root, or use network `none`".to_owned());
        }
        for (program, package) in [("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")] {
            let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
                .iter()
                .any(|folder| std::path::Path::new(folder).join(program).exists());
            if !found {
                return Err(format!("network `nat` needs the program `{program}`: install the package {package}"));
            }
        }
        let short = &instance[..4.min(instance.len())];
        Ok(Self { prefix: format!("dsp{short}"), table: format!("dispense_{instance}"), state: Mutex::default() })
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
        run("nft", &["-f", "-"], &rules(&self.table, &self.prefix, &nameservers())).await?;
        // Forwarding is off by default; with it the host routes between its own interfaces as it is told to.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(|error| format!("switch forwarding on: {error}"))?;
        self.state().table = true;
        Ok(())
    }
}

/// The two addresses of a pair: the host's and the box's.
fn pair(index: u32) -> (Ipv4Addr, Ipv4Addr) {
    let base = u32::from_be_bytes([SUBNET[0], SUBNET[1], 0, 0]) + index * 2;
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
         iifname {boxes} ip saddr != {SUBNET_CIDR} drop\n\
         iifname {boxes} oifname \"dsp*\" drop\n\
         {dns}\
         iifname {boxes} ip daddr {{ {REFUSED_CIDRS} }} drop\n\
         oifname {boxes} ct state established,related accept\n\
         oifname {boxes} drop\n}}\n\
         chain postrouting {{\ntype nat hook postrouting priority 100; policy accept;\n\
         iifname {boxes} ip saddr {SUBNET_CIDR} oifname != \"dsp*\" masquerade\n}}\n}}\n"
    )
}

/// The host's nameservers that a box can ask: IPv4 and not on the host itself.
fn nameservers() -> Vec<Ipv4Addr> {
    let texts = RESOLV_FILES.iter().map(|file| fs::read_to_string(file).unwrap_or_default());
    texts.map(|text| parse_nameservers(&text)).find(|servers| !servers.is_empty()).unwrap_or_default()
}

fn parse_nameservers(text: &str) -> Vec<Ipv4Addr> {
    let addresses = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    let usable = addresses.filter_map(|address| match address {
        IpAddr::V4(v4) if !v4.is_loopback() && !v4.is_unspecified() => Some(v4),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    });
    usable.collect()
}

/// `/etc/resolv.conf` of a box with this network.
pub(super) fn resolv_conf() -> String {
    let servers = nameservers();
    if servers.is_empty() {
        return "# The host's nameservers are its own or speak IPv6, so that no sandbox can ask them.\n".to_owned();
    }
    servers.iter().map(|server| format!("nameserver {server}\n")).collect()
}

/// Runs a program with `input`; its last line on stderr when it fails.
async fn run(program: &str, args: &[&str], input: &str) -> Result<(), String> {
    let command = async {
        let mut child = Command::new(program)
            .args(args)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that has failed already reads no more.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(COMMAND_TIMEOUT, command).await {
        Err(_) => Err(format!("`{program}` did not end within {} s", COMMAND_TIMEOUT.as_secs())),
        Ok(Err(error)) => Err(format!("`{program}` was not run: {error}")),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let line = text.lines().find(|line| !line.is_empty()).unwrap_or("no reason").to_owned();
            Err(format!("`{program}` said: {line}"))
        }
    }
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

    #[test]
    fn only_nameservers_that_a_box_can_ask_are_told() {
        let text =
            "# comment\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\n nameserver 10.0.0.1 \nsearch x\n";
        assert_eq!(parse_nameservers(text), [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 0, 0, 1)]);
    }
}
