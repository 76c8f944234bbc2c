//! TLS of both ports: certificates of the server's own making and from files, clients and runners that check them.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use dispense_e2e::clients::Clients;
use dispense_e2e::pair::Running;
use dispense_e2e::{Host, Mode, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
const ANY: [&str; 4] = ["--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"];

/// What `config show` says of the server of a host, once it serves.
fn shown(host: &Host) -> Value {
    let show = || String::from_utf8(host.dispense(&["config", "show", "--output", "json"]).stdout).expect("text");
    let text = wait::until("it serves", SOON, show, |text| text.contains("runnerUrl"));
    serde_json::from_str(&text).expect("JSON")
}

fn text<'a>(json: &'a Value, field: &str) -> &'a str {
    json[field].as_str().unwrap_or_else(|| panic!("{field} in {json}"))
}

fn key(host: &Host) -> String {
    fs::read_to_string(host.data_dir().join("admin.key")).expect("the server wrote it").trim().to_owned()
}

/// A certificate for `localhost` with its key, by openssl.
fn make_certificate(host: &Host) -> (String, String) {
    let (certificate, key) = (host.work_dir().join("server.crt"), host.work_dir().join("server.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("openssl is installed").success());
    // The product may run as an ordinary user.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("ours");
    (certificate.display().to_string(), key.display().to_string())
}

#[test]
fn a_server_without_a_certificate_makes_one_and_is_known_by_its_fingerprint() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let (host, elsewhere) = (Host::new(mode), Host::new(mode));
    let running = Running::start(&mut host.command([&["up", "--tls"][..], &ANY].concat()));
    let shown = shown(&host);
    let (url, pin, key) = (text(&shown, "url"), text(&shown, "tlsPin"), key(&host));
    assert!(url.starts_with("https://"), "{shown}");
    // On this machine nothing else is needed: the embedded runner is there too.
    assert_eq!(host.ok(&["run", "--", "echo", "sealed"]), "sealed\n");
    let ask = |pin: &str| elsewhere.dispense(&["--url", url, "--api-key", &key, "--tls-pin", pin, "list"]);
    assert!(ask(pin).status.success());
    let wrong = ask(&format!("sha256:{}", "0".repeat(64)));
    let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && told.contains(pin), "it tells what is there: {told}");
    let unknown = elsewhere.dispense(&["--url", url, "--api-key", &key, "list"]);
    let told = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(!unknown.status.success() && told.contains("certificate"), "{told}");
    let plain = elsewhere.dispense(&["--url", &url.replace("https", "http"), "--api-key", &key, "list"]);
    assert!(!plain.status.success(), "nothing is served in the open");
    assert!(running.stop().success());
    for host in [host, elsewhere] {
        host.finish();
    }
}

#[test]
fn a_certificate_from_files_is_taken_by_other_clients_and_read_again_when_it_is_renewed() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let (certificate, key_file) = make_certificate(&host);
    let flags = ["server", "--cert-file", &certificate, "--key-file", &key_file];
    let mut command = host.command([&flags[..], &ANY].concat());
    let running = Running::start(command.env("DISPENSE_RATE_LIMITING_ENABLED", "false"));
    let first = shown(&host);
    let url = text(&first, "url").replace("127.0.0.1", "localhost");
    let header = format!("x-api-key: {}", key(&host));
    for version in ["--http1.1", "--http2"] {
        let list = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", version, "--cacert", &certificate, "--header", &header])
            .arg(format!("{url}/v1/sandboxes"))
            .output()
            .expect("curl is installed");
        assert!(list.status.success(), "{version}: {}", String::from_utf8_lossy(&list.stderr));
    }
    let ask = |flag: &str, value: &str| {
        host.dispense(&["--url", &url, "--api-key", &key(&host), flag, value, "list"]).status.success()
    };
    assert!(ask("--ca-file", &certificate));
    if let Some(clients) = Clients::available() {
        clients.run_with("tls.py", url.trim_start_matches("https://"), &key(&host), &[("CA_FILE", &certificate)]);
    }
    // A renewed one is served without a restart.
    make_certificate(&host);
    let pin = || text(&shown(&host), "tlsPin").to_owned();
    let renewed = wait::until("the new one is read", SOON, pin, |pin| pin != text(&first, "tlsPin"));
    assert!(ask("--tls-pin", &renewed) && ask("--ca-file", &certificate));
    assert!(!ask("--tls-pin", text(&first, "tlsPin")), "the old one is gone");
    // One that cannot be used is not taken.
    fs::write(&key_file, "nothing").expect("ours");
    assert!(ask("--ca-file", &certificate));
    assert!(running.stop().success());
    host.finish();
}

#[test]
fn a_runner_joins_over_tls_and_refuses_a_server_that_it_does_not_know() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let (host, far) = (Host::new(mode), Host::new(mode));
    let mut command = host.command([&["server", "--tls"][..], &ANY].concat());
    let running = Running::start(command.env("DISPENSE_RATE_LIMITING_ENABLED", "false"));
    let shown = shown(&host);
    let (url, token, pin) = (text(&shown, "runnerUrl"), text(&shown, "joinToken"), text(&shown, "tlsPin"));
    let join = |pin: &str| {
        Running::start(&mut far.command(["runner", "--join", url, "--token", token, "--name", "far", "--tls-pin", pin]))
    };
    let stranger = join(&format!("sha256:{}", "0".repeat(64)));
    let list = || host.ok(&["runner", "list"]);
    assert!(!list().contains("far"), "it has not joined");
    stranger.kill();
    let runner = join(pin);
    wait::until("it has joined", SOON, list, |text| text.contains("far") && text.contains("available"));
    host.ok(&["create", "--name", "box"]);
    assert_eq!(host.ok(&["exec", "box", "--", "echo", "far away"]), "far away\n");
    host.ok(&["delete", "box"]);
    assert!(runner.stop().success());
    assert!(running.stop().success());
    for host in [host, far] {
        host.finish();
    }
}
