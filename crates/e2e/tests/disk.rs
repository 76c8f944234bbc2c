//! Disk limits: what does not fit is refused inside, and what fits outlives a stop.

use dispense_e2e::{Host, Mode, host};

#[test]
fn a_limited_disk_keeps_its_files_over_a_stop_and_a_restart_of_the_runner() {
    if !Mode::available().contains(&Mode::Root) {
        return host::skipped("disks on loop devices, which need root");
    }
    let host = Host::new(Mode::Root);
    let up = host.up();
    host.ok(&["create", "--name", "box", "--disk", "64M"]);
    host.ok(&["exec", "box", "--", "sh", "-c", "echo kept > /workspace/file; mkdir /opt/mine"]);
    let full = host.dispense(&["exec", "box", "--", "sh", "-c", "head -c 100M /dev/zero > /workspace/big"]);
    assert!(!full.status.success());
    let told = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(told.contains("disk is full"), "{told}");
    host.ok(&["exec", "box", "--", "rm", "/workspace/big"]);
    host.ok(&["stop", "box"]);
    host.ok(&["start", "box"]);
    let seen = host.ok(&["exec", "box", "--", "sh", "-c", "cat /workspace/file; ls -d /opt/mine; df -m / | tail -1"]);
    assert!(seen.starts_with("kept\n/opt/mine\n"), "{seen}");
    up.kill();
    let up = host.up();
    assert_eq!(host.ok(&["exec", "box", "--", "cat", "/workspace/file"]), "kept\n");
    host.ok(&["delete", "box"]);
    up.stop();
    host.finish();
}

#[test]
fn an_ordinary_user_is_told_that_a_limited_disk_is_in_memory() {
    if !Mode::available().contains(&Mode::User) {
        return host::skipped("disks of an ordinary user");
    }
    let host = Host::new(Mode::User);
    let up = host.up();
    let warned = |args: &[&str]| {
        let output = host.dispense(args);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {told}");
        told.contains("in memory and are lost when it stops: an ordinary user may not mount")
    };
    assert!(warned(&["create", "--name", "box", "--disk", "64M"]));
    assert!(warned(&["run", "--keep", "--name", "kept", "--disk", "64M", "--", "true"]));
    // Nothing of these outlives its run, or its files are kept.
    assert!(!warned(&["run", "--disk", "64M", "--", "true"]));
    assert!(!warned(&["create", "--name", "plain"]));
    let seen = host.ok(&["get", "box"]);
    assert!(seen.contains("in memory, lost when the sandbox stops"), "{seen}");
    host.ok(&["stop", "box"]);
    let again = host.dispense(&["start", "box"]);
    let told = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && told.contains("create a new one"), "{told}");
    host.ok(&["delete", "box", "kept", "plain"]);
    up.stop();
    host.finish();
}
