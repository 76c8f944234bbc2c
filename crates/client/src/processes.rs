//! Processes: started, attached to, signalled.

use bytes::Bytes;
use dispense_api::error::{Code, Error};
use dispense_api::v1;
use dispense_api::v1::{attach_process_request, process_input, run_process_request};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::retry::idempotent;
use crate::{Client, STREAM_MESSAGES, error};

/// A process that this client is attached to.
pub struct RunningProcess {
    /// Its stdin or terminal.
    pub input: Input,
    /// What it does; its output waits for this reader.
    pub events: Events,
}

/// Writes to a process. Dropping it does not close stdin: call [`Input::close`].
#[derive(Clone)]
pub struct Input(mpsc::Sender<v1::ProcessInput>);

impl Input {
    /// Writes bytes; waits while the process does not read.
    pub async fn write(&self, data: Bytes) -> Result<(), Error> {
        self.send(process_input::Kind::Data(data)).await
    }

    /// Closes stdin; output goes on.
    pub async fn close(&self) -> Result<(), Error> {
        self.send(process_input::Kind::Eof(true)).await
    }

    async fn send(&self, kind: process_input::Kind) -> Result<(), Error> {
        let sent = self.0.send(v1::ProcessInput { kind: Some(kind) }).await;
        sent.map_err(|_| Error::new(Code::Cancelled, "process_ended", "the process takes no more input"))
    }
}

/// Reads what a process does.
pub struct Events(Streaming<v1::ProcessEvent>);

impl Events {
    /// The next event; `None` after the last, which is `exited`.
    pub async fn next(&mut self) -> Result<Option<v1::ProcessEvent>, Error> {
        self.0.message().await.map_err(error::of)
    }
}

impl Client {
    /// Starts a process and attaches to it.
    pub async fn run(&self, sandbox: &str, start: v1::StartProcess) -> Result<RunningProcess, Error> {
        let first =
            v1::RunProcessRequest { sandbox: sandbox.to_owned(), kind: Some(run_process_request::Kind::Start(start)) };
        let (input, rest) = mpsc::channel(STREAM_MESSAGES);
        let rest = ReceiverStream::new(rest).map(|input| v1::RunProcessRequest {
            sandbox: String::new(),
            kind: Some(run_process_request::Kind::Input(input)),
        });
        let messages = tokio_stream::once(first).chain(rest);
        let events = self.processes().run_process(messages).await.map_err(error::of)?.into_inner();
        Ok(RunningProcess { input: Input(input), events: Events(events) })
    }

    /// Attaches to a process.
    pub async fn attach(&self, sandbox: &str, open: v1::AttachProcess) -> Result<RunningProcess, Error> {
        let first = v1::AttachProcessRequest {
            sandbox: sandbox.to_owned(),
            kind: Some(attach_process_request::Kind::Open(open)),
        };
        let (input, rest) = mpsc::channel(STREAM_MESSAGES);
        let rest = ReceiverStream::new(rest).map(|input| v1::AttachProcessRequest {
            sandbox: String::new(),
            kind: Some(attach_process_request::Kind::Input(input)),
        });
        let messages = tokio_stream::once(first).chain(rest);
        let events = self.processes().attach_process(messages).await.map_err(error::of)?.into_inner();
        Ok(RunningProcess { input: Input(input), events: Events(events) })
    }

    /// Starts a process that nobody is attached to.
    pub async fn start_process(&self, sandbox: &str, start: v1::StartProcess) -> Result<v1::Process, Error> {
        let request = v1::StartProcessRequest { sandbox: sandbox.to_owned(), start: Some(start) };
        self.processes().start_process(request).await.map(tonic::Response::into_inner).map_err(error::of)
    }

    /// Sends a signal to the process group of a pid.
    pub async fn signal(&self, sandbox: &str, pid: u32, signal: u32) -> Result<v1::Process, Error> {
        let request = v1::SignalProcessRequest { sandbox: sandbox.to_owned(), process: by_pid(pid), signal };
        self.processes().signal_process(request).await.map(tonic::Response::into_inner).map_err(error::of)
    }

    /// Changes the size of the terminal of a pid.
    pub async fn resize(&self, sandbox: &str, pid: u32, cols: u32, rows: u32) -> Result<v1::Process, Error> {
        let request = v1::ResizeProcessRequest { sandbox: sandbox.to_owned(), process: by_pid(pid), cols, rows };
        idempotent(|| async { self.processes().resize_process(request.clone()).await }).await
    }

    /// Processes that were started through the agent; with `all` also those that ended.
    pub async fn list_processes(&self, sandbox: &str, all: bool) -> Result<Vec<v1::Process>, Error> {
        let request = v1::ListProcessesRequest { sandbox: sandbox.to_owned(), all };
        let list = idempotent(|| async { self.processes().list_processes(request.clone()).await });
        Ok(list.await?.processes)
    }
}

fn by_pid(pid: u32) -> Option<v1::ProcessRef> {
    Some(v1::ProcessRef { by: Some(v1::process_ref::By::Pid(pid)) })
}
