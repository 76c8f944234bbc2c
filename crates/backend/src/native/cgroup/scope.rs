//! A cgroup of version 2 that an ordinary user may divide: a scope of the user's own systemd.
//!
//! A login's cgroup belongs to root. The user's manager has a part of the tree that is delegated to it, and gives a
//! process a scope of its own there when it is asked over D-Bus.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The move is a job of the manager, which answers before it is done.
const MOVE_TIMEOUT: Duration = Duration::from_secs(2);
const MOVE_PAUSE: Duration = Duration::from_millis(2);
/// From the call to the manager's answer.
const CALL_TIMEOUT: &str = "--timeout=5s";

/// Moves this process into `dispense-<instance>.scope`. The scope lives for as long as a process is in it, so that it
/// may be there already with the boxes of an earlier runner: then this one joins them, in the cgroup `leaf`.
pub(super) fn enter(instance: &str, leaf: &str) -> Result<(), String> {
    let unit = format!("dispense-{instance}.scope");
    let pid = std::process::id().to_string();
    let start = [
        &["StartTransientUnit", "ssa(sv)a(sa(sv))", &unit, "fail", "4"][..],
        &["Description", "s", "Sandboxes of Dispense", "Delegate", "b", "1"],
        &["CollectMode", "s", "inactive-or-failed", "PIDs", "au", "1", &pid, "0"],
    ]
    .concat();
    let leaf = format!("/{leaf}");
    let join = ["AttachProcessesToUnit", "ssau", &unit, &leaf, "1", &pid];
    if let Err(why) = ask(&start)
        && ask(&join).is_err()
    {
        return Err(why);
    }
    let begun = Instant::now();
    while begun.elapsed() < MOVE_TIMEOUT {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        if own.lines().any(|line| line.starts_with("0::") && line.split('/').any(|part| part == unit)) {
            return Ok(());
        }
        std::thread::sleep(MOVE_PAUSE);
    }
    Err(format!("systemd did not move this process into {unit}"))
}

/// Calls the user's manager by systemd's own client, so that no library for D-Bus is needed.
fn ask(call: &[&str]) -> Result<(), String> {
    let mut command = Command::new("busctl");
    command.args(["--user", CALL_TIMEOUT, "--quiet", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"]);
    command.arg("org.freedesktop.systemd1.Manager").args(call);
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // As after `su`, which opens no session; the manager of a user that lingers runs all the same.
        let folder = format!("/run/user/{}", rustix::process::geteuid().as_raw());
        if !Path::new(&folder).join("bus").exists() {
            return Err("this user has no session of systemd".to_owned());
        }
        command.env("XDG_RUNTIME_DIR", folder);
    }
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("`busctl` was not run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("the user's systemd said: {}", said.lines().next().unwrap_or("no reason")))
}
