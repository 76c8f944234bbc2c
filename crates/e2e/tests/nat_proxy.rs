//! What is particular to network `nat` of an ordinary user: the runner connects for the sandbox.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use dispense_e2e::net::{BULK_PORT, HOST_ADDRESS, Net, PUBLIC, Product, REFUSED};
use dispense_e2e::pair::Running;
use dispense_e2e::{Host, Mode, host, wait};

const MOMENT: Duration = Duration::from_secs(10);

/// Runs a test as the ordinary user with the sandbox `box`.
fn as_user(change: impl FnOnce(&mut Net, &Host), test: impl FnOnce(&Product<'_>, &Host, Running) -> Running) {
    let modes = Mode::available();
    if !modes.contains(&Mode::Root) || !modes.contains(&Mode::User) {
        return host::skipped("network `nat` of an ordinary user, whose tests need root and such a user");
    }
    let mut net = Net::with_servers();
    let host = Host::new(Mode::User);
    change(&mut net, &host);
    let product = Product::new(&net, &host);
    let up = product.up();
    product.ok(&["create", "--name", "box", "--network", "nat"]);
    let up = test(&product, &host, up);
    product.ok(&["delete", "box"]);
    assert!(up.stop().success());
    drop(net);
    host.finish();
}

/// Changes the rules in the network namespace of a host's only box, as root of it.
fn change_rules(host: &Host, rules: &str) {
    let agents = host::agents_below(&host.data_dir());
    let [agent] = agents.as_slice() else { panic!("one box: {agents:?}") };
    let mut command = Command::new("nsenter");
    command.args([format!("--user=/proc/{agent}/ns/user"), format!("--net=/proc/{agent}/ns/net")]);
    let output = command.args(["nft", rules]).stdin(Stdio::null()).output().expect("nsenter");
    assert!(output.status.success(), "nft {rules}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn refusals_hold_when_root_of_the_box_has_changed_its_rules() {
    as_user(
        |_, _| {},
        |product, host, up| {
            let cause = |address: &str| product.connect(address).2.lines().last().unwrap_or_default().to_owned();
            assert!(cause(REFUSED[0]).contains("No route to host"), "told at once: {}", cause(REFUSED[0]));
            let echo = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP); s.settimeout(2)";
            let ping = format!("import socket; {echo}; s.sendto(bytes([8] + [0] * 7), ('{PUBLIC}', 0)); s.recv(99)");
            let (code, _, err) = product.python(&ping);
            assert_eq!(code, Some(1), "the box does not answer for others");
            assert!(err.contains("PermissionError"), "told at once: {err}");
            // What is left hands everything to the runner, which resets what it refuses.
            change_rules(host, "flush chain ip dispense output");
            for address in [&REFUSED[..], &[HOST_ADDRESS, "198.18.0.1", "198.18.0.3"]].concat() {
                assert!(cause(address).contains("reset by peer"), "{address}: {}", cause(address));
            }
            assert_eq!(product.connect(PUBLIC).1.trim(), HOST_ADDRESS, "and nothing else");
            let script = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)";
            let ask = format!("{script}; s.sendto(b'q', ('{HOST_ADDRESS}', 5300)); s.recv(9)");
            assert_eq!(product.python(&ask).0, Some(1), "nor by datagrams");
            // Without any rule there is no way out at all.
            change_rules(host, "flush ruleset");
            for address in [PUBLIC, HOST_ADDRESS, REFUSED[0]] {
                product.refused(address);
            }
            up
        },
    );
}

/// Answers over UDP and over TCP as a nameserver would, on the host's own loopback.
const NAMESERVER: &str = "
import socket, struct, threading
def answer(query):
    return query[:2] + b'\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0' + query[12:query.index(b'\\0', 12) + 5] + b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4' + socket.inet_aton('198.51.100.7')
def tcp(s):
    while True:
        c, _ = s.accept(); size, = struct.unpack('>H', c.recv(2)); a = answer(c.recv(size)); c.sendall(struct.pack('>H', len(a)) + a); c.close()
threading.Thread(target=tcp, args=(socket.create_server(('127.0.0.53', 53)),), daemon=True).start()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.53', 53))
print('up', flush=True)
while True:
    query, peer = s.recvfrom(512); s.sendto(answer(query), peer)
";

#[test]
fn names_are_asked_of_the_hosts_nameserver_on_its_loopback_too() {
    as_user(
        |net, host| {
            let path = host.work_dir().join("resolv.conf");
            fs::write(&path, "nameserver 127.0.0.53\noptions edns0\n").expect("writable");
            net.serve_on_host(NAMESERVER);
            net.set_resolv_conf(path);
        },
        |product, _, up| {
            let resolve = "import socket; print(socket.getaddrinfo('example.test', 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])";
            let (_, out, err) = product.python(resolve);
            assert_eq!(out.trim(), PUBLIC, "over UDP: {err}");
            let tcp = product.dispense(&["exec", "--env", "RES_OPTIONS=use-vc", "box", "--", "python3", "-c", resolve]);
            assert_eq!(tcp.1.trim(), PUBLIC, "over TCP: {}", tcp.2);
            assert_eq!(product.connect("example.test").1.trim(), HOST_ADDRESS);
            up
        },
    );
}

#[test]
fn a_runner_that_was_killed_goes_on_with_the_network_of_its_boxes() {
    let script = format!(
        "
import socket
s = socket.create_connection(('{PUBLIC}', {BULK_PORT}), 5); s.settimeout(None); print('up', flush=True)
open('/tmp/open', 'w').close()
try: end = repr(s.recv(1))
except ConnectionResetError: end = 'reset'
open('/tmp/end', 'w').write(end)"
    );
    as_user(
        |_, _| {},
        |product, _, up| {
            product.ok(&["exec", "--detach", "box", "--", "python3", "-c", &script]);
            let read = |path: &str| product.dispense(&["exec", "box", "--", "cat", path]);
            wait::until("it is connected", MOMENT, || read("/tmp/open").0, |code| *code == Some(0));
            up.kill();
            let up = product.up();
            let end = || read("/tmp/end").1;
            wait::until("a connection of before is reset, not ended", MOMENT, end, |text| text == "reset");
            assert_eq!(product.connect(PUBLIC).1.trim(), HOST_ADDRESS, "new ones pass");
            product.refused(REFUSED[0]);
            product.ok(&["stop", "box"]);
            product.ok(&["start", "box"]);
            assert_eq!(product.connect(PUBLIC).1.trim(), HOST_ADDRESS, "after a stop and a start too");
            up
        },
    );
}

/// Connections of one box at most: a quarter of half of what the runner may open, two files each.
fn flows_max(runner: u32) -> usize {
    let limits = fs::read_to_string(format!("/proc/{runner}/limits")).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("every kernel says it");
    let files: usize = line.split_whitespace().nth(3).and_then(|word| word.parse().ok()).expect("a number");
    (files / 16).min(1024)
}

#[test]
fn a_box_that_opens_too_much_is_refused_and_takes_nothing_with_it() {
    // Some more than a box may have: those are reset, and the first are not.
    let script = |allowed: usize| {
        format!(
            "
import resource, select, socket
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
def flow(number):
    try: return socket.create_connection(('{PUBLIC}', {BULK_PORT}), 5)
    except ConnectionResetError:
        # The reset may come before the connection is seen to be open.
        if number < {allowed}: raise
flows = [flow(number) for number in range({allowed} + 50)]
def is_reset(s, timeout):
    if s is None: return True
    p = select.poll(); p.register(s, select.POLLIN)
    if not p.poll(timeout): return False
    try: return not s.recv(1)
    except ConnectionResetError: return True
print(all(is_reset(s, 5000) for s in flows[{allowed}:]), any(is_reset(s, 0) for s in flows[:{allowed}]), flush=True)
import sys; sys.stdin.read()"
        )
    };
    as_user(
        |_, _| {},
        |product, _, up| {
            let open = || fs::read_dir(format!("/proc/{}/fd", up.pid())).map_or(0, Iterator::count);
            let before = open();
            product.ok(&["create", "--name", "greedy", "--network", "nat"]);
            let allowed = flows_max(up.pid());
            let mut command = product.command(&["exec", "greedy", "--", "python3", "-c", &script(allowed)]);
            let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut greedy = command.spawn().expect("nsenter");
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(greedy.stdout.take().expect("piped")));
            let mut line = || lines.next().and_then(Result::ok).unwrap_or_default();
            assert_eq!(line(), "True False", "those over the bound are reset, and no other");
            assert!(open() >= before + 2 * allowed, "{} open files", open());
            assert_eq!(product.connect(PUBLIC).1.trim(), HOST_ADDRESS, "others go on");
            product.ok(&["delete", "greedy"]);
            greedy.wait().expect("ours");
            wait::until("its connections are gone with it", MOMENT, open, |count| *count <= before + 8);
            up
        },
    );
}

#[test]
fn nat_is_refused_by_name_where_it_cannot_be() {
    if !Mode::available().contains(&Mode::User) {
        return host::skipped("network `nat` as an ordinary user");
    }
    if !rustix::process::geteuid().is_root() {
        return host::skipped("a machine without nftables, which takes root to make");
    }
    let host = Host::new(Mode::User);
    let inner = host.command(["run", "--network", "nat", "--", "true"]);
    let mut command = Command::new("unshare");
    let script = "mount --bind /dev/null \"$(PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v nft)\" && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.env_clear().envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = command.current_dir(host.work_dir()).stdin(Stdio::null()).output().expect("unshare");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{message}");
    assert!(message.contains("nat"), "{message}");
    // Where it can be, it is.
    host.ok(&["run", "--network", "nat", "--", "true"]);
    host.finish();
}
