//! Calls as a peer makes them, over an in-memory stream, against real processes and files of this machine.

mod beneath;
mod harness;
mod kept;
mod resume;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use dispense_api::frame::{self, Frame};
use dispense_api::method::Method;
use dispense_api::v1::{self, process_event, process_exited};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use harness::{DEADLINE, Sandbox, code, run_input, run_start, sh};

#[tokio::test]
async fn streams_stay_apart_and_the_exit_is_last() {
    let sandbox = Sandbox::new();
    let (stdout, stderr, exited) = sandbox.run(&["sh", "-c", "echo out; echo err >&2; exit 7"]).await;
    assert_eq!((stdout.as_str(), stderr.as_str(), code(&exited)), ("out\n", "err\n", 7));
    let (stdout, _, _) = sandbox.run(&["sh", "-c", "echo $BASE; pwd; id -u"]).await;
    assert!(stdout.starts_with(&format!("base\n{}\n", sandbox.path().display())), "{stdout}");
}

#[tokio::test]
async fn a_signal_is_told_as_a_signal() {
    let sandbox = Sandbox::new();
    let (_, _, exited) = sandbox.run(&["sh", "-c", "kill -9 $$"]).await;
    assert_eq!(exited.status, Some(process_exited::Status::Signal(9)));
}

#[tokio::test]
async fn what_cannot_start_is_refused_by_name() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path().join("plain"), "text").expect("writable");
    let plain = sandbox.path().join("plain").display().to_string();
    let cases = [
        (sh_args(&["no-such-command"]), "command_not_found", "no-such-command"),
        (sh_args(&["/no/such/file"]), "command_not_found", "/no/such/file"),
        (sh_args(&[plain.as_str()]), "command_not_executable", "plain"),
        (v1::StartProcess { cwd: "/no/such/folder".into(), ..sh("true") }, "process_invalid", "/no/such/folder"),
        (v1::StartProcess { user: "nobody-here".into(), ..sh("true") }, "user_unknown", "nobody-here"),
        (v1::StartProcess::default(), "process_invalid", "args"),
    ];
    for (start, reason, named) in cases {
        let mut call = sandbox.call(Method::RunProcess);
        call.send(&run_start(start)).await;
        let status = call.status().await;
        assert_eq!(status.reason, reason, "{status:?}");
        assert!(status.message.contains(named), "{status:?}");
    }
}

fn sh_args(args: &[&str]) -> v1::StartProcess {
    v1::StartProcess { args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..Default::default() }
}

#[tokio::test]
async fn input_reaches_the_process_until_its_end() {
    let sandbox = Sandbox::new();
    let mut call = sandbox.call(Method::RunProcess);
    call.send(&run_start(v1::StartProcess { stdin: true, ..sh("cat; echo done") })).await;
    call.send(&run_input(v1::process_input::Kind::Data(Bytes::from_static(b"hello ")))).await;
    call.send(&run_input(v1::process_input::Kind::Data(Bytes::from_static(b"there\n")))).await;
    call.send(&run_input(v1::process_input::Kind::Eof(true))).await;
    let (stdout, _, exited) = call.output().await;
    assert_eq!((stdout.as_str(), code(&exited)), ("hello there\ndone\n", 0));
}

#[tokio::test]
async fn a_terminal_has_the_size_asked_for_and_follows_it() {
    let sandbox = Sandbox::new();
    let mut call = sandbox.call(Method::RunProcess);
    let pty = Some(v1::Pty { cols: 100, rows: 30, term: String::new() });
    call.send(&run_start(v1::StartProcess { pty, ..sh("stty size; read line; stty size; echo $TERM") })).await;
    let started: v1::ProcessEvent = call.message().await;
    let Some(process_event::Kind::Started(process)) = started.kind else { panic!("{started:?}") };
    let first: v1::ProcessEvent = call.message().await;
    assert!(
        matches!(&first.kind, Some(process_event::Kind::Output(output)) if output.data.starts_with(b"30 100")),
        "{first:?}"
    );
    let mut resize = sandbox.call(Method::ResizeProcess);
    let by = Some(v1::process_ref::By::Pid(process.pid));
    resize
        .send(&v1::ResizeProcessRequest {
            sandbox: String::new(),
            process: Some(v1::ProcessRef { by, started_at: None }),
            cols: 133,
            rows: 44,
        })
        .await;
    assert_eq!(resize.status().await.code, "");
    call.send(&run_input(v1::process_input::Kind::Data(Bytes::from_static(b"\n")))).await;
    let (output, _, exited) = call.output().await;
    assert!(output.contains("44 133") && output.contains("xterm-256color"), "{output:?}");
    assert_eq!(code(&exited), 0);
}

#[tokio::test]
async fn ten_megabytes_pass_a_slow_reader_without_loss() {
    let sandbox = Sandbox::new();
    let mut call = sandbox.call(Method::RunProcess);
    call.send(&run_start(sh("head -c 10000000 /dev/zero | tr '\\0' x; echo end >&2"))).await;
    let (stdout, stderr, _) = call.output().await;
    assert_eq!((stdout.len(), stderr.as_str()), (10_000_000, "end\n"));
    assert!(stdout.bytes().all(|byte| byte == b'x'));
}

#[tokio::test]
async fn a_detached_process_drops_its_oldest_output_and_tells_the_gap() {
    let sandbox = Sandbox::new();
    let mut start = sandbox.call(Method::StartProcess);
    let request = v1::StartProcess { name: "noisy".into(), ..sh("head -c 10000000 /dev/zero; sleep 0") };
    start.send(&v1::StartProcessRequest { sandbox: String::new(), start: Some(request) }).await;
    assert_eq!(start.status().await.code, "");
    let by = Some(v1::process_ref::By::Name("noisy".into()));
    let ended = async {
        loop {
            let mut list = sandbox.call(Method::ListProcesses);
            list.send(&v1::ListProcessesRequest { sandbox: String::new(), all: true }).await;
            let list: v1::ListProcessesResponse = list.message().await;
            if list.processes[0].exited.is_some() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("it ends");
    let mut attach = sandbox.call(Method::AttachProcess);
    let open = v1::AttachProcess { process: Some(v1::ProcessRef { by, started_at: None }), ..Default::default() };
    attach
        .send(&v1::AttachProcessRequest {
            sandbox: String::new(),
            kind: Some(v1::attach_process_request::Kind::Open(open)),
        })
        .await;
    let (mut gap, mut next) = (0, 0);
    loop {
        let event: v1::ProcessEvent = attach.message().await;
        match event.kind.expect("known") {
            process_event::Kind::Started(process) => assert_eq!(process.stdout_bytes, 10_000_000),
            process_event::Kind::Gap(found) => {
                assert_eq!(found.from, 0);
                (gap, next) = (found.to, found.to);
            }
            process_event::Kind::Output(output) => {
                assert_eq!(output.offset, next, "no byte is lost or repeated behind the gap");
                next += output.data.len() as u64;
            }
            process_event::Kind::InputTaken(taken) => panic!("{taken:?} of a reader without a writer"),
            process_event::Kind::Exited(_) => break,
        }
    }
    assert!(gap > 0 && next == 10_000_000, "gap to {gap}, end at {next}");
}

#[tokio::test]
async fn output_of_a_background_child_does_not_hold_the_end_up() {
    let sandbox = Sandbox::new();
    let start = std::time::Instant::now();
    let (stdout, _, _) = sandbox.run(&["sh", "-c", "sleep 20 & echo $!"]).await;
    assert!(start.elapsed() < Duration::from_secs(10));
    let pid: i32 = stdout.trim().parse().expect("a pid");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).expect("not zero"),
        rustix::process::Signal::KILL,
    )
    .expect("ours");
}

#[tokio::test]
async fn a_deadline_ends_the_whole_group() {
    let sandbox = Sandbox::new();
    let mut call = sandbox.call(Method::RunProcess);
    call.send(&run_start(v1::StartProcess { timeout_ms: 100, ..sh("sleep 60 | cat") })).await;
    let (_, _, exited) = call.output().await;
    assert!(exited.timed_out);
}

#[tokio::test]
async fn files_are_written_whole_and_read_in_ranges() {
    let sandbox = Sandbox::new();
    let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut write = sandbox.call(Method::WriteFile);
    let request = |kind| v1::WriteFileRequest { sandbox: String::new(), kind: Some(kind) };
    let open = v1::WriteFile { path: "sub/file".into(), mode: 0o640, parents: true, ..Default::default() };
    write.send(&request(v1::write_file_request::Kind::Open(open.clone()))).await;
    for chunk in content.chunks(300_000) {
        write.send(&request(v1::write_file_request::Kind::Data(Bytes::copy_from_slice(chunk)))).await;
    }
    write.stream.shutdown().await.expect("half-close");
    let file: v1::File = write.message().await;
    assert_eq!((file.size, file.mode), (4_000_000, 0o640));
    let mut read = sandbox.call(Method::ReadFile);
    read.send(&v1::ReadFileRequest {
        sandbox: String::new(),
        path: "sub/file".into(),
        offset: 1_000_001,
        length: 2_000_000,
        beneath: String::new(),
    })
    .await;
    let mut seen = Vec::new();
    loop {
        match read.next().await {
            Frame::Message(bytes) => {
                match v1::ReadFileResponse::decode(bytes).expect("a response").kind.expect("known") {
                    v1::read_file_response::Kind::File(file) => assert_eq!(file.size, 4_000_000),
                    v1::read_file_response::Kind::Data(data) => seen.extend_from_slice(&data),
                }
            }
            Frame::Status(status) => break assert_eq!(status.code, ""),
            Frame::End => panic!("an answer has no end of requests"),
        }
    }
    assert!(seen == content[1_000_001..3_000_001]);
    let mut again = sandbox.call(Method::WriteFile);
    again.send(&request(v1::write_file_request::Kind::Open(v1::WriteFile { exclusive: true, ..open }))).await;
    again.stream.shutdown().await.expect("half-close");
    assert_eq!(again.status().await.code, "already_exists");
    assert_eq!(
        std::fs::read_dir(sandbox.path().join("sub")).expect("there").count(),
        1,
        "no half-written file is left"
    );
}

#[tokio::test]
async fn trees_are_listed_moved_and_removed() {
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.path().join("a/b")).expect("writable");
    std::fs::write(sandbox.path().join("a/b/file"), "x").expect("writable");
    std::os::unix::fs::symlink("/etc", sandbox.path().join("a/link")).expect("writable");
    let mut list = sandbox.call(Method::ListDirectory);
    list.send(&v1::ListDirectoryRequest { sandbox: String::new(), path: "a".into(), depth: 3, beneath: String::new() })
        .await;
    let files: v1::ListDirectoryResponse = list.message().await;
    let names: Vec<_> = files.files.iter().map(|file| file.path.rsplit('/').next().unwrap_or_default()).collect();
    assert_eq!(names, ["b", "link", "file"]);
    let rename = |from: &str, to: &str| v1::MoveFileRequest {
        sandbox: String::new(),
        from: from.into(),
        to: to.into(),
        overwrite: false,
    };
    let mut first = sandbox.call(Method::MoveFile);
    first.send(&rename("a/b/file", "moved")).await;
    assert_eq!(first.status().await.code, "");
    let mut second = sandbox.call(Method::MoveFile);
    second.send(&rename("a", "moved")).await;
    assert_eq!(second.status().await.code, "already_exists");
    let mut remove = sandbox.call(Method::RemoveFile);
    remove.send(&v1::RemoveFileRequest { sandbox: String::new(), path: "a".into(), recursive: true }).await;
    let removed: v1::RemoveFileResponse = remove.message().await;
    assert_eq!(removed.removed, 3);
    assert!(Path::new("/etc/passwd").exists(), "a link is removed, not what it leads to");
    let mut stat = sandbox.call(Method::StatFile);
    stat.send(&v1::StatFileRequest { sandbox: String::new(), path: "a".into(), follow: false }).await;
    let status = stat.status().await;
    assert_eq!(status.code, "not_found");
    assert!(status.message.contains("/a"), "{status:?}");
}

#[tokio::test]
async fn changes_of_a_tree_are_told() {
    let sandbox = Sandbox::new();
    let mut watch = sandbox.call(Method::WatchFiles);
    watch.send(&v1::WatchFilesRequest { sandbox: String::new(), path: ".".into(), recursive: true }).await;
    let ready: v1::WatchFilesResponse = watch.message().await;
    assert_eq!(ready.kind(), v1::watch_files_response::Kind::Ready);
    std::fs::write(sandbox.path().join("new"), "x").expect("writable");
    let created: v1::WatchFilesResponse = watch.message().await;
    assert_eq!(created.kind(), v1::watch_files_response::Kind::Created);
    assert!(created.path.ends_with("/new"), "{created:?}");
}

#[tokio::test]
async fn a_port_carries_bytes_both_ways_and_keeps_half_close() {
    let sandbox = Sandbox::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = u32::from(listener.local_addr().expect("bound").port());
    let mut peer = tokio::task::JoinSet::new();
    peer.spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("the agent connects");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("readable");
        // Only after the other side's end, so that a half-close that is lost would hang here.
        stream.write_all(&[&b"got "[..], &all].concat()).await.expect("writable");
    });
    let mut call = sandbox.call(Method::OpenPort);
    let request = |kind| v1::OpenPortRequest { port, kind: Some(kind), ..Default::default() };
    call.send(&request(v1::open_port_request::Kind::Data(Bytes::from_static(b"hello")))).await;
    call.send(&request(v1::open_port_request::Kind::Eof(true))).await;
    let mut seen = Vec::new();
    loop {
        let answer: v1::OpenPortResponse = call.message().await;
        match answer.kind.expect("known") {
            v1::open_port_response::Kind::Connected(_) => {}
            v1::open_port_response::Kind::Data(data) => seen.extend_from_slice(&data),
            v1::open_port_response::Kind::Eof(_) => break,
        }
    }
    assert_eq!(seen, b"got hello");
    let mut closed = sandbox.call(Method::OpenPort);
    closed.send(&v1::OpenPortRequest { port: 1, ..Default::default() }).await;
    assert_eq!(closed.status().await.reason, "port_closed");
}

#[tokio::test]
async fn the_watch_says_hello_and_reports_true_figures() {
    use dispense_api::agent::{WatchRequest, WatchResponse, watch_response};
    let sandbox = Sandbox::new();
    let mut watch = sandbox.call(Method::Watch);
    watch.send(&WatchRequest::default()).await;
    let hello: WatchResponse = watch.message().await;
    assert!(matches!(hello.kind, Some(watch_response::Kind::Hello(_))), "{hello:?}");
    loop {
        let message: WatchResponse = watch.message().await;
        if let Some(watch_response::Kind::Report(report)) = message.kind {
            assert!(report.memory_mb.is_some_and(|mb| mb > 0), "{report:?}");
            assert_eq!(report.cpu_percent, None, "nothing is said of CPU before there is an interval");
            return;
        }
    }
}

#[tokio::test]
async fn hostile_peers_are_refused_and_the_agent_goes_on() {
    let sandbox = Sandbox::new();
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0x40, 0, 0, 0], &[0x80, 0, 0, 0, 0], &[0, 0, 0, 0, 3, 0xff, 0xff, 0xff]]
    {
        let mut call = sandbox.connect();
        call.stream.write_all(garbage).await.expect("the agent reads");
        let status = call.status().await;
        assert_eq!(status.code, "invalid_argument", "{garbage:?}: {status:?}");
    }
    let mut half = sandbox.connect();
    half.stream.write_all(&[0, 0, 0]).await.expect("the agent reads");
    half.stream.shutdown().await.expect("half-close");
    assert_eq!(half.status().await.reason, "protocol");
    let mut unknown = sandbox.connect();
    frame::encode_call("dispense.v1.ProcessService/Nothing", &mut unknown.pending);
    let bytes = unknown.pending.split();
    unknown.stream.write_all(&bytes).await.expect("the agent reads");
    assert_eq!(unknown.status().await.code, "unimplemented");
    assert_eq!(sandbox.run(&["echo", "alive"]).await.0, "alive\n");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_closed() {
    let sandbox = Sandbox::new();
    let mut silent = sandbox.connect();
    let mut byte = [0];
    assert_eq!(silent.stream.read(&mut byte).await.expect("closed"), 0);
}
