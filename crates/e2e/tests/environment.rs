//! The variables of a sandbox, changed while it is there: by the command, with curl, and behind restarts.

use std::fs;
use std::time::Duration;

use dispense_client::v1;
use dispense_e2e::curl::Curl;
use dispense_e2e::{Host, Mode, Pair, System, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
/// A value that must be nowhere but in the sandbox.
const SECRET: &str = "xyzzy-4711";

/// `A/B/C` as a process that is started now has them.
fn seen(run: impl Fn(&[&str]) -> String) -> String {
    run(&["exec", "box", "--", "sh", "-c", "echo \"$A/$B/$C\""]).trim().to_owned()
}

#[test]
fn a_variable_is_set_and_removed_for_what_is_started_afterwards() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up_with_env(&[("DISPENSE_LOG", "debug")]);
    let curl = Curl::of(&up);
    let run = |args: &[&str]| host.ok(args);
    host.ok(&["create", "--name", "box", "--env", "A=1", "--env", "B=1"]);
    let script = "while ! test -e /workspace/go; do sleep 0.05; done; echo \"$A/$B/$C\" > /workspace/former";
    host.ok(&["exec", "--detach", "box", "--", "sh", "-c", script]);
    let shown = host.ok(&["env", "box", "C=3", "B=2", "--unset", "A", "--output", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown, json!({"variables": {"B": "2", "C": "3"}}));
    assert_eq!(seen(run), "/2/3");
    host.ok(&["exec", "box", "--", "touch", "/workspace/go"]);
    let former = || host.dispense(&["exec", "box", "--", "cat", "/workspace/former"]).stdout;
    wait::until("what runs has told its own", SOON, former, |text| text == b"1/1/\n");
    let path = "/api/v1/sandboxes/box/environment";
    let (status, changed) =
        curl.call("PATCH", path, Some(json!({"variables": {"A": SECRET, "B": null, "nobody": null}})));
    assert_eq!((status, &changed), (200, &json!({"variables": {"A": SECRET, "C": "3"}})));
    assert_eq!(seen(run), format!("{SECRET}//3"));
    assert_eq!(curl.call("GET", path, None), (200, changed));
    // Each change is there when it is answered, however fast they come.
    for number in 0..20 {
        host.ok(&["env", "box", &format!("B={number}")]);
        assert_eq!(seen(run), format!("{SECRET}/{number}/3"));
    }
    host.ok(&["stop", "box"]);
    host.ok(&["env", "box", "--unset", "C"]);
    host.ok(&["start", "box"]);
    assert_eq!(seen(run), format!("{SECRET}/19/"), "one that was stopped starts with what was said meanwhile");
    assert!(!host.ok(&["audit"]).contains(SECRET) && host.ok(&["audit"]).contains("sandbox.environment"));
    let log = fs::read_to_string(host.data_dir().join("../up.log")).expect("it is kept");
    assert!(!log.contains(SECRET) && log.contains("DEBUG"), "debug lines, and none with the value");
    up.stop();
    host.finish();
}

#[test]
fn what_cannot_be_a_variable_is_refused_and_changes_nothing() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let curl = Curl::of(&up);
    host.ok(&["create", "--name", "box", "--env", "A=1"]);
    let path = "/api/v1/sandboxes/box/environment";
    let many: serde_json::Map<_, _> = (0..300).map(|number| (format!("N{number}"), json!(""))).collect();
    let cases = [
        (path, json!({"variables": {"A=B": "1"}}), 400, "environment"),
        (path, json!({"variables": {"": "1"}}), 400, "environment"),
        (path, json!({"variables": {"B": "1\u{0}"}}), 400, "environment"),
        (path, json!({"variables": {"B": "x".repeat(200 << 10)}}), 400, "environment"),
        (path, json!({"variables": many}), 400, "environment"),
        (path, json!({"variables": {"MY_PORT": 1}}), 400, "variables.MY_PORT"),
        (path, json!({"B": "1"}), 400, "B"),
        ("/api/v1/sandboxes/nobody/environment", json!({"variables": {}}), 404, ""),
    ];
    for (path, body, status, field) in cases {
        let (got, refused) = curl.call("PATCH", path, Some(body));
        assert_eq!((got, refused["details"]["field"].as_str().unwrap_or_default()), (status, field), "{refused}");
    }
    assert_eq!(curl.call("GET", path, None), (200, json!({"variables": {"A": "1"}})));
    let both = host.dispense(&["env", "box", "B=1", "--unset", "B"]);
    assert!(!both.status.success() && String::from_utf8_lossy(&both.stderr).contains("both set and removed"));
    up.stop();
    host.finish();
}

#[test]
fn what_was_set_while_the_runner_was_away_is_there_when_it_has_adopted_the_box() {
    for mode in Mode::available() {
        let mut pair = Pair::start(mode);
        pair.ok(&["create", "--name", "box", "--env", "A=1"]);
        pair.ok(&["env", "box", "B=2"]);
        pair.take_runner().kill();
        pair.wait_for_runner("offline");
        pair.ok(&["env", "box", "C=3", "--unset", "A"]);
        pair.take_server().kill();
        pair.start_server();
        pair.start_runner();
        pair.wait_for_runner("available");
        let run = |args: &[&str]| pair.ok(args);
        assert_eq!(seen(run), "/2/3");
        // The box was made with other variables than it is started with again.
        pair.ok(&["stop", "box"]);
        pair.ok(&["start", "box"]);
        assert_eq!(seen(run), "/2/3");
        pair.finish();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_told_what_it_was_not_started_with_before_a_session_reaches_it() {
    let mut system = System::start().await;
    let spec = v1::SandboxSpec { env: [("A".into(), "1".into())].into(), ..Default::default() };
    let request = v1::CreateSandboxRequest { name: "box".into(), spec: Some(spec), wait: true, ..Default::default() };
    let id = system.client.create(request).await.expect("created").id.parse().expect("an id");
    let used = async |system: &System| {
        let start = v1::StartProcess { args: vec!["count".into(), "1".into()], ..Default::default() };
        let mut process = system.client.run("box", start).await.expect("it runs");
        // To its end, so that its session waits for the next call.
        while process.events.next().await.expect("it goes on").is_some() {}
        system.machine.told(&id)
    };
    let expected =
        |a: &str, b: &str| Some([("A", a), ("B", b)].map(|(name, value)| (name.into(), value.into())).into());
    assert_eq!(used(&system).await, None, "it was started with them");
    let change = |name: &str, value: &str| v1::ChangeEnvironmentRequest {
        sandbox: "box".into(),
        set: [(name.into(), value.into())].into(),
        unset: vec![],
    };
    for number in 0..50 {
        let value = number.to_string();
        system.client.change_environment(change("B", &value)).await.expect("changed");
        assert_eq!(used(&system).await, expected("1", &value), "no session is quicker");
    }
    system.stop_runner().await;
    system.client.change_environment(change("A", "2")).await.expect("changed");
    system.start_runner().await;
    assert_eq!(used(&system).await, expected("2", "49"));
    for _ in 0..2 {
        system.client.stop("box", true).await.expect("stopped");
        system.client.start("box", true).await.expect("started");
        // The box has the variables of its making; its agent is told the rest each time.
        assert_eq!(used(&system).await, expected("2", "49"));
    }
    system.restart_server().await;
    let kept = system.client.environment("box").await.expect("there");
    assert_eq!(Some(kept), expected("2", "49"));
    system.client.delete("box", true, true).await.expect("deleted");
    let refused = system.client.change_environment(change("A", "3")).await.expect_err("it is gone");
    assert_eq!(refused.code, dispense_client::Code::NotFound);
    system.stop().await;
}
