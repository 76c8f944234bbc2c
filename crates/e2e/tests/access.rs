//! Who may do what, over the wire: every row of the authorisation table with every kind of key, and what one
//! tenant can do to another.

use std::io::Read;
use std::time::Duration;

use dispense_client::v1::{CreateKeyRequest, CreateSandboxRequest, ListSandboxesRequest, Role, RotateKeyRequest};
use dispense_client::{Client, Code, v1};
use dispense_e2e::System;
use dispense_server::Row;
use tower::ServiceExt;

/// Roles, weakest first.
const ROLES: [(&str, Role); 3] = [("viewer", Role::Viewer), ("member", Role::Member), ("admin", Role::Admin)];
const SOON: Duration = Duration::from_secs(10);

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Unauthenticated,
    Denied,
    /// It got past the door.
    Passed,
}

async fn key(system: &System, name: &str, role: Role) -> String {
    let request = CreateKeyRequest { name: name.into(), role: role.into(), ..Default::default() };
    system.client.create_key(request).await.expect("issued").secret
}

async fn ask(channel: &tonic::transport::Channel, row: &Row, key: Option<&str>) -> Answer {
    let mut path = row.path.clone();
    while let (Some(from), Some(to)) = (path.find('{'), path.find('}')) {
        path.replace_range(from..=to, "nobody");
    }
    let mut request = http::Request::builder().method(row.verb).uri(path);
    if row.grpc {
        request = request.header("content-type", "application/grpc").header("te", "trailers");
    }
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request.body(tonic::body::Body::empty()).expect("a request");
    let response = tokio::time::timeout(SOON, channel.clone().oneshot(request)).await;
    let response = response.unwrap_or_else(|_| panic!("{row:?} does not answer")).expect("the server answers");
    let grpc = response.headers().get("grpc-status").and_then(|status| status.to_str().ok()).unwrap_or_default();
    match (row.grpc, response.status().as_u16(), grpc) {
        (false, 401, _) | (true, _, "16") => Answer::Unauthenticated,
        (false, 403, _) | (true, _, "7") => Answer::Denied,
        _ => Answer::Passed,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_takes_the_keys_that_it_says_and_no_other() {
    let system = System::start().await;
    let mut keys = Vec::new();
    for (name, role) in ROLES {
        keys.push((name, key(&system, name, role).await));
    }
    let revoked = key(&system, "revoked", Role::Admin).await;
    system.client.revoke_key("revoked").await.expect("revoked");
    let expired = {
        let name = "expired".to_owned();
        let request = CreateKeyRequest { name, role: Role::Admin.into(), expires_in_secs: 1, ..Default::default() };
        system.client.create_key(request).await.expect("issued").secret
    };
    let url = format!("http://{}", system.address());
    let ended = async {
        loop {
            let client = Client::connect(&url, &expired).await.expect("the server answers");
            if client.get("nobody").await.is_err_and(|error| error.code == Code::Unauthenticated) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("it ends");
    let nobody = format!("dsp_{}", "0".repeat(40));
    let channel =
        tonic::transport::Endpoint::from_shared(url.clone()).expect("a URL").connect().await.expect("it runs");
    let rows = dispense_server::rows();
    assert!(rows.len() > 70, "the table is there");
    for row in &rows {
        // A sandbox's own token is another kind; its handler refuses API keys.
        let is_open = row.role.is_none();
        for wrong in [None, Some(nobody.as_str()), Some(&revoked), Some(&expired), Some("")] {
            let answer = ask(&channel, row, wrong).await;
            let takes_tokens = row.path.ends_with("/status") && row.path.starts_with("/api/");
            let expected = if is_open && !takes_tokens { Answer::Passed } else { Answer::Unauthenticated };
            assert!(answer == expected || takes_tokens && wrong.is_some(), "{row:?} with {wrong:?}: {answer:?}");
        }
        for (index, (name, key)) in keys.iter().enumerate() {
            let least = ROLES.iter().position(|(role, _)| Some(*role) == row.role).unwrap_or(0);
            let expected = if index >= least { Answer::Passed } else { Answer::Denied };
            assert_eq!(ask(&channel, row, Some(key)).await, expected, "{row:?} as {name}");
        }
    }
    system.stop().await;
}

async fn client(system: &System, request: CreateKeyRequest) -> Client {
    let secret = system.client.create_key(request).await.expect("issued").secret;
    Client::connect(&format!("http://{}", system.address()), &secret).await.expect("the server answers")
}

fn named(name: &str) -> CreateSandboxRequest {
    CreateSandboxRequest { name: name.into(), wait: true, ..Default::default() }
}

async fn run(client: &Client, sandbox: &str) -> Result<(), Code> {
    let start = v1::StartProcess { args: vec!["count".into(), "1".into()], ..Default::default() };
    client.run(sandbox, start).await.map(drop).map_err(|error| error.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_changes_and_uses_its_own_sandboxes_and_sees_the_others() {
    let system = System::start().await;
    let member = |name: &str| CreateKeyRequest { name: name.into(), ..Default::default() };
    let (ann, bob) = (client(&system, member("ann")).await, client(&system, member("bob")).await);
    let mine = ann.create(named("mine")).await.expect("created");
    assert_eq!(bob.get("mine").await.expect("it is seen").id, mine.id);
    for sandbox in ["mine", mine.id.as_str()] {
        assert_eq!(bob.stop(sandbox, false).await.map(drop).map_err(|error| error.code), Err(Code::PermissionDenied));
        assert_eq!(bob.start(sandbox, false).await.map(drop).map_err(|error| error.code), Err(Code::PermissionDenied));
        let deleted = bob.delete(sandbox, true, false).await.map(drop).map_err(|error| error.code);
        assert_eq!(deleted, Err(Code::PermissionDenied));
        assert_eq!(run(&bob, sandbox).await, Err(Code::PermissionDenied));
        assert_eq!(run(&ann, sandbox).await, Ok(()));
    }
    // A key that replaces another is the same account.
    let rotated = system.client.rotate_key(RotateKeyRequest { key: "ann".into(), overlap_secs: Some(0) }).await;
    let secret = rotated.expect("rotated").secret;
    assert_eq!(ann.get("mine").await.expect_err("the old one has ended").code, Code::Unauthenticated);
    let ann = Client::connect(&format!("http://{}", system.address()), &secret).await.expect("the server answers");
    assert_eq!(run(&ann, "mine").await, Ok(()));
    ann.delete("mine", false, true).await.expect("deleted");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_a_scope_reaches_nothing_beyond_it() {
    let system = System::start().await;
    let other = system.client.create(named("other")).await.expect("created");
    let request = CreateKeyRequest { name: "team".into(), group: "team".into(), ..Default::default() };
    let team = client(&system, request).await;
    let mine = team.create(named("mine")).await.expect("created");
    assert_eq!(mine.group, "team", "it creates in its own group");
    let elsewhere = CreateSandboxRequest { group: "else".into(), ..named("x") };
    assert_eq!(team.create(elsewhere).await.expect_err("another group").code, Code::PermissionDenied);
    let seen: Vec<String> = {
        let list = team.list_all(ListSandboxesRequest::default()).await.expect("listed");
        list.into_iter().map(|sandbox| sandbox.name).collect()
    };
    assert_eq!(seen, ["mine"]);
    for sandbox in ["other", other.id.as_str()] {
        assert_eq!(team.get(sandbox).await.expect_err("not there for it").code, Code::NotFound);
        assert_eq!(team.delete(sandbox, true, false).await.expect_err("nor to delete").code, Code::NotFound);
        assert_eq!(team.logs(sandbox).await.expect_err("nor its logs").code, Code::NotFound);
        assert_eq!(team.job(&other.job_id).await.expect_err("nor its job").code, Code::NotFound);
        assert_eq!(team.list_processes(sandbox, true).await.expect_err("nor its processes").code, Code::NotFound);
        assert_eq!(run(&team, sandbox).await, Err(Code::NotFound));
    }
    let jobs = team.jobs(v1::ListJobsRequest::default()).await.expect("listed").jobs;
    assert!(!jobs.is_empty() && jobs.iter().all(|job| job.sandbox_id == mine.id), "{jobs:?}");
    // A key for one sandbox: it reads that one, and creates none.
    let sandbox_ids = vec![other.id.clone()];
    let request = CreateKeyRequest { name: "one".into(), role: Role::Viewer.into(), sandbox_ids, ..Default::default() };
    let one = client(&system, request).await;
    assert_eq!(one.get("other").await.expect("its own").id, other.id);
    assert_eq!(one.get("mine").await.expect_err("not there for it").code, Code::NotFound);
    assert_eq!(one.create(named("y")).await.expect_err("a viewer").code, Code::PermissionDenied);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_or_expires_ends_what_it_has_opened() {
    let system = System::start().await;
    let follow = v1::WatchEventsRequest::default;
    for expires_in_secs in [0, 3] {
        let issued = CreateKeyRequest {
            name: format!("short-{expires_in_secs}"),
            role: Role::Member.into(),
            expires_in_secs,
            ..Default::default()
        };
        let issued = system.client.create_key(issued).await.expect("issued");
        let theirs =
            Client::connect(&format!("http://{}", system.address()), &issued.secret).await.expect("it connects");
        let mut events = theirs.events(follow()).await.expect("it follows");
        let url = format!("http://{}/api/v1/events?after=0", system.address());
        let mut curl = std::process::Command::new("curl")
            .args(["--silent", "--no-buffer", "--header", &format!("x-api-key: {}", issued.secret), &url])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("curl is installed");
        theirs.create(named(&format!("box-{expires_in_secs}"))).await.expect("created");
        let mut stdout = curl.stdout.take().expect("piped");
        let read = tokio::task::spawn_blocking(move || stdout.read_exact(&mut [0]).map(|()| stdout));
        let _stdout = read.await.expect("no panic").expect("it is told what happens");
        if expires_in_secs == 0 {
            system.client.revoke_key(&issued.key.expect("told").id).await.expect("revoked");
        }
        let ended = async {
            loop {
                if let Err(error) = events.next().await {
                    return error;
                }
            }
        };
        let error = tokio::time::timeout(SOON, ended).await.expect("the stream ends");
        assert_eq!(error.code, Code::Unauthenticated, "{error}");
        let cut = tokio::task::spawn_blocking(move || curl.wait().expect("ours"));
        let cut = tokio::time::timeout(SOON, cut).await.expect("the answer over REST ends").expect("no panic");
        assert!(!cut.success(), "it was cut, and did not end well");
        // Those of others go on.
        system.client.events(follow()).await.expect("the administrator's key opens");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_those_who_may_start_a_sandbox_wake_it() {
    let system = System::start().await;
    let key = |name: &str, role: Role| CreateKeyRequest { name: name.into(), role: role.into(), ..Default::default() };
    let (ann, bob) = (client(&system, key("ann", Role::Member)).await, client(&system, key("bob", Role::Member)).await);
    let viewer = client(&system, key("viewer", Role::Viewer)).await;
    ann.create(named("mine")).await.expect("created");
    system.client.drain_runner("fake-1").await.expect("drained");
    let stopped = v1::WaitSandboxRequest {
        sandbox: "mine".into(),
        states: vec![v1::SandboxState::Stopped.into()],
        ..Default::default()
    };
    system.client.wait(stopped).await.expect("it is parked");
    system.client.uncordon_runner("fake-1").await.expect("it takes sandboxes again");
    for other in [&bob, &viewer] {
        let error = other.list_processes("mine", false).await.expect_err("it sleeps");
        assert_eq!((error.code, error.reason.as_str()), (Code::FailedPrecondition, "sandbox_not_running"));
    }
    assert_eq!(system.client.get("mine").await.expect("there").state(), v1::SandboxState::Stopped);
    assert_eq!(run(&ann, "mine").await, Ok(()));
    let running = v1::WaitSandboxRequest { sandbox: "mine".into(), ..Default::default() };
    system.client.wait(running).await.expect("it runs");
    system.stop().await;
}
