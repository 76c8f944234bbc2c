//! A process of a sandbox that a door is joined to, over as many streams as it takes: when the way to the agent is cut
//! it comes back by itself and goes on where it was, in both directions, as the client library does.

use std::sync::Arc;
use std::time::Duration;

use dispense_api::error::Error;
use dispense_api::method::Method;
use dispense_api::outbox::Outbox;
use dispense_api::v1::{
    AttachProcess, AttachProcessRequest, OutputStream, Process as Started, ProcessEvent, ProcessExited, ProcessInput,
    ProcessOutput, RunProcessRequest, SignalProcessRequest, StartProcess, attach_process_request, process_event,
    run_process_request,
};
use prost::Message;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::call::{Answers, broken};
use super::{Origin, Relay, Route};
use crate::auth::secret::random;

/// For the call; a sandbox that is starting is waited for.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// For how long a way that is cut is looked for.
const RESUME_FOR: Duration = Duration::from_secs(600);
/// Between attempts.
const DELAY_MIN: Duration = Duration::from_millis(50);
const DELAY_MAX: Duration = Duration::from_secs(2);

/// Between the signals to a process that is left.
const HANG_UP_PAUSES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(2), Duration::from_secs(5)];
const SIGHUP: u32 = 1;

/// What it takes to join a process again.
#[derive(Clone)]
pub(crate) struct Ticket {
    pub(crate) route: Route,
    /// As it was when it started.
    started: Started,
    /// Names the input, so that none is given twice.
    writer: String,
    /// What it is given.
    pub(crate) input: Arc<Outbox>,
}

/// What it does.
#[derive(Debug)]
pub(crate) enum Event {
    Output(ProcessOutput),
    Exited(ProcessExited),
}

/// A process, and the way to it.
pub(crate) struct Process {
    relay: Arc<Relay>,
    ticket: Ticket,
    offsets: Offsets,
    link: Option<Link>,
    lost: Option<Lost>,
}

/// Where the output was read to.
#[derive(Debug, Clone, Copy, Default)]
struct Offsets {
    stdout: u64,
    stderr: u64,
    pty: u64,
}

impl Offsets {
    fn advance(&mut self, stream: OutputStream, to: u64) {
        match stream {
            OutputStream::Stdout => self.stdout = to,
            OutputStream::Stderr => self.stderr = to,
            OutputStream::Pty | OutputStream::Unspecified => self.pty = to,
        }
    }
}

/// One stream to the agent.
struct Link {
    answers: Answers,
    /// Gives the process its input.
    pump: JoinHandle<()>,
}

impl Link {
    fn new<M: Message>(
        answers: Answers,
        input: Arc<Outbox>,
        wrap: impl Fn(ProcessInput) -> M + Send + 'static,
    ) -> Self {
        let (connection, requests) = (input.begin(), answers.requests());
        let pump = tokio::spawn(async move {
            while let Some(item) = input.next(connection).await {
                if !requests.send(&wrap(item)).await {
                    break;
                }
            }
        });
        Self { answers, pump }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// A way that was cut.
struct Lost {
    since: Instant,
    delay: Duration,
}

impl Ticket {
    /// Signals the process's group; the process as it was then.
    pub(crate) async fn signal(&self, relay: &Relay, signal: u32) -> Result<Started, Error> {
        let process = Some((&self.started).into());
        let request = SignalProcessRequest { sandbox: self.route.sandbox.to_string(), process, signal };
        let origin = Origin::default();
        let call = relay.ask(&self.route, Method::SignalProcess, &origin, &request, CALL_TIMEOUT);
        call.await?.only().await
    }

    /// Leaves the process, as a terminal does that is hung up. A shell that is just starting loses the signal, so it is
    /// told again; one that does not mind lives on.
    pub(crate) async fn hang_up(&self, relay: &Relay) {
        for pause in HANG_UP_PAUSES {
            match self.signal(relay, SIGHUP).await {
                Ok(process) if process.exited.is_none() => tokio::time::sleep(pause).await,
                Ok(_) => return,
                Err(error) => return tracing::debug!(%error, "a process was not hung up"),
            }
        }
    }
}

impl Process {
    /// Starts one.
    pub(crate) async fn start(relay: Arc<Relay>, route: Route, mut start: StartProcess) -> Result<Self, Error> {
        start.key = random("");
        let (sandbox, writer) = (route.sandbox.to_string(), start.key.clone());
        let first = RunProcessRequest { sandbox, kind: Some(run_process_request::Kind::Start(start)) };
        let origin = Origin::default();
        let call = relay.call(&route, Method::RunProcess, &origin, &first, CALL_TIMEOUT);
        let mut answers = call.await?;
        let started = started(&mut answers).await?;
        let ticket = Ticket { route, started, writer, input: Arc::default() };
        let link = Link::new(answers, ticket.input.clone(), |input| RunProcessRequest {
            sandbox: String::new(),
            kind: Some(run_process_request::Kind::Input(input)),
        });
        Ok(Self { relay, ticket, offsets: Offsets::default(), link: Some(link), lost: None })
    }

    /// Joins one that was left, from this byte of its terminal's output on.
    pub(crate) async fn join(relay: Arc<Relay>, ticket: Ticket, pty_offset: u64) -> Result<Self, Error> {
        let offsets = Offsets { pty: pty_offset, ..Offsets::default() };
        let mut process = Self { relay, ticket, offsets, link: None, lost: None };
        process.link = Some(process.attach().await?);
        Ok(process)
    }

    /// What it takes to join it again.
    pub(crate) fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    async fn attach(&self) -> Result<Link, Error> {
        let Ticket { route, started: process, writer, input } = &self.ticket;
        let open = AttachProcess {
            process: Some(process.into()),
            stdout_offset: self.offsets.stdout,
            stderr_offset: self.offsets.stderr,
            pty_offset: self.offsets.pty,
            lossless: true,
            writer: writer.clone(),
            ..AttachProcess::default()
        };
        let (sandbox, kind) = (route.sandbox.to_string(), Some(attach_process_request::Kind::Open(open)));
        let first = AttachProcessRequest { sandbox, kind };
        let origin = Origin::default();
        let call = self.relay.call(route, Method::AttachProcess, &origin, &first, CALL_TIMEOUT);
        let mut answers = call.await?;
        // An agent of an older version does not look at when.
        if started(&mut answers).await?.started_at != process.started_at {
            return Err(Error::process_replaced(process.pid));
        }
        Ok(Link::new(answers, input.clone(), |input| AttachProcessRequest {
            sandbox: String::new(),
            kind: Some(attach_process_request::Kind::Input(input)),
        }))
    }

    /// What it does next. After `Exited` there is nothing more.
    ///
    /// CANCEL SAFETY: an event is taken only when it is returned.
    pub(crate) async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let Some(link) = &mut self.link else {
                self.come_back().await?;
                continue;
            };
            let event = match link.answers.next::<ProcessEvent>().await {
                Ok(Some(event)) => event,
                Ok(None) => return Err(broken()),
                Err(error) if error.cuts_the_way() => {
                    self.link = None;
                    self.lost = Some(Lost { since: Instant::now(), delay: DELAY_MIN });
                    continue;
                }
                Err(error) => return Err(error),
            };
            match event.kind {
                Some(process_event::Kind::Output(output)) => {
                    self.offsets.advance(output.stream(), output.offset + output.data.len() as u64);
                    return Ok(Event::Output(output));
                }
                // Longer away than the agent keeps: what was dropped then, no door has a way to tell.
                Some(process_event::Kind::Gap(gap)) => self.offsets.advance(gap.stream(), gap.to),
                Some(process_event::Kind::InputTaken(taken)) => self.ticket.input.taken(taken.offset),
                Some(process_event::Kind::Exited(exited)) => {
                    self.ticket.input.close();
                    link.answers.settle();
                    return Ok(Event::Exited(exited));
                }
                Some(process_event::Kind::Started(_)) | None => {}
            }
        }
    }

    async fn come_back(&mut self) -> Result<(), Error> {
        let (since, delay) = match &mut self.lost {
            Some(lost) => {
                let delay = lost.delay;
                lost.delay = (lost.delay * 2).min(DELAY_MAX);
                (lost.since, delay)
            }
            None => return Err(broken()),
        };
        tokio::time::sleep(delay).await;
        match self.attach().await {
            Ok(link) => {
                tracing::debug!(sandbox = %self.ticket.route.sandbox, away = ?since.elapsed(), "process is joined again");
                (self.link, self.lost) = (Some(link), None);
            }
            Err(error) if !error.cuts_the_way() || since.elapsed() >= RESUME_FOR => return Err(error),
            Err(error) => tracing::debug!(%error, "process is not joined yet"),
        }
        Ok(())
    }
}

async fn started(answers: &mut Answers) -> Result<Started, Error> {
    while let Some(event) = answers.next::<ProcessEvent>().await? {
        if let Some(process_event::Kind::Started(process)) = event.kind {
            return Ok(process);
        }
    }
    Err(broken())
}
