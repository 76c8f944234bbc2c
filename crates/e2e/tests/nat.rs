//! Network `nat`, in network namespaces of our own: a host, and an "internet" behind it that has every address
//! that matters. What must not be reached listens there, so a refusal is a refusal and not an absence.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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

/// Ends what a failed test leaves running.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first nameserver of this machine that is not on it.
fn nameserver() -> Option<String> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut servers = text.lines().filter_map(|line| line.strip_prefix("nameserver").map(str::trim));
    servers.find(|server| server.contains('.') && !server.starts_with("127.")).map(str::to_owned)
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
    let dispense = |args: &[&str]| {
        let output = net.command(&net.host, &host.command(args)).stdin(Stdio::null()).output().expect("nsenter");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let args = ["up", "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"];
    let up = net.command(&net.host, &host.command(args)).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut up = Running(up.expect("nsenter"));
    wait::until(
        "it serves",
        Duration::from_secs(30),
        || dispense(&["config", "show", "--output", "json"]).1,
        |text| text.contains("runnerUrl"),
    );
    for name in ["box", "neighbour"] {
        let (code, _, err) = dispense(&["create", "--name", name, "--network", "nat"]);
        assert_eq!(code, Some(0), "{err}");
    }
    let python = |script: &str| dispense(&["exec", "box", "--", "python3", "-c", script]);
    let connect = |address: &str, port: u16| {
        python(&format!(
            "import socket; s = socket.create_connection(('{address}', {port}), 2); print(s.recv(100).decode())"
        ))
    };
    let (code, out, err) = connect(PUBLIC, PORT);
    assert_eq!((code, out.trim()), (Some(0), HOST_ADDRESS), "masqueraded: {err}");
    for address in REFUSED {
        assert_ne!(connect(address, PORT).0, Some(0), "{address} must be refused");
    }
    // The host itself: its public address, the gateway that the box sees, and its loopback.
    let gateway = "import socket, struct; r = [l.split() for l in open('/proc/net/route')]; print([socket.inet_ntoa(struct.pack('<I', int(l[2], 16))) for l in r[1:] if l[1] == '00000000'][0])";
    let gateway = python(gateway).1.trim().to_owned();
    for address in [HOST_ADDRESS, &gateway, "127.0.0.1"] {
        assert_ne!(connect(address, PORT).0, Some(0), "the host at {address} must be refused");
    }
    let own = |name: &str| {
        let script = "import fcntl, socket, struct; s = socket.socket(); print(socket.inet_ntoa(fcntl.ioctl(s.fileno(), 0x8915, struct.pack('256s', b'eth0'))[20:24]))";
        dispense(&["exec", name, "--", "python3", "-c", script]).1.trim().to_owned()
    };
    let neighbour = own("neighbour");
    assert_ne!(own("box"), neighbour);
    let listen = "import socket; s = socket.create_server(('0.0.0.0', 8088)); print('up', flush=True); s.accept()";
    let mut listening = net
        .command(&net.host, &host.command(["exec", "neighbour", "--", "python3", "-c", listen]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("nsenter");
    std::io::Read::read_exact(listening.stdout.as_mut().expect("piped"), &mut [0; 3]).expect("it listens");
    assert_ne!(connect(&neighbour, PORT).0, Some(0), "another sandbox must be refused");
    if let Some(server) = nameserver() {
        let ask = format!(
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.sendto(b'q', ('{server}', 53)); print(s.recv(9))"
        );
        assert_eq!(python(&ask).1, "b'q'\n", "the nameserver answers");
        assert_eq!(dispense(&["exec", "box", "--", "grep", "-c", &server, "/etc/resolv.conf"]).1, "1\n");
        if server.starts_with("10.") || server.starts_with("192.168.") {
            assert_ne!(connect(&server, PORT).0, Some(0), "and only on its own port");
        }
    }
    for name in ["box", "neighbour"] {
        let (code, _, err) = dispense(&["delete", name]);
        assert_eq!(code, Some(0), "{err}");
    }
    let _ = listening.wait();
    let left = |what: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", what]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        String::from_utf8_lossy(&net.command(&net.host, &command).output().expect("sh").stdout).into_owned()
    };
    wait::until(
        "no interface is left",
        Duration::from_secs(10),
        || left("ip -o link | grep -c ': dsp'"),
        |text| text == "0\n",
    );
    wait::until("no rule is left", Duration::from_secs(10), || left("nft list tables"), String::is_empty);
    host::terminate(up.0.id());
    assert!(up.0.wait().expect("ours").success());
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
