//! What a caller that lost its connection does: the same start again, the same input again, the rest of the output.

use bytes::Bytes;
use dispense_api::method::Method;
use dispense_api::v1::process_event::Kind;
use dispense_api::v1::{self, process_input};

use crate::harness::{Call, Sandbox, code, run_start, sh};

fn attach(open: v1::AttachProcess) -> v1::AttachProcessRequest {
    v1::AttachProcessRequest { sandbox: String::new(), kind: Some(v1::attach_process_request::Kind::Open(open)) }
}

fn data(offset: u64, data: &'static str) -> v1::ProcessInput {
    v1::ProcessInput { kind: Some(process_input::Kind::Data(Bytes::from(data))), offset }
}

async fn event(call: &mut Call) -> Kind {
    call.message::<v1::ProcessEvent>().await.kind.expect("known")
}

async fn started(call: &mut Call) -> v1::Process {
    match event(call).await {
        Kind::Started(process) => process,
        other => panic!("{other:?} instead of the start"),
    }
}

#[tokio::test]
async fn a_start_that_is_repeated_with_its_key_starts_nothing() {
    let sandbox = Sandbox::new();
    let start = || v1::StartProcess { key: "k1".into(), stdin: true, ..sh("echo once >> ran; cat") };
    let mut first = sandbox.call(Method::RunProcess);
    first.send(&run_start(start())).await;
    let pid = started(&mut first).await.pid;
    drop(first);
    let mut second = sandbox.call(Method::RunProcess);
    second.send(&run_start(start())).await;
    assert_eq!(started(&mut second).await.pid, pid);
    let input = v1::RunProcessRequest {
        sandbox: String::new(),
        kind: Some(v1::run_process_request::Kind::Input(v1::ProcessInput {
            kind: Some(process_input::Kind::Eof(true)),
            offset: 0,
        })),
    };
    second.send(&input).await;
    assert_eq!(code(&second.output().await.2), 0);
    assert_eq!(std::fs::read_to_string(sandbox.path().join("ran")).expect("it ran"), "once\n");
}

#[tokio::test]
async fn input_that_is_sent_again_is_taken_once() {
    let sandbox = Sandbox::new();
    let start = v1::StartProcess { key: "k2".into(), stdin: true, ..sh("cat") };
    let mut first = sandbox.call(Method::RunProcess);
    first.send(&run_start(start)).await;
    let pid = started(&mut first).await.pid;
    let input = |input| v1::RunProcessRequest {
        sandbox: String::new(),
        kind: Some(v1::run_process_request::Kind::Input(input)),
    };
    first.send(&input(data(0, "hello "))).await;
    loop {
        if let Kind::InputTaken(taken) = event(&mut first).await {
            assert_eq!(taken.offset, 6);
            break;
        }
    }
    drop(first);
    let mut second = sandbox.call(Method::AttachProcess);
    let process = Some(v1::ProcessRef::by_pid(pid));
    second.send(&attach(v1::AttachProcess { process, writer: "k2".into(), ..Default::default() })).await;
    assert_eq!(started(&mut second).await.pid, pid);
    let input = |input| v1::AttachProcessRequest {
        sandbox: String::new(),
        kind: Some(v1::attach_process_request::Kind::Input(input)),
    };
    // The caller does not know how much of it was taken, so it begins anew, in other pieces.
    second.send(&input(data(0, "hel"))).await;
    second.send(&input(data(3, "lo world"))).await;
    second.send(&input(v1::ProcessInput { kind: Some(process_input::Kind::Eof(true)), offset: 0 })).await;
    assert_eq!(second.output().await.0, "hello world");
}

#[tokio::test]
async fn input_with_a_hole_is_refused() {
    let sandbox = Sandbox::new();
    let start = v1::StartProcess { key: "k3".into(), stdin: true, ..sh("cat") };
    let mut call = sandbox.call(Method::RunProcess);
    call.send(&run_start(start)).await;
    let input = v1::RunProcessRequest {
        sandbox: String::new(),
        kind: Some(v1::run_process_request::Kind::Input(data(5, "x"))),
    };
    call.send(&input).await;
    let status = call.status().await;
    assert_eq!((status.code.as_str(), status.reason.as_str()), ("invalid_argument", "input_failed"));
}

#[tokio::test]
async fn a_size_takes_its_place_among_the_input() {
    let sandbox = Sandbox::new();
    let pty = v1::Pty { cols: 80, rows: 24, term: String::new() };
    let mut call = sandbox.call(Method::RunProcess);
    let script = "stty -echo; echo ready; read a; stty size; read b; stty size";
    call.send(&run_start(v1::StartProcess { pty: Some(pty), ..sh(script) })).await;
    let mut seen = String::new();
    while !seen.contains("ready") {
        if let Kind::Output(output) = event(&mut call).await {
            seen.push_str(&String::from_utf8_lossy(&output.data));
        }
    }
    let input = |kind| v1::RunProcessRequest {
        sandbox: String::new(),
        kind: Some(v1::run_process_request::Kind::Input(v1::ProcessInput { kind: Some(kind), offset: 0 })),
    };
    for (cols, rows) in [(100, 30), (120, 40)] {
        call.send(&input(process_input::Kind::Resize(v1::PtySize { cols, rows }))).await;
        call.send(&input(process_input::Kind::Data(Bytes::from_static(b"go\n")))).await;
        let wanted = format!("{rows} {cols}");
        while !seen.contains(&wanted) {
            match event(&mut call).await {
                Kind::Output(output) => seen.push_str(&String::from_utf8_lossy(&output.data)),
                other => panic!("{other:?} before the size {wanted}: {seen}"),
            }
        }
    }
}
