//! Terminals from outside: size, echo, restoration.

use std::time::Duration;

use dispense_e2e::host::terminate_if_there;
use dispense_e2e::terminal::Terminal;
use dispense_e2e::{Host, Mode, wait};

#[test]
fn a_terminal_has_our_size_and_follows_it() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let mut terminal = Terminal::open(100, 30);
        let before = terminal.mode();
        let mut child = terminal.spawn(&host.command(["run", "--", "sh"]));
        terminal.expect("#");
        terminal.write("stty size\r");
        terminal.expect("30 100");
        terminal.resize(133, 44);
        // A new size and what is typed travel apart, so the shell asks until it sees it.
        terminal.write("until stty size | grep '44 133'; do :; done; echo d''one\r");
        terminal.expect("\n44 133");
        terminal.expect("done");
        terminal.write("exit 5\r");
        assert_eq!(child.wait().expect("ours").code(), Some(5));
        let after = terminal.mode();
        assert_eq!(before.local_modes, after.local_modes, "the terminal is restored");
        assert_eq!(before.input_modes, after.input_modes, "the terminal is restored");
        host.finish();
    }
}

#[test]
fn the_terminal_is_restored_when_the_client_is_terminated() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let mut terminal = Terminal::open(80, 24);
        let before = terminal.mode();
        let mut child = terminal.spawn(&host.command(["run", "--", "sh"]));
        terminal.expect("#");
        assert_ne!(terminal.mode().local_modes, before.local_modes, "raw while it runs");
        // `setsid --wait` passes no signals on, so its child is signalled.
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).expect("procfs");
        let client = children.split_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or(child.id());
        // An interactive shell ignores SIGTERM; one that comes some seconds after the first kills it.
        wait::until(
            "the run ends",
            Duration::from_secs(30),
            || {
                if std::path::Path::new(&format!("/proc/{client}")).exists() {
                    terminate_if_there(client);
                }
                child.try_wait().expect("ours")
            },
            Option::is_some,
        );
        assert_eq!(terminal.mode().local_modes, before.local_modes);
        host.finish();
    }
}
