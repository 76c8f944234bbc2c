//! Events of sandboxes from a number on, over gRPC and as server-sent events, and the audit log.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use dispense_client::v1::{CreateSandboxRequest, Event, WatchEventsRequest};
use dispense_client::{Client, Code, v1};
use dispense_e2e::pair::Running;
use dispense_e2e::{Host, Mode, System, wait};

const SOON: Duration = Duration::from_secs(20);

fn named(name: &str) -> CreateSandboxRequest {
    CreateSandboxRequest { name: name.into(), wait: true, ..Default::default() }
}

async fn all(client: &Client, after: u64) -> Vec<Event> {
    let request = WatchEventsRequest { after, no_follow: true, ..Default::default() };
    let mut events = client.events(request).await.expect("opened");
    let mut all = Vec::new();
    while let Some(event) = events.next().await.expect("read") {
        all.push(event);
    }
    all
}

fn states(events: &[Event], sandbox: &str) -> Vec<String> {
    let of = events.iter().filter(|event| event.sandbox_id == sandbox);
    of.map(|event| event.data["state"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandboxs_life_is_told_in_order_and_a_follower_survives_a_restart_of_the_server() {
    let mut system = System::start().await;
    let created = system.client.create(named("box")).await.expect("created");
    let mut follower =
        system.client.events(WatchEventsRequest { from_now: true, ..Default::default() }).await.expect("opened");
    system.client.stop("box", true).await.expect("stopped");
    let mut seen = Vec::new();
    while states(&seen, &created.id).last().map(String::as_str) != Some("stopped") {
        let next = tokio::time::timeout(SOON, follower.next()).await.expect("it comes");
        seen.push(next.expect("read").expect("it follows"));
    }
    system.restart_server().await;
    system.client.delete("box", false, true).await.expect("deleted");
    while states(&seen, &created.id).last().map(String::as_str) != Some("deleted") {
        let next = tokio::time::timeout(SOON, follower.next()).await.expect("it comes back");
        seen.push(next.expect("read").expect("it follows"));
    }
    assert!(seen.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1), "none lost, none twice: {seen:?}");
    let whole = all(&system.client, 0).await;
    assert_eq!(states(&whole, &created.id).first().map(String::as_str), Some("starting"));
    assert_eq!(whole.first().map(|event| event.r#type.as_str()), Some("sandbox.created"));
    assert_eq!(whole.last().map(|event| event.r#type.as_str()), Some("sandbox.deleted"));
    let tail = all(&system.client, whole[1].seq).await;
    assert_eq!(tail, whole[2..]);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_a_scope_follows_its_own_sandboxes_only() {
    let system = System::start().await;
    let request = v1::CreateKeyRequest { name: "team".into(), group: "team".into(), ..Default::default() };
    let secret = system.client.create_key(request).await.expect("issued").secret;
    let team = Client::connect(&format!("http://{}", system.address()), &secret).await.expect("the server answers");
    system.client.create(named("other")).await.expect("created");
    let mine = team.create(named("mine")).await.expect("created");
    let events = all(&team, 0).await;
    assert!(!events.is_empty() && events.iter().all(|event| event.sandbox_id == mine.id), "{events:?}");
    assert_eq!(team.audit(v1::ListAuditRequest::default()).await.expect_err("no").code, Code::PermissionDenied);
    system.stop().await;
}

#[test]
fn server_sent_events_go_on_after_the_last_id() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let (url, key) = (format!("http://{}/api/v1/events", up.address()), format!("x-api-key: {}", up.key()));
    let mut curl = Command::new("curl")
        .args(["--silent", "--no-buffer", "--max-time", "60", "--header", &key, "--header", "last-event-id: 0", &url])
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl is installed");
    let lines = BufReader::new(curl.stdout.take().expect("piped")).lines();
    let running = Running::adopt(curl);
    host.ok(&["create", "--name", "box"]);
    let mut first = String::new();
    for line in lines.map_while(Result::ok) {
        if let Some(id) = line.strip_prefix("id: ") {
            first = id.to_owned();
        }
        if line.starts_with("data: ") && line.contains("\"state\":\"running\"") {
            break;
        }
    }
    running.kill();
    let last: u64 = first.parse().expect("a number");
    let told_after = |seq: u64| {
        let output = Command::new("curl")
            .args(["--silent", "--max-time", "20", "--header", &key, &format!("{url}?after={seq}&noFollow=true")])
            .output()
            .expect("curl is installed");
        String::from_utf8(output.stdout).expect("text")
    };
    let text = told_after(last - 1);
    assert!(text.contains(&format!("id: {last}")) && !text.contains("sandbox.created"), "{text}");
    // From a database that had more than this one.
    let text = told_after(last + 1_000_000);
    assert!(text.contains(&format!("id: {last}")) && text.contains("gap"), "{text}");
    up.stop();
    host.finish();
}

#[test]
fn the_audit_log_tells_who_asked_for_what_and_its_chain_holds() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    host.ok(&["create", "--name", "box"]);
    host.ok(&["exec", "box", "--", "true"]);
    let secret = host.ok(&["key", "create", "--name", "guest"]);
    let url = format!("http://{}", up.address());
    let refused = host.dispense(&["--url", &url, "--api-key", secret.trim(), "delete", "box"]);
    assert!(!refused.status.success());
    host.ok(&["delete", "box"]);
    let log = || host.ok(&["audit"]);
    let log = wait::until("everything is noted", SOON, log, |text| text.matches("sandbox.delete").count() == 2);
    for told in ["sandbox.create box taken", "ProcessService/RunProcess", "key.create guest taken"] {
        assert!(log.contains(told), "{told}: {log}");
    }
    assert!(log.contains("sandbox.delete box permission_denied") && log.contains("sandbox.delete box taken"), "{log}");
    assert!(!log.contains(secret.trim()), "no secret is in it");
    let verdict = host.ok(&["audit", "--verify"]);
    assert!(verdict.contains("entries are whole"), "{verdict}");
    up.stop();
    host.finish();
}
