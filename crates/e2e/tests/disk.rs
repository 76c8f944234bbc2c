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
