//! A process of a sandbox on this terminal or these pipes: bytes pass unchanged in both directions, signals
//! and sizes reach the process, the terminal is restored whatever happens.

mod input;
mod output;
mod signals;
mod terminal;

use std::os::fd::AsFd;
use std::time::Duration;

use bytes::Bytes;
use dispense_client::{Client, Error, RunningProcess, v1};
use rustix::io::Errno;
use tokio::time::Instant;

pub(crate) use terminal::{is_terminal, size};

use crate::failure::local;
use output::{Output, Sink};
use signals::Signals;
use terminal::RawMode;

/// A second request to end that comes this much later than the first means it: the process is killed.
const KILL_AFTER: Duration = Duration::from_secs(2);
/// A sandbox waits for a runner for a minute and is filled for two; a command that has not begun by then is not about to.
const START_TIMEOUT: Duration = Duration::from_secs(200);
const SIGHUP: u32 = 1;
const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;

/// How it ended.
pub(crate) enum Ended {
    /// By itself or by a signal.
    Exited(v1::ProcessExited),
    /// Nobody reads stdout any more.
    ReaderGone,
}

/// What is connected to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streams {
    /// Pass our stdin on.
    pub(crate) stdin: bool,
    /// It has a terminal.
    pub(crate) tty: bool,
    /// It reads commands from its terminal: such a shell ends when that hangs up, and at no request to end.
    pub(crate) shell: bool,
}

/// Starts a process and carries it to its end.
pub(crate) async fn run(
    client: &Client,
    sandbox: &str,
    mut start: v1::StartProcess,
    streams: Streams,
) -> Result<Ended, Error> {
    start.stdin = streams.stdin;
    if streams.tty {
        let (cols, rows) = size();
        let term = std::env::var("TERM").unwrap_or_default();
        start.pty = Some(v1::Pty { cols, rows, term });
    }
    // Before the start: a signal that comes now is for the process.
    let signals = Signals::listen(streams.tty)?;
    let process = client.run(sandbox, start).await?;
    carry(client, sandbox, process, signals, streams).await
}

/// Attaches to a process and carries it to its end, or until our terminal is gone.
pub(crate) async fn attach(
    client: &Client,
    sandbox: &str,
    open: v1::AttachProcess,
    streams: Streams,
) -> Result<Ended, Error> {
    let signals = Signals::listen(streams.tty)?;
    let process = client.attach(sandbox, open).await?;
    if streams.tty {
        let (cols, rows) = size();
        process.input.resize(cols, rows)?;
    }
    carry(client, sandbox, process, signals, streams).await
}

async fn carry(
    client: &Client,
    sandbox: &str,
    process: RunningProcess,
    signals: Signals,
    streams: Streams,
) -> Result<Ended, Error> {
    let raw = if streams.tty && is_terminal(std::io::stdin().as_fd()) { Some(RawMode::enter()?) } else { None };
    if streams.stdin || streams.tty {
        input::forward(process.input.clone());
    }
    let hangs_up = streams.shell && streams.tty;
    let mut session = Session {
        client,
        sandbox,
        process,
        signals,
        hangs_up,
        pid: None,
        asked_to_end: None,
        queued: vec![],
        unheard: false,
    };
    let ended = session.carry().await;
    drop(raw);
    ended
}

struct Session<'a> {
    client: &'a Client,
    sandbox: &'a str,
    process: RunningProcess,
    signals: Signals,
    /// Asks for the end by hanging up.
    hangs_up: bool,
    pid: Option<u32>,
    /// When the first signal came that asks for an end.
    asked_to_end: Option<Instant>,
    /// Signals that came before the process had started.
    queued: Vec<u32>,
    /// A signal came while there was no connection, and its sender was told.
    unheard: bool,
}

impl Session<'_> {
    async fn carry(&mut self) -> Result<Ended, Error> {
        let output = Output::start();
        let begun = Instant::now();
        let mut waiting: Option<(Sink, Bytes)> = None;
        let exited = loop {
            let starts_by = self.starts_by(begun);
            // CANCEL SAFETY: a chunk stays in `waiting` until the writer has room for it.
            tokio::select! {
                room = output.room(), if waiting.is_some() => match room {
                    Some(room) => {
                        if let Some(chunk) = waiting.take() {
                            room.send(chunk);
                        }
                    }
                    None => break None,
                },
                event = self.process.events.next(), if waiting.is_none() => match event?.and_then(|event| event.kind) {
                    Some(v1::process_event::Kind::Started(process)) => self.started(process.pid).await,
                    Some(v1::process_event::Kind::Output(chunk)) => {
                        let sink = match chunk.stream() {
                            v1::OutputStream::Stderr => Sink::Stderr,
                            v1::OutputStream::Stdout | v1::OutputStream::Pty | v1::OutputStream::Unspecified => Sink::Stdout,
                        };
                        waiting = Some((sink, chunk.data));
                    }
                    Some(v1::process_event::Kind::Gap(gap)) => {
                        eprintln!("dispense: {} bytes of output were dropped", gap.to - gap.from);
                    }
                    Some(v1::process_event::Kind::Exited(exited)) => break Some(exited),
                    Some(v1::process_event::Kind::InputTaken(_)) => {}
                    None => return Err(Error::new(
                        dispense_client::Code::Unavailable,
                        "cut",
                        "the stream of the process ended before the process did: see `dispense get`",
                    )),
                },
                signal = self.signals.next() => self.signal(signal).await?,
                () = output.failed(), if waiting.is_none() => break None,
                () = tokio::time::sleep_until(starts_by), if self.pid.is_none() => return Err(self.not_started()),
            }
        };
        let Some(exited) = exited else { return self.unwritten(output).await };
        tokio::select! {
            written = output.finish() => match written {
                Ok(()) => Ok(Ended::Exited(exited)),
                Err(error) => unwritten(error),
            },
            // Nobody reads, and somebody wants an end.
            _ = self.signals.next() => Ok(Ended::Exited(exited)),
        }
    }

    /// Who asks for an end before the beginning does not wait for that for long.
    fn starts_by(&self, begun: Instant) -> Instant {
        self.asked_to_end.map_or(begun + START_TIMEOUT, |asked| asked + KILL_AFTER)
    }

    fn not_started(&self) -> Error {
        let name = self.sandbox;
        let message = format!("the command had not started when it was given up: see `dispense get {name}`");
        Error::new(dispense_client::Code::DeadlineExceeded, "not_started", message)
    }

    async fn started(&mut self, pid: u32) {
        self.pid = Some(pid);
        for signal in std::mem::take(&mut self.queued) {
            self.send(pid, signal).await;
        }
    }

    async fn signal(&mut self, signal: signals::Event) -> Result<(), Error> {
        let number = match signal {
            signals::Event::Resized => {
                let (cols, rows) = size();
                // A process that has just ended has no terminal.
                let _ = self.process.input.resize(cols, rows);
                return Ok(());
            }
            signals::Event::Signal(number) => number,
        };
        if let Some(error) = self.process.events.interrupted() {
            if self.unheard {
                return Err(error.clone());
            }
            self.unheard = true;
            eprintln!(
                "dispense: the connection is lost and the signal cannot be passed on; once more ends this command and leaves the process running"
            );
            return Ok(());
        }
        let insists = self.asked_to_end.is_some_and(|first| first.elapsed() > KILL_AFTER);
        self.asked_to_end.get_or_insert_with(Instant::now);
        let number = match number {
            _ if insists => SIGKILL,
            SIGTERM if self.hangs_up => SIGHUP,
            number => number,
        };
        match self.pid {
            Some(pid) => self.send(pid, number).await,
            None => self.queued.push(number),
        }
        Ok(())
    }

    async fn send(&self, pid: u32, signal: u32) {
        // A process that has just ended takes none.
        if let Err(error) = self.client.signal(self.sandbox, pid, signal).await {
            tracing::debug!(%error, "signal");
        }
    }

    /// Nobody takes what the process writes: it is ended as a broken pipe would end it.
    async fn unwritten(&mut self, output: Output) -> Result<Ended, Error> {
        if let Some(pid) = self.pid {
            self.send(pid, SIGKILL).await;
        }
        unwritten(output.finish().await.err().unwrap_or(Errno::PIPE))
    }
}

fn unwritten(error: Errno) -> Result<Ended, Error> {
    match error {
        Errno::PIPE => Ok(Ended::ReaderGone),
        error => Err(local("write the command's output", &std::io::Error::from(error))),
    }
}
