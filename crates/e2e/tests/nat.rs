//! Network `nat`, in network namespaces of our own: a host, and an "internet" behind it that has every address
//! that matters. What must not be reached listens there, so a refusal is a refusal and not an absence.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dispense_e2e::pair::Running;
use dispense_e2e::{Host, Mode, host, wait};

const HOST_ADDRESS: &str = "203.0.113.2";
const PUBLIC: &str = "198.51.100.7";
const REFUSED: [&str; 5] = ["192.168.77.7", "10.9.9.9", "172.16.5.5", "169.254.169.254", "100.100.1.1"];
const PORT: u16 = 8088;
/// Tells each caller the address it came from, by TCP; echoes by UDP on port 53.
const SERVER: &str = "
import socket, sys, threading
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 53))
    while True:
        data, peer = s.recvfrom(512); s.sendto(data, peer)
threading.Thread(target=udp, daemon=True).start()
s = socket.create_server(('0.0.0.0', 8088))
print('up', flush=True)
while True:
    c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()
";

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split_whitespace()).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {args}");
}

/// The two namespaces and what listens in them.
struct Net {
    host: String,
    internet: String,
    servers: Vec<Child>,
}

impl Net {
    fn new() -> Self {
        let id = std::process::id();
        let net = Self { host: format!("dsph{id}"), internet: format!("dspi{id}"), servers: Vec::new() };
        let (host, internet) = (&net.host, &net.internet);
        ip(&format!("netns add {host}"));
        ip(&format!("netns add {internet}"));
        ip(&format!("link add up0 netns {host} type veth peer name down0 netns {internet}"));
        for command in [
            format!("-n {host} link set lo up"),
            format!("-n {host} addr add {HOST_ADDRESS}/24 dev up0"),
            format!("-n {host} link set up0 up"),
            format!("-n {host} route add default via 203.0.113.1"),
            format!("-n {internet} link set lo up"),
            format!("-n {internet} addr add 203.0.113.1/24 dev down0"),
            format!("-n {internet} link set down0 up"),
        ] {
            ip(&command);
        }
        let mut addresses: Vec<String> = REFUSED.iter().map(|address| (*address).to_owned()).collect();
        addresses.push(PUBLIC.to_owned());
        addresses.extend(nameserver());
        for address in addresses {
            ip(&format!("-n {internet} addr add {address}/32 dev lo"));
        }
        net
    }

    fn command(&self, namespace: &str, inner: &Command) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).arg(inner.get_program()).args(inner.get_args());
        command.env_clear().envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        if let Some(folder) = inner.get_current_dir() {
            command.current_dir(folder);
        }
        command
    }

    fn serve(&mut self, namespace: &str) {
        let mut python = Command::new("python3");
        // Bound to it, so that it answers from it.
        let dns = if namespace == self.internet { nameserver() } else { None };
        python.args(["-c", SERVER, dns.as_deref().unwrap_or("0.0.0.0")]);
        let mut server = self.command(namespace, &python);
        let mut child =
            server.env("PATH", "/usr/bin:/bin").stdout(Stdio::piped()).spawn().expect("python3 is installed");
        let mut line = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut line).expect("it comes up");
        self.servers.push(child);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        for namespace in [&self.host, &self.internet] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// The first nameserver of this machine that is not on it.
fn nameserver() -> Option<String> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut servers = text.lines().filter_map(|line| line.strip_prefix("nameserver").map(str::trim));
    servers.find(|server| server.contains('.') && !server.starts_with("127.")).map(str::to_owned)
}

/// The product on the host's side of the net.
struct Product<'a> {
    net: &'a Net,
    host: &'a Host,
}

impl Product<'_> {
    /// Exit code, stdout and stderr of `dispense`.
    fn dispense(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = self.net.command(&self.net.host, &self.host.command(args));
        let output = command.stdin(Stdio::null()).output().expect("nsenter");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) {
        let (code, _, err) = self.dispense(args);
        assert_eq!(code, Some(0), "{args:?}: {err}");
    }

    fn up(&self) -> Running {
        let args = ["up", "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"];
        let mut command = self.net.command(&self.net.host, &self.host.command(args));
        let up = Running::start(&mut command);
        let show = ["config", "show", "--output", "json"];
        wait::until("it serves", Duration::from_secs(30), || self.dispense(&show).1, |text| text.contains("runnerUrl"));
        up
    }

    /// Runs Python in the sandbox `box`.
    fn python(&self, script: &str) -> (Option<i32>, String, String) {
        self.dispense(&["exec", "box", "--", "python3", "-c", script])
    }

    fn connect(&self, address: &str) -> (Option<i32>, String, String) {
        let script = "import socket; s = socket.create_connection";
        self.python(&format!("{script}(('{address}', {PORT}), 2); print(s.recv(100).decode())"))
    }

    #[track_caller]
    fn refused(&self, address: &str) {
        assert_ne!(self.connect(address).0, Some(0), "{address} must be refused");
    }

    fn address_of(&self, sandbox: &str) -> String {
        let script = "import fcntl, socket, struct; s = socket.socket(); print(socket.inet_ntoa(fcntl.ioctl(s.fileno(), 0x8915, struct.pack('256s', b'eth0'))[20:24]))";
        self.dispense(&["exec", sandbox, "--", "python3", "-c", script]).1.trim().to_owned()
    }

    /// Where the sandbox sends what is not its own.
    fn gateway(&self) -> String {
        let script = "import socket, struct; r = [l.split() for l in open('/proc/net/route')]; print([socket.inet_ntoa(struct.pack('<I', int(l[2], 16))) for l in r[1:] if l[1] == '00000000'][0])";
        self.python(script).1.trim().to_owned()
    }

    /// The nameserver answers on its port, and on no other when its address is private.
    fn nameserver_answers(&self) {
        let Some(server) = nameserver() else { return };
        let script = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3)";
        let ask = format!("{script}; s.sendto(b'q', ('{server}', 53)); print(s.recv(9))");
        assert_eq!(self.python(&ask).1, "b'q'\n", "the nameserver answers");
        assert_eq!(self.dispense(&["exec", "box", "--", "grep", "-c", &server, "/etc/resolv.conf"]).1, "1\n");
        if server.starts_with("10.") || server.starts_with("192.168.") {
            self.refused(&server);
        }
    }

    /// A sandbox that listens is not reached by another.
    fn neighbour_is_refused(&self) {
        let neighbour = self.address_of("neighbour");
        assert_ne!(self.address_of("box"), neighbour);
        let listen = "import socket; s = socket.create_server(('0.0.0.0', 8088)); print('up', flush=True); s.accept()";
        let exec = self.host.command(["exec", "neighbour", "--", "python3", "-c", listen]);
        let mut command = self.net.command(&self.net.host, &exec);
        let listening = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut listening = Running::adopt(listening.expect("nsenter"));
        let mut line = [0; 3];
        std::io::Read::read_exact(listening.stdout(), &mut line).expect("it listens");
        self.refused(&neighbour);
    }

    /// What a shell on the host says.
    fn sh(&self, script: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let output = self.net.command(&self.net.host, &command).output().expect("sh");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn nat_reaches_public_addresses_and_nothing_else() {
    if !Mode::available().contains(&Mode::Root) {
        return host::skipped("network `nat`, which needs root");
    }
    let mut net = Net::new();
    let (host_namespace, internet) = (net.host.clone(), net.internet.clone());
    net.serve(&internet);
    net.serve(&host_namespace);
    let host = Host::new(Mode::Root);
    let product = Product { net: &net, host: &host };
    let up = product.up();
    for name in ["box", "neighbour"] {
        product.ok(&["create", "--name", name, "--network", "nat"]);
    }
    let (code, out, err) = product.connect(PUBLIC);
    assert_eq!((code, out.trim()), (Some(0), HOST_ADDRESS), "masqueraded: {err}");
    for address in REFUSED {
        product.refused(address);
    }
    // The host itself: its public address, the gateway that the box sees, and its loopback.
    for address in [HOST_ADDRESS, &product.gateway(), "127.0.0.1"] {
        product.refused(address);
    }
    product.neighbour_is_refused();
    product.nameserver_answers();
    for name in ["box", "neighbour"] {
        product.ok(&["delete", name]);
    }
    let links = || product.sh("ip -o link | grep -c ': dsp'");
    wait::until("no interface is left", Duration::from_secs(10), links, |text| text == "0\n");
    wait::until("no rule is left", Duration::from_secs(10), || product.sh("nft list tables"), String::is_empty);
    assert!(up.stop().success());
    drop(net);
    host.finish();
}

#[test]
fn nat_is_refused_by_name_where_it_cannot_be() {
    if !Mode::available().contains(&Mode::User) {
        return host::skipped("network `nat` as an ordinary user");
    }
    let host = Host::new(Mode::User);
    let output = host.dispense(&["run", "--network", "nat", "--", "true"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{message}");
    assert!(message.contains("nat"), "{message}");
    host.finish();
}
