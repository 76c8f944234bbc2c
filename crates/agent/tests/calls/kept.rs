//! One call after the other over one connection.

use std::time::Duration;

use bytes::BytesMut;
use dispense_api::agent::Call as Head;
use dispense_api::frame::{self, FLAG_MESSAGE, Frame};
use dispense_api::method::Method;
use dispense_api::v1::{self, write_file_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Call, DEADLINE, Sandbox, code, run_input, run_start, sh};

/// Begins a call that offers to keep the connection.
async fn begin(connection: &mut Call, method: Method) {
    let head = Head { method: method.path().to_owned(), keep: true, ..Head::default() };
    connection.send(&head).await;
}

async fn end(connection: &mut Call) {
    connection.stream.write_all(&frame::END).await.expect("the agent reads");
}

fn echo(text: &str) -> v1::RunProcessRequest {
    run_start(v1::StartProcess { args: vec!["echo".into(), text.into()], ..Default::default() })
}

async fn closed(connection: &mut Call) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(DEADLINE, connection.stream.read_to_end(&mut rest));
    assert_eq!(read.await.expect("closed in time").expect("readable"), 0, "{rest:?}");
}

#[tokio::test]
async fn a_connection_carries_one_call_after_the_other() {
    let sandbox = Sandbox::new();
    let mut connection = sandbox.connect();
    for round in 0..3 {
        begin(&mut connection, Method::RunProcess).await;
        connection.send(&echo(&format!("round {round}"))).await;
        // Before the answer and after it.
        if round == 1 {
            end(&mut connection).await;
        }
        let (stdout, _, exited) = connection.output().await;
        assert_eq!((stdout, code(&exited)), (format!("round {round}\n"), 0));
        if round != 1 {
            end(&mut connection).await;
        }
    }
    // A refusal keeps it too.
    begin(&mut connection, Method::StatFile).await;
    connection.send(&v1::StatFileRequest { path: "nowhere".into(), ..Default::default() }).await;
    let status = connection.status().await;
    assert_eq!((status.code.as_str(), status.kept), ("not_found", true));
    end(&mut connection).await;
    begin(&mut connection, Method::RunProcess).await;
    connection.send(&run_start(v1::StartProcess { stdin: true, ..sh("cat; echo end") })).await;
    connection.send(&run_input(v1::process_input::Kind::Data("given".into()))).await;
    connection.send(&run_input(v1::process_input::Kind::Eof(true))).await;
    assert_eq!(connection.output().await.0, "givenend\n");
    connection.stream.shutdown().await.expect("half-close");
    closed(&mut connection).await;
}

#[tokio::test]
async fn what_a_call_did_not_want_is_no_part_of_the_next() {
    let sandbox = Sandbox::new();
    let mut connection = sandbox.connect();
    begin(&mut connection, Method::WriteFile).await;
    let request = |kind| v1::WriteFileRequest { sandbox: String::new(), kind: Some(kind) };
    let open = v1::WriteFile { path: "no/such/folder/file".into(), ..Default::default() };
    connection.send(&request(write_file_request::Kind::Open(open))).await;
    let data = || request(write_file_request::Kind::Data(vec![7; 64 << 10].into()));
    let status = connection.status().await;
    assert_eq!((status.code.as_str(), status.kept), ("not_found", true));
    for _ in 0..100 {
        connection.send(&data()).await;
    }
    end(&mut connection).await;
    begin(&mut connection, Method::RunProcess).await;
    connection.send(&echo("next")).await;
    assert_eq!(connection.output().await.0, "next\n");
}

#[tokio::test]
async fn a_connection_that_is_not_offered_or_half_closed_ends_with_its_call() {
    let sandbox = Sandbox::new();
    let mut once = sandbox.call(Method::RunProcess);
    once.send(&echo("once")).await;
    assert_eq!(once.output().await.0, "once\n");
    closed(&mut once).await;
    let mut half = sandbox.connect();
    begin(&mut half, Method::RunProcess).await;
    half.send(&echo("half")).await;
    half.stream.shutdown().await.expect("half-close");
    assert_eq!(half.output().await.0, "half\n");
    closed(&mut half).await;
}

#[tokio::test]
async fn an_end_that_carries_something_ends_the_connection() {
    let sandbox = Sandbox::new();
    let mut connection = sandbox.connect();
    begin(&mut connection, Method::RunProcess).await;
    connection.send(&echo("said")).await;
    assert_eq!(connection.output().await.0, "said\n");
    let mut bytes = BytesMut::from(&[frame::FLAG_END, 0, 0, 0, 1, 9][..]);
    frame::encode_raw(b"more", &mut bytes);
    assert_eq!(bytes[6], FLAG_MESSAGE);
    connection.stream.write_all(&bytes).await.expect("the agent reads");
    closed(&mut connection).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_inside_a_message_ends_the_connection() {
    let sandbox = Sandbox::new();
    for _ in 0..5 {
        let mut connection = sandbox.connect();
        begin(&mut connection, Method::RunProcess).await;
        connection.send(&run_start(sh("head -c 8000000 /dev/zero; exec sleep 60"))).await;
        let _: v1::ProcessEvent = connection.message().await;
        // It has no terminal, which is told while output waits for this reader.
        let size = v1::PtySize { cols: 80, rows: 24 };
        connection.send(&run_input(v1::process_input::Kind::Resize(size))).await;
        let told = async { while !matches!(connection.next_or_end().await, None | Some(Frame::Status(_))) {} };
        // Before an agent that waits for the end of the requests gives up.
        tokio::time::timeout(Duration::from_secs(8), told).await.expect("a status, or the end of the connection");
    }
}
