//! Network `nat`, as root and as an ordinary user.

use std::time::Duration;

use dispense_e2e::net::{BULK_BYTES, BULK_PORT, ECHO_PORT, HOST_ADDRESS, Net, PUBLIC, Product, REFUSED, nameserver};
use dispense_e2e::{Host, Mode, host, wait};

/// What the ordinary user's sandboxes ask for names.
const RESOLVER: &str = "198.18.0.3";

/// Runs a test as everybody that this machine can test, with the sandbox `box`; nothing is left by it.
fn each_mode(modes: &[Mode], test: impl Fn(&Product<'_>)) {
    if !Mode::available().contains(&Mode::Root) {
        return host::skipped("network `nat`, whose tests need root to make an internet");
    }
    for mode in Mode::available().into_iter().filter(|mode| modes.contains(mode)) {
        let net = Net::with_servers();
        let host = Host::new(mode);
        let product = Product::new(&net, &host);
        let up = product.up();
        product.ok(&["create", "--name", "box", "--network", "nat"]);
        test(&product);
        product.ok(&["delete", "box"]);
        let links = || product.sh("ip -o link | grep -c ': dsp'");
        wait::until("no interface is left", Duration::from_secs(10), links, |text| text == "0\n");
        wait::until("no rule is left", Duration::from_secs(10), || product.sh("nft list tables"), String::is_empty);
        assert!(up.stop().success());
        drop(net);
        host.finish();
    }
}

fn address_of(product: &Product<'_>, sandbox: &str) -> String {
    if product.mode() == Mode::User {
        // The same in every sandbox: no two share a network.
        return "198.18.0.2".to_owned();
    }
    let script = "import fcntl, socket, struct; s = socket.socket(); print(socket.inet_ntoa(fcntl.ioctl(s.fileno(), 0x8915, struct.pack('256s', b'eth0'))[20:24]))";
    product.ok(&["exec", sandbox, "--", "python3", "-c", script]).trim().to_owned()
}

/// Where the sandbox sends what is not its own.
fn gateway(product: &Product<'_>) -> String {
    if product.mode() == Mode::User {
        return "198.18.0.1".to_owned();
    }
    let script = "import socket, struct; r = [l.split() for l in open('/proc/net/route')]; print([socket.inet_ntoa(struct.pack('<I', int(l[2], 16))) for l in r[1:] if l[1] == '00000000'][0])";
    product.python(script).1.trim().to_owned()
}

/// Sends a datagram from the sandbox and says what comes back, and from where.
fn ask(product: &Product<'_>, address: &str, port: u16, bytes: usize) -> (Option<i32>, String, String) {
    let script = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)";
    let sent = format!("{script}; q = b'q' * {bytes}; s.sendto(q, ('{address}', {port}))");
    product.python(&format!("{sent}; a, p = s.recvfrom(65536); print(a == q, *p)"))
}

/// The nameserver answers on its port, and on no other when its address is private.
fn nameserver_answers(product: &Product<'_>) {
    let Some(server) = nameserver() else { return };
    let asked = if product.mode() == Mode::Root { server.as_str() } else { RESOLVER };
    let (code, out, err) = ask(product, asked, 53, 9);
    assert_eq!((code, out), (Some(0), format!("True {asked} 53\n")), "the nameserver answers: {err}");
    assert_eq!(product.dispense(&["exec", "box", "--", "grep", "-c", asked, "/etc/resolv.conf"]).1, "1\n");
    product.refused(asked);
    if server.starts_with("10.") || server.starts_with("192.168.") {
        product.refused(&server);
    }
}

/// A sandbox that listens is not reached by another.
fn neighbour_is_refused(product: &Product<'_>) {
    product.ok(&["create", "--name", "neighbour", "--network", "nat"]);
    let neighbour = address_of(product, "neighbour");
    let listen = "import socket; s = socket.create_server(('0.0.0.0', 8088)); print('up', flush=True); s.accept()";
    let listening = product.python_beside("neighbour", listen);
    product.refused(&neighbour);
    drop(listening);
    product.ok(&["delete", "neighbour"]);
}

#[test]
fn nat_reaches_public_addresses_and_nothing_else() {
    each_mode(&[Mode::Root, Mode::User], |product| {
        let (code, out, err) = product.connect(PUBLIC);
        assert_eq!((code, out.trim()), (Some(0), HOST_ADDRESS), "masqueraded: {err}");
        for address in REFUSED {
            product.refused(address);
        }
        // The host itself: its public address, the gateway that the box sees, and its loopback.
        for address in [HOST_ADDRESS, &gateway(product), "127.0.0.1", "::1", "2001:db8::1"] {
            product.refused(address);
        }
        neighbour_is_refused(product);
        nameserver_answers(product);
    });
}

#[test]
fn bytes_pass_exactly_both_ways_and_each_way_ends_by_itself() {
    let script = format!(
        "
import hashlib, random, socket
sent = random.Random(1).randbytes({BULK_BYTES}); s = socket.create_connection(('{PUBLIC}', {BULK_PORT}), 5)
s.settimeout(20); s.sendall(sent); s.shutdown(socket.SHUT_WR)
got = bytearray()
while data := s.recv(1 << 20): got += data
print(got[:32] == hashlib.sha256(sent).digest(), got[32:] == random.Random(2).randbytes({BULK_BYTES}))"
    );
    each_mode(&[Mode::Root, Mode::User], |product| {
        let (code, out, err) = product.python(&script);
        assert_eq!((code, out.as_str()), (Some(0), "True True\n"), "{err}");
    });
}

#[test]
fn datagrams_of_every_size_are_answered_from_where_they_were_sent() {
    each_mode(&[Mode::Root, Mode::User], |product| {
        for bytes in [0, 1, 1400, 9000, 65_507] {
            let (code, out, err) = ask(product, PUBLIC, ECHO_PORT, bytes);
            assert_eq!((code, out), (Some(0), format!("True {PUBLIC} {ECHO_PORT}\n")), "{bytes} bytes: {err}");
        }
        assert_eq!(ask(product, HOST_ADDRESS, ECHO_PORT, 1).0, Some(1), "the host is not asked");
        // An answer to an address that is not the box's must not come in again as a question to that address.
        let script = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)";
        let spoofed =
            format!("{script}; s.bind(('{PUBLIC}', 0)); s.sendto(b'q', ('{PUBLIC}', {ECHO_PORT})); s.recv(9)");
        assert_eq!(product.python(&spoofed).0, Some(1), "a source that is not the box's");
    });
}

#[test]
fn a_remote_that_refuses_is_told_to_the_program_at_once() {
    let script = format!(
        "
import socket, time
began = time.monotonic()
try:
    s = socket.create_connection(('{PUBLIC}', 9), 5); s.recv(1); print('silence')
except (ConnectionRefusedError, ConnectionResetError): print('refused', time.monotonic() - began < 2)"
    );
    each_mode(&[Mode::Root, Mode::User], |product| {
        let (_, out, err) = product.python(&script);
        assert_eq!(out, "refused True\n", "{err}");
    });
}
