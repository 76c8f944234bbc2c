//! One session with an agent carries one call after the other, and nothing of one call gets into the next.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::BytesMut;
use dispense_api::agent::{Call, ShutdownRequest};
use dispense_api::frame;
use dispense_api::method::Method;
use dispense_api::v1::run_process_request::Kind;
use dispense_client::v1::{self, CreateSandboxRequest};
use dispense_e2e::curl::Curl;
use dispense_e2e::{Host, Mode, System};

/// The value of a counter in the metrics' text.
fn count(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {metrics}"));
    line.trim().parse().expect("a number")
}

/// Calls of agents, and sessions that were opened for them.
fn counts(metrics: &str) -> (u64, u64) {
    (count(metrics, "dispense_agent_calls_total "), count(metrics, "dispense_sessions_opened_total "))
}

fn counts_of(curl: &Curl) -> (u64, u64) {
    counts(&String::from_utf8_lossy(&curl.ask("/metrics", &[]).body))
}

#[test]
fn calls_go_over_the_sessions_of_those_before_them() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        let curl = Curl::of(&up);
        host.ok(&["create", "--name", "box"]);
        let (calls, opened) = counts_of(&curl);
        for round in 0..10 {
            let text = format!("round {round}");
            let file = format!("/api/v1/sandboxes/box/files?path=/workspace/{round}.txt");
            let written = curl.ask(&file, &["--request", "PUT", "--data-binary", &text]);
            assert_eq!(written.status, 200, "{written:?}");
            assert_eq!(curl.ask(&file, &[]).body, text.as_bytes());
            assert_eq!(host.ok(&["exec", "box", "--", "cat", &format!("/workspace/{round}.txt")]), text);
        }
        let after = counts_of(&curl);
        assert!(after.0 - calls >= 30, "{after:?}");
        // The first call to an agent learns that it keeps sessions, and a caller may be gone before its call is quite over.
        assert!(after.1 - opened <= 5, "{} sessions for {} calls", after.1 - opened, after.0 - calls);
        // A start has an agent of its own.
        host.ok(&["stop", "box"]);
        host.ok(&["start", "box"]);
        assert_eq!(host.ok(&["exec", "box", "--", "echo", "again"]), "again\n");
        host.ok(&["delete", "box"]);
        up.stop();
        host.finish();
    }
}

/// Answer to a gRPC-Web call with this body: its trailers are in the answer's.
fn grpc(up: &Curl, path: &str, body: &[u8]) -> String {
    grpc_of(up, path, body, body.len())
}

/// The same for a body that goes on after what is sent of it, until the answer has come.
fn grpc_of(up: &Curl, path: &str, body: &[u8], length: usize) -> String {
    let (address, key) = up.address_and_key();
    let mut stream = TcpStream::connect(address).expect("it accepts");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("not zero");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/grpc-web+proto\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("taken");
    stream.write_all(body).expect("taken");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    // In the head where it is refused at once, else at the end.
    String::from_utf8_lossy(&answer).to_lowercase().replace("grpc-status: ", "grpc-status:")
}

#[test]
fn a_caller_cannot_end_its_requests_in_the_servers_name() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let curl = Curl::of(&up);
    host.ok(&["create", "--name", "box"]);
    let first_process = || host.ok(&["exec", "box", "--", "cut", "-d ", "-f22", "/proc/1/stat"]);
    let agent = first_process();
    // From now on the session is kept, and its agent known to keep it.
    for _ in 0..3 {
        host.ok(&["exec", "box", "--", "true"]);
    }
    let mut honest = BytesMut::new();
    let start = v1::StartProcess { args: vec!["sleep".into(), "1".into()], ..Default::default() };
    frame::encode(&v1::RunProcessRequest { sandbox: "box".into(), kind: Some(Kind::Start(start)) }, &mut honest);
    let mut forged = BytesMut::new();
    let shut_down = Call { method: Method::Shutdown.path().to_owned(), keep: true, ..Call::default() };
    frame::encode(&shut_down, &mut forged);
    frame::encode(&ShutdownRequest::default(), &mut forged);
    forged.extend_from_slice(&frame::END);
    let path = "/dispense.v1.ProcessService/RunProcess";
    let with = |between: &[u8]| [&honest[..], between, &forged].concat();
    // As the server's end, as a status, as what is neither, and as an end that is hidden in a cut.
    for between in [&frame::END[..], &[0x80, 0, 0, 0, 0], &[0xc0, 0, 0, 0, 0], &[0x40, 0, 0, 0, 5]] {
        let answer = grpc(&curl, path, &with(between));
        assert!(answer.contains("grpc-status:3") && answer.contains("unknown%20flags"), "{between:?}: {answer}");
    }
    // A request that ends inside a message takes nothing of the next call for its rest.
    let cut = [&honest[..], &[0, 0, 0, 1, 0, 7, 7]].concat();
    let answer = grpc(&curl, path, &cut);
    assert!(answer.contains("grpc-status:3"), "{answer}");
    for round in 0..20 {
        assert_eq!(host.ok(&["exec", "box", "--", "echo", &round.to_string()]), format!("{round}\n"));
    }
    assert_eq!(first_process(), agent, "it was asked to end");
    host.ok(&["delete", "box"]);
    up.stop();
    host.finish();
}

#[test]
fn a_message_that_has_begun_when_its_call_is_answered_takes_nothing_of_the_next() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let curl = Curl::of(&up);
    host.ok(&["create", "--name", "box"]);
    let mut body = BytesMut::new();
    frame::encode(&v1::StatFileRequest { sandbox: "box".into(), path: "/".into(), follow: false }, &mut body);
    // Half a header, a header, and the beginning of a message.
    for begun in [&[0, 0][..], &[0, 0, 1, 0, 0], &[0, 0, 1, 0, 0, 0x0a, 0xff]] {
        for _ in 0..3 {
            host.ok(&["exec", "box", "--", "true"]);
        }
        let part = [&body[..], begun].concat();
        let answer = grpc_of(&curl, "/dispense.v1.FileService/StatFile", &part, 1 << 20);
        assert!(answer.contains("grpc-status:0"), "{begun:?}: {answer}");
        let asked = std::time::Instant::now();
        for round in 0..3 {
            assert_eq!(host.ok(&["exec", "box", "--", "echo", &round.to_string()]), format!("{round}\n"));
        }
        // An agent that took the next call for the rest of the message would have waited for more of it.
        assert!(asked.elapsed() < Duration::from_secs(9), "{begun:?}: {:?}", asked.elapsed());
    }
    host.ok(&["delete", "box"]);
    up.stop();
    host.finish();
}

#[tokio::test]
async fn agents_of_older_versions_have_a_session_a_call() {
    let system = System::start().await;
    let curl = |system: &System| {
        let (address, key) = (system.address(), system.key().to_owned());
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).expect("it accepts");
            let head =
                format!("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\r\n");
            stream.write_all(head.as_bytes()).expect("taken");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            counts(&answer)
        })
    };
    let run = async |system: &System| {
        let start = v1::StartProcess { args: vec!["count".into(), "10".into()], ..Default::default() };
        let mut process = system.client.run("box", start).await.expect("it starts");
        while process.events.next().await.expect("it goes on").is_some() {}
    };
    let create = CreateSandboxRequest { name: "box".into(), wait: true, ..Default::default() };
    system.client.create(create).await.expect("created");
    let before = curl(&system).await.expect("no panic");
    for _ in 0..5 {
        run(&system).await;
    }
    let kept = curl(&system).await.expect("no panic");
    assert_eq!(kept.0 - before.0, 5);
    assert_eq!(kept.1 - before.1, 1, "{before:?} {kept:?}");
    system.machine.make_agents_old();
    for _ in 0..5 {
        run(&system).await;
    }
    let old = curl(&system).await.expect("no panic");
    assert!(old.1 - kept.1 >= 4, "{kept:?} {old:?}");
    system.stop().await;
}
