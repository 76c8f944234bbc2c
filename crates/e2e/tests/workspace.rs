//! The workspace over Socket.IO, by the client that the protocol's authors wrote.

use dispense_e2e::clients::Clients;
use dispense_e2e::{Host, Mode, wait};

/// For what a sandbox does, on a loaded machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

#[test]
fn a_socket_io_client_has_a_terminal_and_files() {
    let Some(clients) = Clients::available() else { return };
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        host.ok(&["create", "--name", "web"]);
        let script = host.script();
        clients.run_with("workspace.mjs", &up.address(), &up.key(), &[("DISPENSE", &script)]);
        let list = || host.ok(&["ps", "web"]);
        wait::until("terminals end with their clients", PATIENCE, list, |list| !list.contains("bash -l"));
        up.stop();
        host.finish();
    }
}

#[test]
fn a_client_whose_network_vanished_finds_what_it_had() {
    let Some(clients) = Clients::available() else { return };
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    host.ok(&["create", "--name", "web"]);
    let script = host.script();
    clients.run_with("workspace-return.mjs", &up.address(), &up.key(), &[("DISPENSE", &script)]);
    up.stop();
    host.finish();
}

#[test]
fn a_client_that_knows_only_the_host_has_the_workspace() {
    let Some(clients) = Clients::available() else { return };
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let refused = host.dispense(&["server", "--address", "127.0.0.1:0", "--workspace-domain", "workspace.localhost"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("server.previews.domain = `localhost`"), "{told}");
    // As docs/workspace.md has it for a laptop.
    let up = host.up_with(&["--preview-domain", "preview.localhost", "--workspace-domain", "workspace.localhost"]);
    host.ok(&["create", "--name", "web"]);
    clients.run("workspace-host.mjs", &up.address(), &up.key());
    up.stop();
    host.finish();
}

#[test]
fn a_client_whose_key_is_revoked_is_sent_away() {
    let Some(clients) = Clients::available() else { return };
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    host.ok(&["create", "--name", "web"]);
    let issued = host.ok(&["key", "create", "--name", "guest", "--role", "admin", "--output", "json"]);
    let issued: serde_json::Value = serde_json::from_str(&issued).expect("JSON");
    let mut command = clients.node("revoked.mjs");
    command.env("DISPENSE_ADDRESS", up.address()).env("DISPENSE_API_KEY", issued["secret"].as_str().expect("a key"));
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("node is installed");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("piped")));
    assert_eq!(lines.next().expect("a line").expect("text"), "connected");
    host.ok(&["key", "revoke", "guest"]);
    assert_eq!(lines.next().expect("a line").expect("text"), "unauthenticated io server disconnect");
    assert!(child.wait().expect("ours").success());
    host.ok(&["delete", "web"]);
    up.stop();
    host.finish();
}
