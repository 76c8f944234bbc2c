//! The control plane over real sockets, with the fake backend: what is wanted, what is told, what outlives a
//! restart.

use std::time::Duration;

use bytes::Bytes;
use dispense_backend::BoxExit;
use dispense_backend::fake::{Fault, Step};
use dispense_client::v1::{CreateSandboxRequest, ListJobsRequest, ListSandboxesRequest, SandboxSpec, SandboxState};
use dispense_client::{Client, Code, v1};
use dispense_e2e::System;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

fn named(name: &str) -> CreateSandboxRequest {
    CreateSandboxRequest { name: name.to_owned(), wait: true, ..Default::default() }
}

/// One REST call; status and JSON.
async fn rest(
    system: &System,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: Option<Value>,
) -> (StatusCode, Value) {
    let stream = tokio::net::TcpStream::connect(system.address()).await.expect("it accepts");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "x");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(body))).expect("valid");
    let response = sender.send_request(request).await.expect("an answer");
    let status = response.status();
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_lives_through_every_state_and_each_change_is_a_job() {
    let system = System::start().await;
    let client = &system.client;
    let created = client.create(named("web")).await.expect("created");
    assert_eq!((created.state(), created.generation), (SandboxState::Running, 1));
    assert_eq!(client.stop("web", true).await.expect("stopped").state(), SandboxState::Stopped);
    assert_eq!(client.stop("web", true).await.expect("a repeated stop succeeds").state(), SandboxState::Stopped);
    assert_eq!(client.start("web", true).await.expect("started").state(), SandboxState::Running);
    assert_eq!(client.delete(&created.id, false, true).await.expect("deleted").state(), SandboxState::Deleted);
    assert_eq!(client.delete(&created.id, false, true).await.expect("again").state(), SandboxState::Deleted);
    let request = ListJobsRequest { sandbox: created.id.clone(), ..Default::default() };
    let jobs = client.jobs(request).await.expect("listed").jobs;
    let kinds: Vec<_> = jobs.iter().rev().map(|job| (job.r#type(), job.status())).collect();
    use v1::JobStatus::Completed;
    use v1::JobType::{Create, Delete, Start, Stop};
    assert_eq!(kinds, [(Create, Completed), (Stop, Completed), (Start, Completed), (Delete, Completed)]);
    assert!(client.list(ListSandboxesRequest::default()).await.expect("listed").sandboxes.is_empty());
    // The name is free again, and means the new one.
    let again = client.create(named("web")).await.expect("created");
    assert_ne!(again.id, created.id);
    assert_eq!(client.get("web").await.expect("there").id, again.id);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_create_says_why_and_can_be_started_again() {
    let system = System::start().await;
    system.machine.script(Step::Create, Some(Fault::Fail));
    let failed = system.client.create(named("web")).await.expect("recorded");
    assert_eq!(failed.state(), SandboxState::Failed);
    assert!(failed.reason.contains("the script says so"), "{}", failed.reason);
    let job = system.client.job(&failed.job_id).await.expect("recorded");
    assert_eq!((job.status(), job.error.as_str()), (v1::JobStatus::Failed, failed.reason.as_str()));
    system.machine.script(Step::Create, None);
    let started = system.client.start("web", true).await.expect("started");
    assert_eq!((started.state(), started.generation), (SandboxState::Running, 2), "a new placement is fenced");
    system.client.delete("web", false, true).await.expect("deleted");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_fails_its_sandbox_and_start_brings_it_back() {
    let system = System::start().await;
    let created = system.client.create(named("web")).await.expect("created");
    system.machine.kill_agent(&created.id.parse().expect("an id"), BoxExit { out_of_memory: true });
    let states = vec![SandboxState::Failed.into()];
    let request = v1::WaitSandboxRequest { sandbox: "web".into(), states, ..Default::default() };
    let failed = system.client.wait(request).await.expect("it is noticed");
    assert!(failed.reason.contains("memory"), "{}", failed.reason);
    let started = system.client.start("web", true).await.expect("started");
    assert_eq!((started.state(), started.generation), (SandboxState::Running, 1), "with its files");
    system.client.delete("web", false, true).await.expect("deleted");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_boxes_outlive_a_restart_of_the_server() {
    let mut system = System::start().await;
    let created = system.client.create(named("web")).await.expect("created");
    let stopped = system.client.create(named("idle")).await.expect("created");
    system.client.stop("idle", true).await.expect("stopped");
    system.restart_server().await;
    let after = system.client.get("web").await.expect("there");
    assert_eq!((&after.id, after.state(), after.generation), (&created.id, SandboxState::Running, 1));
    assert_eq!(system.client.get(&stopped.id).await.expect("there").state(), SandboxState::Stopped);
    assert_eq!(system.client.runners().await.expect("listed").len(), 1, "the runner is known by its credential");
    system.client.delete("web", false, true).await.expect("deleted");
    system.client.delete("idle", false, true).await.expect("deleted");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn force_forgets_a_sandbox_whose_runner_is_gone_and_its_box_goes_when_it_is_back() {
    let mut system = System::start().await;
    let created = system.client.create(named("web")).await.expect("created");
    system.stop_runner().await;
    let offline = tokio::time::timeout(Duration::from_secs(10), async {
        while system.client.runners().await.expect("listed")[0].status() != v1::RunnerStatus::Offline {
            tokio::task::yield_now().await;
        }
    });
    offline.await.expect("a runner that hung up is offline");
    let deleted = system.client.delete("web", true, true).await.expect("forgotten");
    assert_eq!(deleted.state(), SandboxState::Deleted);
    system.start_runner().await;
    // The name is free, and the old box does not come back as the new sandbox's.
    let again = system.client.create(named("web")).await.expect("created");
    assert_ne!(again.id, created.id);
    let backend = dispense_backend::fake::Fake::on(system.machine.clone());
    let only_new = tokio::time::timeout(Duration::from_secs(10), async {
        while dispense_backend::Backend::list(&backend).await.expect("listed").len() != 1 {
            tokio::task::yield_now().await;
        }
    });
    only_new.await.expect("the forgotten box is removed");
    system.client.delete("web", false, true).await.expect("deleted");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_runner_can_do_is_refused_and_what_one_may_do_later_waits() {
    let mut system = System::start().await;
    let spec = |template: &str, target: &str| SandboxSpec {
        template: template.into(),
        target: target.into(),
        ..Default::default()
    };
    let create = |spec| CreateSandboxRequest { spec: Some(spec), ..Default::default() };
    let unknown = system.client.create(create(spec("nope", ""))).await.expect_err("no such template");
    assert_eq!((unknown.code, unknown.reason.as_str()), (Code::InvalidArgument, "template_unknown"));
    assert!(unknown.message.contains("host"), "{}", unknown.message);
    let nowhere = system.client.create(create(spec("", "elsewhere"))).await.expect_err("no such runner");
    assert_eq!((nowhere.code, nowhere.reason.as_str()), (Code::FailedPrecondition, "no_runner_fits"));
    assert!(nowhere.message.contains("fake-1"), "{}", nowhere.message);
    let by_label = system.client.create(create(spec("", "zone=a"))).await.expect("a label finds the runner");
    system.client.delete(&by_label.id, false, true).await.expect("deleted");
    system.stop_runner().await;
    let waiting = loop {
        let waiting = system.client.create(create(spec("", ""))).await.expect("recorded");
        if waiting.state() == SandboxState::Pending {
            break waiting;
        }
    };
    assert!(waiting.waiting_for["fake-1"].contains("offline"), "{:?}", waiting.waiting_for);
    system.start_runner().await;
    let request = v1::WaitSandboxRequest { sandbox: waiting.id.clone(), ..Default::default() };
    assert_eq!(system.client.wait(request).await.expect("placed").state(), SandboxState::Running);
    for sandbox in system.client.list_all(ListSandboxesRequest::default()).await.expect("listed") {
        system.client.delete(&sandbox.id, false, true).await.expect("deleted");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_ends_with_its_lease_and_with_its_ttl() {
    let system = System::start().await;
    let spec = SandboxSpec { ttl_secs: 1, ..Default::default() };
    let request = CreateSandboxRequest { name: "short".into(), spec: Some(spec), wait: true, ..Default::default() };
    let created = system.client.create(request).await.expect("created");
    let states = vec![SandboxState::Deleted.into()];
    let request = v1::WaitSandboxRequest { sandbox: created.id, states, timeout_secs: 20, revision: 0 };
    system.client.wait(request).await.expect("deleted by the sweep");
    let error = system.client.renew("short").await.expect_err("it is gone");
    assert_eq!(error.code, Code::NotFound);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_cover_everything_once() {
    let system = System::start().await;
    let mut ids = std::collections::BTreeSet::new();
    for index in 0..25 {
        let labels = [("parity".to_owned(), (index % 2).to_string())].into();
        let request = CreateSandboxRequest { labels, group: "pages".into(), ..Default::default() };
        ids.insert(system.client.create(request).await.expect("created").id);
    }
    let request = ListSandboxesRequest { page_size: 7, ..Default::default() };
    let listed = system.client.list_all(request).await.expect("listed");
    assert_eq!(listed.len(), 25);
    assert_eq!(listed.into_iter().map(|row| row.id).collect::<std::collections::BTreeSet<_>>(), ids);
    let labels = [("parity".to_owned(), "1".to_owned())].into();
    let request = ListSandboxesRequest { labels, page_size: 5, group: "pages".into(), ..Default::default() };
    assert_eq!(system.client.list_all(request).await.expect("listed").len(), 12);
    let wrong = ListSandboxesRequest { page_token: "no-token".into(), ..Default::default() };
    assert_eq!(system.client.list(wrong).await.expect_err("refused").code, Code::InvalidArgument);
    for id in ids {
        system.client.delete(&id, false, false).await.expect("deleted");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_shows_and_changes_what_grpc_does() {
    let system = System::start().await;
    let key = Some(system.key());
    let body = json!({"name": "web", "wait": true, "spec": {"memoryBytes": 134_217_728, "env": {"A": "1"}}, "labels": {"team": "x"}});
    let (status, created) = rest(&system, Method::POST, "/api/v1/sandboxes", key, Some(body.clone())).await;
    assert_eq!((status, created["state"].as_str()), (StatusCode::CREATED, Some("running")), "{created}");
    assert_eq!(created["spec"]["memoryBytes"], 134_217_728);
    let (status, taken) = rest(&system, Method::POST, "/api/v1/sandboxes", key, Some(body)).await;
    assert_eq!((status, taken["code"].as_str()), (StatusCode::CONFLICT, Some("already_exists")));
    let (status, wrong) =
        rest(&system, Method::POST, "/api/v1/sandboxes", key, Some(json!({"spec": {"memory": 1}}))).await;
    assert_eq!((status, wrong["code"].as_str()), (StatusCode::BAD_REQUEST, Some("invalid_argument")));
    assert!(wrong["message"].as_str().is_some_and(|text| text.contains("memory")), "{wrong}");
    let (_, list) = rest(&system, Method::GET, "/api/v1/sandboxes?labels=team=x&state=running", key, None).await;
    assert_eq!(list["sandboxes"].as_array().map(Vec::len), Some(1));
    let (_, jobs) = rest(&system, Method::GET, "/api/v1/jobs?sandbox=web", key, None).await;
    assert_eq!(
        (jobs["jobs"][0]["type"].as_str(), jobs["jobs"][0]["status"].as_str()),
        (Some("create"), Some("completed"))
    );
    let id = jobs["jobs"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(rest(&system, Method::GET, &format!("/api/v1/jobs/{id}"), key, None).await.0, StatusCode::OK);
    let (_, runners) = rest(&system, Method::GET, "/api/v1/runners", key, None).await;
    assert_eq!(runners["runners"][0]["status"], "available");
    let (_, stopped) = rest(&system, Method::POST, "/api/v1/sandboxes/web/stop?wait=true", key, None).await;
    assert_eq!(stopped["state"], "stopped");
    let (status, gone) = rest(&system, Method::DELETE, "/api/v1/sandboxes/web?wait=true", key, None).await;
    assert_eq!((status, gone["state"].as_str()), (StatusCode::OK, Some("deleted")));
    let (status, missing) = rest(&system, Method::GET, "/api/v1/sandboxes/web", key, None).await;
    assert_eq!((status, missing["code"].as_str()), (StatusCode::NOT_FOUND, Some("not_found")));
    assert_eq!(rest(&system, Method::GET, "/readyz", None, None).await.0, StatusCode::OK);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_health_answers_without_a_key() {
    let system = System::start().await;
    let created = system.client.create(named("web")).await.expect("created");
    let paths = [
        (Method::GET, "/api/v1/sandboxes"),
        (Method::POST, "/api/v1/sandboxes"),
        (Method::GET, "/api/v1/sandboxes/web"),
        (Method::DELETE, "/api/v1/sandboxes/web"),
        (Method::POST, "/api/v1/sandboxes/web/stop"),
        (Method::GET, "/api/v1/jobs"),
        (Method::GET, "/api/v1/runners"),
    ];
    for (method, path) in paths {
        for token in [None, Some("dsp_0000000000000000000000000000000000000000"), Some("x")] {
            let (status, body) = rest(&system, method.clone(), path, token, Some(json!({}))).await;
            assert_eq!(
                (status, body["code"].as_str()),
                (StatusCode::UNAUTHORIZED, Some("unauthenticated")),
                "{method} {path}"
            );
        }
    }
    let query = format!("/api/v1/sandboxes?api_key={}", system.key());
    assert_eq!(rest(&system, Method::GET, &query, None, None).await.0, StatusCode::UNAUTHORIZED, "never in a query");
    let stranger = Client::connect(&format!("http://{}", system.address()), "dsp_wrong").await.expect("connected");
    let start = v1::StartProcess { args: vec!["true".into()], ..Default::default() };
    for error in [
        stranger.get("web").await.map(drop).expect_err("refused"),
        stranger.runners().await.map(drop).expect_err("refused"),
        stranger.list_processes(&created.id, true).await.map(drop).expect_err("refused"),
        stranger.run(&created.id, start).await.map(drop).expect_err("refused"),
    ] {
        assert_eq!(error.code, Code::Unauthenticated, "{error}");
    }
    assert_eq!(system.client.get("web").await.expect("untouched").state(), SandboxState::Running);
    system.client.delete("web", false, true).await.expect("deleted");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_needs_the_sandboxs_own_token_and_a_whole_body() {
    let system = System::start().await;
    let created = system.client.create(named("web")).await.expect("created");
    let path = format!("/api/v1/sandboxes/{}/status", created.id);
    let beat = json!({
        "sandboxId": created.id, "status": "running", "uptimeSecs": 3, "hostname": "web",
        "timestamp": "2026-01-01T00:00:00Z", "cpuPercent": 1.5, "memoryMB": 20, "sessionCount": 0, "metadata": {"a": 1},
    });
    for token in [None, Some(system.key()), Some("dst_0000000000000000000000000000000000000000")] {
        let (status, _) = rest(&system, Method::POST, &path, token, Some(beat.clone())).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    let (status, _) =
        rest(&system, Method::POST, "/api/v1/sandboxes/nonsense/status", Some("x"), Some(beat.clone())).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let unknown = "/api/v1/sandboxes/sbx00000000000000000000/status";
    assert_eq!(rest(&system, Method::POST, unknown, Some("x"), Some(beat.clone())).await.0, StatusCode::NOT_FOUND);
    let backend = dispense_backend::fake::Fake::on(system.machine.clone());
    let token = backend.environment(&created.id.parse().expect("an id"))["AGENT_TOKEN"].clone();
    let (status, answer) = rest(&system, Method::POST, &path, Some(&token), Some(beat.clone())).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({"success": true, "sandboxId": created.id})));
    for (field, value) in [
        ("status", json!("odd")),
        ("timestamp", json!("today")),
        ("uptimeSecs", json!(-1)),
        ("sandboxId", json!("other")),
    ] {
        let mut wrong = beat.clone();
        wrong[field] = value;
        let (status, body) = rest(&system, Method::POST, &path, Some(&token), Some(wrong)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{field}: {body}");
    }
    // It opens nothing else.
    assert_eq!(rest(&system, Method::GET, "/api/v1/sandboxes", Some(&token), None).await.0, StatusCode::UNAUTHORIZED);
    let (_, shown) = rest(&system, Method::GET, "/api/v1/sandboxes/web", Some(system.key()), None).await;
    assert_eq!(shown["agentInfo"]["metrics"], json!({"cpuPercent": 1.5, "memoryMB": 20, "sessionCount": 0}), "{shown}");
    assert_eq!(shown["agentInfo"]["hostname"], "web");
    system.client.delete("web", false, true).await.expect("deleted");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_tries_each_item_and_tells_each_result_in_its_place() {
    let system = System::start().await;
    let named = |name: &str| CreateSandboxRequest { name: name.into(), wait: true, ..Default::default() };
    let created = system.client.batch_create(vec![named("a"), named("No Name"), named("b"), named("a")]).await;
    let created = created.expect("it was tried");
    assert_eq!(created[0].as_ref().expect("created").name, "a");
    assert_eq!(created[1].as_ref().expect_err("no name").details["field"], "name");
    assert_eq!(created[2].as_ref().expect("created").state(), SandboxState::Running);
    assert_eq!(created[3].as_ref().expect_err("taken").code, Code::AlreadyExists);
    let start = v1::StartProcess { args: vec!["count".into(), "100000".into()], ..Default::default() };
    let sandboxes = ["a", "nobody", "b"].map(str::to_owned).to_vec();
    let request = v1::BatchExecRequest { sandboxes, start: Some(start), timeout_secs: 30 };
    let run = system.client.batch_exec(request).await.expect("it was tried");
    for index in [0, 2] {
        assert!(run[index].error.is_none() && run[index].exited.is_some(), "{:?}", run[index]);
        assert!(run[index].truncated && run[index].stdout.len() == 64 << 10, "the end of what it wrote");
    }
    assert_eq!(run[1].error.as_ref().expect("there is none").code, "not_found");
    let sandboxes = ["a", "nobody", "b"].map(str::to_owned).to_vec();
    let request = v1::BatchDeleteSandboxesRequest { sandboxes, wait: true, ..Default::default() };
    let deleted = system.client.batch_delete(request).await.expect("it was tried");
    assert_eq!(deleted[0].as_ref().expect("deleted").state(), SandboxState::Deleted);
    assert_eq!(deleted[1].as_ref().expect_err("there is none").code, Code::NotFound);
    let many = v1::BatchExecRequest { sandboxes: vec!["a".into(); 101], ..Default::default() };
    assert_eq!(system.client.batch_exec(many).await.expect_err("too many").code, Code::InvalidArgument);
    system.stop().await;
}

/// A balancer stops sending to a server that is about to end.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_watch_its_health_see_the_server_drain() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let system = System::start().await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", system.address())).expect("an address");
    let mut client = HealthClient::new(endpoint.connect().await.expect("it accepts"));
    let mut watches = Vec::new();
    for service in ["", "dispense.DispenseService"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut watch = client.watch(request).await.expect("health is open").into_inner();
        let first = watch.message().await.expect("a stream").expect("a status");
        assert_eq!(first.status(), ServingStatus::Serving, "`{service}`");
        watches.push(watch);
    }
    let seen = async {
        for watch in &mut watches {
            let next = watch.message().await.expect("a stream").expect("a status");
            assert_eq!(next.status(), ServingStatus::NotServing);
        }
        // The drain waits for their end.
        drop(watches);
    };
    tokio::join!(system.stop(), seen);
}
