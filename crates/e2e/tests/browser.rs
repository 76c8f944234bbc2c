//! A real browser on a real dev server: hot reload through a preview.

use std::path::Path;
use std::time::Duration;

use dispense_e2e::clients::Clients;
use dispense_e2e::host::skipped;
use dispense_e2e::{Host, Mode, wait};

const CHROMIUM: &str = "/usr/bin/chromium";
/// For a program to come up in a sandbox, on a loaded machine.
const UP_TIMEOUT: Duration = Duration::from_secs(60);

#[test]
fn a_page_shows_a_changed_file_without_being_loaded_again() {
    let Some(clients) = Clients::available() else { return };
    if !Path::new(CHROMIUM).is_file() {
        return skipped(&format!("a browser: {CHROMIUM} is not there (`apt-get install chromium`)"));
    }
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        // No network: everything comes through the server.
        host.ok(&["create", "--name", "web", "--network", "none"]);
        clients.put_site(&host.work_dir());
        host.own_tree(&host.work_dir());
        let from = format!("{}/.", host.work_dir().display());
        host.ok(&["cp", "--quiet", &from, "web:/workspace"]);
        host.ok(&["exec", "--detach", "--name", "dev", "web", "--", "npm", "run", "dev"]);
        let list = || host.ok(&["port", "list", "web"]);
        wait::until("the dev server listens", UP_TIMEOUT, list, |ports| ports.contains("5173"));
        let link = host.ok(&["preview", "web", "5173"]);
        let variables = [("LINK", link.trim()), ("SANDBOX", "web"), ("CHROMIUM", CHROMIUM)];
        clients.run_with("browser.mjs", &up.address(), &up.key(), &variables);
        up.stop();
        host.finish();
    }
}
