//! A server and a runner as two processes, as on two machines: the runner connects out, joins by token once, and
//! is known by its own credential afterwards. A client elsewhere has an address and a key.

use std::time::{Duration, Instant};

use dispense_e2e::{Mode, Pair, wait};

#[test]
fn a_joined_runner_serves_a_client_elsewhere_and_comes_back_with_its_sandboxes() {
    for mode in Mode::available() {
        let mut pair = Pair::start(mode);
        assert_eq!(pair.ok(&["run", "--target", "zone=b", "--", "echo", "there"]), "there\n");
        pair.ok(&["create", "--name", "stays"]);
        pair.ok(&["exec", "stays", "--", "sh", "-c", "echo kept > /workspace/file"]);
        assert!(pair.take_runner().stop().success());
        pair.wait_for_runner("offline");
        // A command waits for a runner that is away; one that is asked for anew does not.
        let (code, _, err) = pair.dispense(&["exec", "stays", "--", "true"]);
        assert_eq!(code, Some(125), "{err}");
        assert!(err.contains("offline"), "{err}");
        pair.start_runner();
        pair.wait_for_runner("available");
        assert_eq!(pair.ok(&["exec", "stays", "--", "cat", "/workspace/file"]), "kept\n");
        let mut stranger = pair.command(&["list"]);
        let stranger = stranger.env("DISPENSE_API_KEY", "dsp_0").output().expect("the binary starts");
        assert!(String::from_utf8_lossy(&stranger.stderr).contains("API key"), "a wrong key is refused by name");
        pair.finish();
    }
}

#[test]
fn a_cordoned_runner_takes_nothing_new_and_a_drained_one_stops_what_it_has() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let pair = Pair::start(mode);
    pair.ok(&["create", "--name", "old"]);
    pair.ok(&["runner", "cordon", "far-1"]);
    pair.wait_for_runner("draining");
    assert_eq!(pair.ok(&["exec", "old", "--", "echo", "goes on"]), "goes on\n");
    pair.ok(&["create", "--name", "new", "--no-wait"]);
    let shown = pair.ok(&["get", "new"]);
    assert!(shown.contains("pending") && shown.contains("far-1 takes nothing new"), "{shown}");
    pair.ok(&["exec", "old", "--", "sh", "-c", "echo kept > /workspace/file"]);
    pair.ok(&["runner", "drain", "far-1"]);
    let shown = pair.ok(&["get", "old"]);
    assert!(shown.contains("stopped"), "{shown}");
    let (code, _, err) = pair.dispense(&["exec", "old", "--", "true"]);
    assert_eq!(code, Some(125), "{err}");
    assert!(err.contains("dispense runner uncordon"), "{err}");
    pair.ok(&["runner", "uncordon", "far-1"]);
    // It was not the user who stopped it: it starts when it is used.
    assert_eq!(pair.ok(&["exec", "old", "--", "cat", "/workspace/file"]), "kept\n");
    assert_eq!(pair.ok(&["exec", "new", "--", "echo", "placed"]), "placed\n");
    pair.finish();
}

#[test]
fn a_sandbox_that_nobody_uses_is_stopped_and_is_there_again_when_it_is_used() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let pair = Pair::start(mode);
    let begun = Instant::now();
    for name in ["idle", "busy"] {
        pair.ok(&["create", "--name", name, "--auto-stop", "1m"]);
    }
    pair.ok(&["exec", "idle", "--", "sh", "-c", "echo kept > /workspace/file"]);
    // Nobody is there, but it works.
    pair.ok(&["exec", "--detach", "busy", "--", "sh", "-c", "while :; do echo; sleep 1; done"]);
    let state = || pair.ok(&["get", "idle"]);
    wait::until("it is stopped", Duration::from_secs(180), state, |text| text.contains("stopped"));
    assert!(begun.elapsed() >= Duration::from_secs(60), "after {:?}", begun.elapsed());
    let busy = pair.ok(&["get", "busy"]);
    assert!(busy.contains("running"), "{busy}");
    assert_eq!(pair.ok(&["exec", "idle", "--", "cat", "/workspace/file"]), "kept\n");
    pair.finish();
}
