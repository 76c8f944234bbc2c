//! An agent in this process, and a peer that calls it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use dispense_agent::{Agent, Config, serve_connection};
use dispense_api::frame::{self, Decoder, Frame};
use dispense_api::method::Method;
use dispense_api::v1::{self, process_event, process_exited};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Long enough for a loaded machine; a test that needs more is stuck.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Sandbox {
    pub(crate) agent: Arc<Agent>,
    folder: tempfile::TempDir,
    _reaper: tokio::task::JoinSet<()>,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let id = std::process::Command::new("id").arg("-u").output().expect("coreutils").stdout;
        let user = String::from_utf8(id).expect("a number").trim().to_owned();
        let variables =
            [("AGENT_WORKDIR", folder.path().display().to_string()), ("AGENT_USER", user), ("BASE", "base".to_owned())];
        let config = Config::from_env(variables.into_iter().map(|(key, value)| (key.into(), value.into())));
        let mut reaper = tokio::task::JoinSet::new();
        reaper.spawn(dispense_agent::reap());
        Self { agent: Agent::new(config), folder, _reaper: reaper }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn call(&self, method: Method) -> Call {
        let mut call = self.connect();
        let mut bytes = BytesMut::new();
        frame::encode_call(method.path(), &mut bytes);
        call.pending = bytes;
        call
    }

    /// A connection that has said nothing yet.
    pub(crate) fn connect(&self) -> Call {
        let (near, far) = tokio::io::duplex(1 << 20);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(serve_connection(self.agent.clone(), far, Arc::new(|| false)));
        Call { stream: near, pending: BytesMut::new(), buffer: BytesMut::new(), _tasks: tasks }
    }

    pub(crate) async fn run(&self, args: &[&str]) -> (String, String, v1::ProcessExited) {
        let start = v1::StartProcess { args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..Default::default() };
        let mut call = self.call(Method::RunProcess);
        call.send(&run_start(start)).await;
        call.output().await
    }
}

pub(crate) fn run_start(start: v1::StartProcess) -> v1::RunProcessRequest {
    v1::RunProcessRequest { sandbox: String::new(), kind: Some(v1::run_process_request::Kind::Start(start)) }
}

pub(crate) fn run_input(kind: v1::process_input::Kind) -> v1::RunProcessRequest {
    let input = v1::ProcessInput { kind: Some(kind), offset: 0 };
    v1::RunProcessRequest { sandbox: String::new(), kind: Some(v1::run_process_request::Kind::Input(input)) }
}

pub(crate) fn sh(script: &str) -> v1::StartProcess {
    v1::StartProcess { args: ["sh", "-c", script].map(str::to_owned).to_vec(), ..Default::default() }
}

pub(crate) struct Call {
    pub(crate) stream: DuplexStream,
    pub(crate) pending: BytesMut,
    buffer: BytesMut,
    _tasks: tokio::task::JoinSet<()>,
}

impl Call {
    pub(crate) async fn send(&mut self, message: &impl Message) {
        frame::encode(message, &mut self.pending);
        let bytes = self.pending.split();
        self.stream.write_all(&bytes).await.expect("the agent reads");
    }

    pub(crate) async fn next(&mut self) -> Frame {
        let next = tokio::time::timeout(DEADLINE, self.next_or_end()).await;
        next.expect("an answer in time").expect("the agent closed without a status")
    }

    /// `None` when the connection has ended, also inside a frame.
    pub(crate) async fn next_or_end(&mut self) -> Option<Frame> {
        let decoder = Decoder::new(8 << 20);
        loop {
            if let Some(frame) = decoder.decode(&mut self.buffer).expect("well-formed") {
                return Some(frame);
            }
            if self.stream.read_buf(&mut self.buffer).await.expect("readable") == 0 {
                return None;
            }
        }
    }

    pub(crate) async fn message<M: Message + Default>(&mut self) -> M {
        match self.next().await {
            Frame::Message(bytes) => M::decode(bytes).expect("the method's message"),
            other => panic!("{other:?} instead of a message"),
        }
    }

    pub(crate) async fn status(&mut self) -> dispense_api::agent::Status {
        loop {
            if let Frame::Status(status) = self.next().await {
                return status;
            }
        }
    }

    /// stdout and stderr as text, and the end.
    pub(crate) async fn output(&mut self) -> (String, String, v1::ProcessExited) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next().await {
                other @ (Frame::Status(_) | Frame::End) => panic!("{other:?} instead of an event"),
                Frame::Message(bytes) => {
                    match v1::ProcessEvent::decode(bytes).expect("an event").kind.expect("known") {
                        process_event::Kind::Started(_) | process_event::Kind::InputTaken(_) => {}
                        process_event::Kind::Output(output) => match output.stream() {
                            v1::OutputStream::Stderr => stderr.extend_from_slice(&output.data),
                            _ => stdout.extend_from_slice(&output.data),
                        },
                        process_event::Kind::Gap(gap) => panic!("{gap:?}"),
                        process_event::Kind::Exited(exited) => {
                            assert_eq!(self.status().await.code, "");
                            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                            return (text(stdout), text(stderr), exited);
                        }
                    }
                }
            }
        }
    }
}

pub(crate) fn code(exited: &v1::ProcessExited) -> u32 {
    match exited.status {
        Some(process_exited::Status::Code(code)) => code,
        other => panic!("{other:?} instead of a code"),
    }
}
