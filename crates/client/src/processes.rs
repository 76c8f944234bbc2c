//! Processes: started, attached to, signalled.

mod events;

use std::sync::Arc;

use bytes::Bytes;
use dispense_api::error::Error;
use dispense_api::v1;
use dispense_api::v1::process_input;

use crate::retry::{idempotent, random_hex};
use crate::{Client, error};

use dispense_api::outbox::Outbox;
pub use events::Events;
use events::Opening;

/// A process that this client is attached to. When the connection is cut it comes back by itself and goes on
/// where it stopped: no byte of input or output is lost or repeated within what the sandbox keeps.
pub struct RunningProcess {
    /// Its stdin or terminal.
    pub input: Input,
    /// What it does; of a process that was started here the output waits for this reader.
    pub events: Events,
}

/// Writes to a process. Dropping it does not close stdin: call [`Input::close`].
#[derive(Clone)]
pub struct Input(Arc<Outbox>);

impl Input {
    /// Writes bytes; waits while the process does not read. The events must be read meanwhile: they tell what
    /// the process was given.
    pub async fn write(&self, data: Bytes) -> Result<(), Error> {
        self.0.write(data).await
    }

    /// Closes stdin; output goes on.
    pub async fn close(&self) -> Result<(), Error> {
        self.0.push(process_input::Kind::Eof(true))
    }

    /// Changes the size of its terminal, before what is written later.
    pub fn resize(&self, cols: u32, rows: u32) -> Result<(), Error> {
        self.0.push(process_input::Kind::Resize(v1::PtySize { cols, rows }))
    }
}

impl Client {
    /// Starts a process and attaches to it.
    pub async fn run(&self, sandbox: &str, mut start: v1::StartProcess) -> Result<RunningProcess, Error> {
        if start.key.is_empty() {
            start.key = random_hex();
        }
        self.open(sandbox, Opening::Start(start)).await
    }

    /// Attaches to a process.
    pub async fn attach(&self, sandbox: &str, mut open: v1::AttachProcess) -> Result<RunningProcess, Error> {
        if open.writer.is_empty() {
            open.writer = random_hex();
        }
        self.open(sandbox, Opening::Attach(open)).await
    }

    async fn open(&self, sandbox: &str, opening: Opening) -> Result<RunningProcess, Error> {
        let outbox = Arc::new(Outbox::default());
        let events = Events::open(self.clone(), sandbox.to_owned(), opening, outbox.clone()).await?;
        Ok(RunningProcess { input: Input(outbox), events })
    }

    /// Starts a process that nobody is attached to. A start whose answer was lost is repeated.
    pub async fn start_process(&self, sandbox: &str, mut start: v1::StartProcess) -> Result<v1::Process, Error> {
        if start.key.is_empty() {
            start.key = random_hex();
        }
        let request = v1::StartProcessRequest { sandbox: sandbox.to_owned(), start: Some(start) };
        idempotent(|| async { self.processes().start_process(request.clone()).await }).await
    }

    /// Sends a signal to the process group of a pid.
    pub async fn signal(&self, sandbox: &str, pid: u32, signal: u32) -> Result<v1::Process, Error> {
        let request = v1::SignalProcessRequest {
            sandbox: sandbox.to_owned(),
            process: Some(v1::ProcessRef::by_pid(pid)),
            signal,
        };
        self.processes().signal_process(request).await.map(tonic::Response::into_inner).map_err(error::of)
    }

    /// Changes the size of the terminal of a pid.
    pub async fn resize(&self, sandbox: &str, pid: u32, cols: u32, rows: u32) -> Result<v1::Process, Error> {
        let request = v1::ResizeProcessRequest {
            sandbox: sandbox.to_owned(),
            process: Some(v1::ProcessRef::by_pid(pid)),
            cols,
            rows,
        };
        idempotent(|| async { self.processes().resize_process(request.clone()).await }).await
    }

    /// Processes that were started through the agent; with `all` also those that ended.
    pub async fn list_processes(&self, sandbox: &str, all: bool) -> Result<Vec<v1::Process>, Error> {
        let request = v1::ListProcessesRequest { sandbox: sandbox.to_owned(), all };
        let list = idempotent(|| async { self.processes().list_processes(request.clone()).await });
        Ok(list.await?.processes)
    }

    /// What the server keeps of a sandbox that cannot be asked any more: the ends of its processes' output, and
    /// its jobs.
    pub async fn logs(&self, sandbox: &str) -> Result<v1::GetLogsResponse, Error> {
        let request = v1::GetLogsRequest { sandbox: sandbox.to_owned() };
        idempotent(|| async { self.logs_client().get_logs(request.clone()).await }).await
    }
}
