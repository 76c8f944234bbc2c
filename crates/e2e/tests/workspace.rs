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
        let program = host.command(["--version"]);
        let words: Vec<String> = std::iter::once(program.get_program())
            .chain(program.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let (_, words) = words.split_last().expect("a program");
        let script = host.work_dir().join("dispense.sh");
        // As the user who may use the data directory, whoever runs the client.
        let (data, home) = (host.data_dir(), host.work_dir());
        let variables = format!("DISPENSE_DATA_DIR={} HOME={}", data.display(), home.display());
        let text = format!("#!/bin/sh\nexport {variables}\nexec {} \"$@\"\n", words.join(" "));
        std::fs::write(&script, text).expect("writable");
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
        let script = script.display().to_string();
        clients.run_with("workspace.mjs", &up.address(), &up.key(), &[("DISPENSE", &script)]);
        let list = || host.ok(&["ps", "web"]);
        wait::until("terminals end with their clients", PATIENCE, list, |list| !list.contains("bash -l"));
        up.stop();
        host.finish();
    }
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
