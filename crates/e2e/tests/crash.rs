//! kill -9 of what the user started leaves nothing after the next start.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use dispense_e2e::{Host, Mode};

/// Kills at these moments after the start, in milliseconds: they fall into every phase of a `run`.
const KILL_AFTER_MS: [u64; 12] = [1, 5, 10, 20, 35, 50, 75, 100, 150, 200, 300, 400];

#[test]
fn a_killed_run_leaves_nothing_after_the_next_start() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        for delay in KILL_AFTER_MS {
            let mut child = host
                .command(["run", "--", "sh", "-c", "echo up; sleep 1000"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("the binary starts");
            std::thread::park_timeout(Duration::from_millis(delay));
            child.kill().expect("ours");
            child.wait().expect("ours");
        }
        assert_eq!(host.ok(&["run", "--", "echo", "next"]), "next\n");
        host.finish();
    }
}

#[test]
fn a_killed_server_leaves_nothing_of_leased_sandboxes_after_the_next_start() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        let mut child = host
            .command(["run", "--", "sh", "-c", "echo up; sleep 1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let mut line = [0; 3];
        child.stdout.as_mut().expect("piped").read_exact(&mut line).expect("the command prints");
        up.kill();
        child.kill().expect("ours");
        child.wait().expect("ours");
        assert_eq!(host.ok(&["run", "--", "echo", "next"]), "next\n");
        host.finish();
    }
}
