//! Network namespaces for tests of network `nat`: a host, and an "internet" behind it that has every address that
//! matters. What must not be reached listens there, so a refusal is a refusal and not an absence.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::pair::Running;
use crate::{Host, Mode, wait};

/// The host's own address.
pub const HOST_ADDRESS: &str = "203.0.113.2";
/// A public address.
pub const PUBLIC: &str = "198.51.100.7";
/// Addresses that no sandbox may reach, and that answer.
pub const REFUSED: [&str; 5] = ["192.168.77.7", "10.9.9.9", "172.16.5.5", "169.254.169.254", "100.100.1.1"];
/// Tells each caller the address it came from.
pub const PORT: u16 = 8088;
/// Reads to the end, tells the digest of what it read and sends as much of its own.
pub const BULK_PORT: u16 = 8089;
/// Sends datagrams back.
pub const ECHO_PORT: u16 = 5300;
/// What [`BULK_PORT`] sends.
pub const BULK_BYTES: usize = 50 << 20;

/// Arguments: addresses and ports that echo datagrams.
const SERVER: &str = "
import hashlib, random, socket, sys, threading
def udp(s):
    while True:
        data, peer = s.recvfrom(65536); s.sendto(data, peer)
def bulk(c):
    digest = hashlib.sha256()
    while data := c.recv(1 << 20): digest.update(data)
    c.sendall(digest.digest()); c.sendall(random.Random(2).randbytes(50 << 20)); c.close()
def tell(c):
    c.sendall(c.getpeername()[0].encode()); c.close()
def tcp(s, serve):
    while True:
        c, _ = s.accept(); threading.Thread(target=serve, args=(c,), daemon=True).start()
def start(f, *args): threading.Thread(target=f, args=args, daemon=True).start()
for place in sys.argv[1:]:
    address, port = place.split(':')
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((address, int(port))); start(udp, s)
start(tcp, socket.create_server(('0.0.0.0', 8089)), bulk)
s = socket.create_server(('0.0.0.0', 8088))
print('up', flush=True)
tcp(s, tell)
";

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split_whitespace()).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {args}");
}

/// The two namespaces and what listens in them.
pub struct Net {
    host: String,
    internet: String,
    /// What the host has for its `/etc/resolv.conf`; the machine's own otherwise.
    resolv_conf: Option<PathBuf>,
    servers: Vec<Running>,
}

impl Net {
    /// Makes both; needs root.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (host, internet) = (format!("dsph{id}"), format!("dspi{id}"));
        let net = Self { host, internet, resolv_conf: None, servers: Vec::new() };
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

    /// The same, and what listens on the internet and on the host.
    pub fn with_servers() -> Self {
        let mut net = Self::new();
        // Bound to an address, so that it answers from it.
        let dns = nameserver().map(|address| format!("{address}:53"));
        let echo = format!("{PUBLIC}:{ECHO_PORT}");
        net.serve(&net.internet.clone(), &[&[echo.as_str()], dns.as_deref().as_slice()].concat());
        net.serve(&net.host.clone(), &[&format!("{HOST_ADDRESS}:{ECHO_PORT}")]);
        net
    }

    /// Gives the host a `/etc/resolv.conf` of its own, for what is started from now on.
    pub fn set_resolv_conf(&mut self, path: PathBuf) {
        self.resolv_conf = Some(path);
    }

    /// Runs Python on the host, beside the product, and waits for its first line.
    pub fn serve_on_host(&mut self, script: &str) {
        let server = self.python(&self.host, script, &[]);
        self.servers.push(server);
    }

    fn serve(&mut self, namespace: &str, args: &[&str]) {
        let server = self.python(namespace, SERVER, args);
        self.servers.push(server);
    }

    fn python(&self, namespace: &str, script: &str, args: &[&str]) -> Running {
        let mut python = Command::new("python3");
        python.args(["-c", script]).args(args);
        let mut command = self.command(namespace, &python);
        let child = command.env("PATH", "/usr/bin:/bin").stdout(Stdio::piped()).spawn().expect("python3 is installed");
        started(child)
    }

    /// `inner` in a namespace.
    fn command(&self, namespace: &str, inner: &Command) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}"));
        if let Some(path) = &self.resolv_conf {
            let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
            command.args(["unshare", "--mount", "--propagation", "private", "sh", "-c", script]).arg(path);
        }
        command.arg(inner.get_program()).args(inner.get_args());
        command.env_clear().envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        if let Some(folder) = inner.get_current_dir() {
            command.current_dir(folder);
        }
        command
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.servers.clear();
        for namespace in [&self.host, &self.internet] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// Waits for the first line of a process.
fn started(child: Child) -> Running {
    let mut running = Running::adopt(child);
    let mut line = [0; 3];
    std::io::Read::read_exact(running.stdout(), &mut line).expect("it comes up");
    running
}

/// The first nameserver of this machine that is not on it.
pub fn nameserver() -> Option<String> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut servers = text.lines().filter_map(|line| line.strip_prefix("nameserver").map(str::trim));
    servers.find(|server| server.contains('.') && !server.starts_with("127.")).map(str::to_owned)
}

/// The product on the host's side of the net.
pub struct Product<'a> {
    net: &'a Net,
    host: &'a Host,
}

impl<'a> Product<'a> {
    /// Of `host` in `net`.
    pub fn new(net: &'a Net, host: &'a Host) -> Self {
        Self { net, host }
    }

    /// As whom it runs.
    pub fn mode(&self) -> Mode {
        self.host.mode()
    }

    /// `dispense` on the host.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.net.command(&self.net.host, &self.host.command(args));
        command.stdin(Stdio::null());
        command
    }

    /// Exit code, stdout and stderr of `dispense`.
    pub fn dispense(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(args).output().expect("nsenter");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Stdout of `dispense`, which must succeed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.dispense(args);
        assert_eq!(code, Some(0), "{args:?}: {err}");
        out
    }

    /// Starts server and runner, and waits until they serve.
    pub fn up(&self) -> Running {
        let up =
            Running::start(&mut self.command(&["up", "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"]));
        let show = ["config", "show", "--output", "json"];
        wait::until("it serves", Duration::from_secs(30), || self.dispense(&show).1, |text| text.contains("runnerUrl"));
        up
    }

    /// Runs Python in the sandbox `box`.
    pub fn python(&self, script: &str) -> (Option<i32>, String, String) {
        self.dispense(&["exec", "box", "--", "python3", "-c", script])
    }

    /// Runs Python in a sandbox until the test ends; it has said its first line.
    pub fn python_beside(&self, sandbox: &str, script: &str) -> Running {
        let mut command = self.command(&["exec", sandbox, "--", "python3", "-c", script]);
        started(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("nsenter"))
    }

    /// Connects from the sandbox `box`, and says what comes.
    pub fn connect(&self, address: &str) -> (Option<i32>, String, String) {
        let script = "import socket; s = socket.create_connection";
        self.python(&format!("{script}(('{address}', {PORT}), 2); print(s.recv(100).decode() or exit(1))"))
    }

    /// An address is not reached.
    #[track_caller]
    pub fn refused(&self, address: &str) {
        let (code, out, err) = self.connect(address);
        assert_eq!(code, Some(1), "{address} must be refused: {out}{err}");
    }

    /// What a shell on the host says.
    pub fn sh(&self, script: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let output = self.net.command(&self.net.host, &command).output().expect("sh");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
