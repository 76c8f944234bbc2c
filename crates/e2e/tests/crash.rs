//! kill -9 of what the user started leaves nothing after the next start.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use dispense_e2e::{Host, Mode};

/// Kills of one test.
const KILLS: usize = 12;
/// A `run` of this binary has printed by then on a loaded machine, so the kills fall into every phase of it.
const KILL_WITHIN_US: u64 = 400_000;
/// Repeats the moments of a test that failed, which prints them.
const SEED_VARIABLE: &str = "DISPENSE_TEST_SEED";

/// Random moments after the start, more of them early, where most happens.
fn moments() -> Vec<Duration> {
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let seed = std::env::var(SEED_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or_else(clock);
    eprintln!("{SEED_VARIABLE}={seed}");
    let mut state = seed | 1;
    let mut moment = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let share = (state >> 11) as f64 / (1u64 << 53) as f64;
        Duration::from_micros((KILL_WITHIN_US as f64 * share * share) as u64)
    };
    (0..KILLS).map(|_| moment()).collect()
}

#[test]
fn a_killed_run_leaves_nothing_after_the_next_start() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        for delay in moments() {
            let mut child = host
                .command(["run", "--", "sh", "-c", "echo up; sleep 1000"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("the binary starts");
            std::thread::park_timeout(delay);
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
