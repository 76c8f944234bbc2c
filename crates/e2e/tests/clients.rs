//! `dispense.DispenseService` from outside: clients that nobody here wrote.

use dispense_e2e::clients::Clients;
use dispense_e2e::{Host, Mode};

/// Runs scripts against `dispense up`.
fn against_a_server(scripts: &[&str]) {
    against_a_server_with(&[], scripts);
}

fn against_a_server_with(flags: &[&str], scripts: &[&str]) {
    let Some(clients) = Clients::available() else { return };
    let Some(mode) = Mode::available().into_iter().next() else { return };
    clients.generate();
    let host = Host::new(mode);
    let up = host.up_with(flags);
    let (address, key) = (up.address(), up.key());
    for script in scripts {
        clients.run(script, &address, &key);
    }
    up.stop();
    host.finish();
}

#[test]
fn a_generated_python_client_drives_the_service() {
    against_a_server(&["service.py"]);
}

#[test]
fn a_client_that_knows_only_the_address_learns_the_service_by_reflection() {
    against_a_server(&["reflection.py"]);
}

#[test]
fn a_node_client_drives_the_service() {
    against_a_server(&["service.mjs"]);
}

#[test]
fn a_browsers_client_drives_the_service_over_grpc_web() {
    against_a_server(&["web.mjs"]);
}

#[test]
fn every_answer_over_rest_is_one_that_the_description_has() {
    // What it creates and does not delete must not keep others waiting for room.
    against_a_server_with(&["--capacity", "memory=4096T", "--capacity", "disk=4096T"], &["contract.sh"]);
}

#[test]
fn a_page_follows_events_over_a_websocket() {
    against_a_server(&["events.mjs"]);
}
