//! What a process does, over as many connections as it takes.

use std::sync::Arc;
use std::time::Duration;

use dispense_api::error::{Code, Error};
use dispense_api::v1;
use dispense_api::v1::{attach_process_request, process_event::Kind, run_process_request};
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::{Response, Status, Streaming};

use crate::retry::{idempotent, jitter};
use crate::{Client, error};
use dispense_api::outbox::Outbox;

/// Between attempts to come back.
const DELAY_MIN: Duration = Duration::from_millis(50);
const DELAY_MAX: Duration = Duration::from_secs(2);
/// One attempt; a server that is there answers at once, one that must find its runner first takes longer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);

/// How the process was come by.
pub(super) enum Opening {
    Start(v1::StartProcess),
    Attach(v1::AttachProcess),
}

/// A cut connection.
struct Lost {
    since: Instant,
    delay: Duration,
    next: Instant,
    error: Error,
}

/// Reads what a process does; comes back by itself when the connection is cut.
pub struct Events {
    client: Client,
    sandbox: String,
    opening: Opening,
    outbox: Arc<Outbox>,
    stream: Option<Streaming<v1::ProcessEvent>>,
    /// As it was told first.
    process: Option<v1::Process>,
    lost: Option<Lost>,
    ended: bool,
}

impl Events {
    pub(super) async fn open(
        client: Client,
        sandbox: String,
        opening: Opening,
        outbox: Arc<Outbox>,
    ) -> Result<Self, Error> {
        let mut events =
            Self { client, sandbox, opening, outbox, stream: None, process: None, lost: None, ended: false };
        // A start has a key, so one whose answer was lost is the same start.
        events.stream = Some(idempotent(|| events.connect()).await?);
        Ok(events)
    }

    /// Why there is no connection now; `None` while there is one.
    pub fn interrupted(&self) -> Option<&Error> {
        self.lost.as_ref().map(|lost| &lost.error)
    }

    /// The next event; `None` after the last, which is `exited` for a reader that follows.
    ///
    /// CANCEL SAFETY: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Result<Option<v1::ProcessEvent>, Error> {
        while !self.ended {
            let Some(stream) = &mut self.stream else {
                self.come_back().await?;
                continue;
            };
            match stream.message().await.map_err(error::of) {
                Ok(Some(event)) => {
                    self.lost = None;
                    if let Some(event) = self.take(event)? {
                        return Ok(Some(event));
                    }
                }
                Ok(None) if matches!(&self.opening, Opening::Attach(open) if open.no_follow) => self.end(),
                Ok(None) => {
                    self.lose(Error::new(Code::Unavailable, "cut", "the stream ended before the process did"));
                }
                Err(error) if error.cuts_the_way() => self.lose(error),
                Err(error) => {
                    self.end();
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    fn end(&mut self) {
        self.ended = true;
        self.stream = None;
        self.outbox.close();
    }

    fn lose(&mut self, error: Error) {
        self.stream = None;
        let now = Instant::now();
        match &mut self.lost {
            Some(lost) => lost.retry_later(error),
            None => self.lost = Some(Lost { since: now, delay: DELAY_MIN, next: now, error }),
        }
    }

    /// Keeps what a new connection has to know; what only concerns this connection is not passed on.
    fn take(&mut self, event: v1::ProcessEvent) -> Result<Option<v1::ProcessEvent>, Error> {
        match &event.kind {
            Some(Kind::Started(process)) => match &self.process {
                None => self.started(process.clone()),
                Some(first) if first.started_at == process.started_at => return Ok(None),
                Some(first) => {
                    let error = Error::process_replaced(first.pid);
                    self.end();
                    return Err(error);
                }
            },
            Some(Kind::Output(output)) => self.advance(output.stream(), output.offset + output.data.len() as u64),
            Some(Kind::Gap(gap)) => self.advance(gap.stream(), gap.to),
            Some(Kind::Exited(_)) => self.end(),
            Some(Kind::InputTaken(taken)) => {
                self.outbox.taken(taken.offset);
                return Ok(None);
            }
            // Of a newer agent.
            None => return Ok(None),
        }
        Ok(Some(event))
    }

    /// From now on this process is attached to, from where its output was read to.
    fn started(&mut self, process: v1::Process) {
        let attach = match &self.opening {
            Opening::Start(start) => {
                v1::AttachProcess { lossless: true, writer: start.key.clone(), ..v1::AttachProcess::default() }
            }
            Opening::Attach(open) if open.from_end => v1::AttachProcess {
                from_end: false,
                stdout_offset: process.stdout_bytes,
                stderr_offset: process.stderr_bytes,
                pty_offset: process.pty_bytes,
                ..open.clone()
            },
            Opening::Attach(open) => open.clone(),
        };
        self.opening = Opening::Attach(v1::AttachProcess { process: Some((&process).into()), ..attach });
        self.process = Some(process);
    }

    fn advance(&mut self, stream: v1::OutputStream, to: u64) {
        let Opening::Attach(open) = &mut self.opening else { return };
        match stream {
            v1::OutputStream::Stdout => open.stdout_offset = to,
            v1::OutputStream::Stderr => open.stderr_offset = to,
            v1::OutputStream::Pty | v1::OutputStream::Unspecified => open.pty_offset = to,
        }
    }

    async fn come_back(&mut self) -> Result<(), Error> {
        let Some(lost) = &self.lost else { return Ok(()) };
        if lost.since.elapsed() > self.client.resume_for {
            let mut error = lost.error.clone();
            let secs = self.client.resume_for.as_secs();
            error.message = format!("{} (it did not come back within {secs} s)", error.message);
            self.end();
            return Err(error);
        }
        tokio::time::sleep_until(lost.next).await;
        let attempt = match tokio::time::timeout(ATTEMPT_TIMEOUT, self.connect()).await {
            Ok(attempt) => attempt.map(Response::into_inner).map_err(error::of),
            Err(_) => Err(Error::new(Code::Unavailable, "connection", "the server does not answer")),
        };
        match attempt {
            Ok(stream) => self.stream = Some(stream),
            Err(error) if error.cuts_the_way() => self.lose(error),
            Err(error) => {
                self.end();
                return Err(error);
            }
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Response<Streaming<v1::ProcessEvent>>, Status> {
        let connection = self.outbox.begin();
        let mut calls = self.client.processes();
        let sandbox = self.sandbox.clone();
        match &self.opening {
            Opening::Start(start) => {
                let kind = Some(run_process_request::Kind::Start(start.clone()));
                let input = |input| v1::RunProcessRequest {
                    sandbox: String::new(),
                    kind: Some(run_process_request::Kind::Input(input)),
                };
                let first = v1::RunProcessRequest { sandbox, kind };
                calls.run_process(messages(first, self.outbox.clone(), connection, input)).await
            }
            Opening::Attach(open) => {
                let kind = Some(attach_process_request::Kind::Open(open.clone()));
                let input = |input| v1::AttachProcessRequest {
                    sandbox: String::new(),
                    kind: Some(attach_process_request::Kind::Input(input)),
                };
                let first = v1::AttachProcessRequest { sandbox, kind };
                calls.attach_process(messages(first, self.outbox.clone(), connection, input)).await
            }
        }
    }
}

impl Lost {
    fn retry_later(&mut self, error: Error) {
        self.error = error;
        self.next = Instant::now() + jitter(self.delay);
        self.delay = (self.delay * 2).min(DELAY_MAX);
    }
}

/// The request of one connection: its first message, then the input.
fn messages<M: Send + 'static>(
    first: M,
    outbox: Arc<Outbox>,
    connection: u64,
    input: impl Fn(v1::ProcessInput) -> M + Send + 'static,
) -> impl Stream<Item = M> + Send + 'static {
    futures_util::stream::unfold((Some(first), outbox, input), move |(first, outbox, input)| async move {
        let message = match first {
            Some(first) => first,
            None => {
                let item = outbox.next(connection).await?;
                input(item)
            }
        };
        Some((message, (None, outbox, input)))
    })
}
