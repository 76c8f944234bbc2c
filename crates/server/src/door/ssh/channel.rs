//! One session channel: what a client asks for before it starts something, and then the process, joined to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dispense_api::LOGIN_SHELL;
use dispense_api::error::Error;
use dispense_api::limits;
use dispense_api::v1::{OutputStream, ProcessExited, Pty, PtySize, StartProcess, process_exited, process_input};
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::OwnedSemaphorePermit;

use crate::door::pulse::Pulse;
use crate::relay::process::{Event, Process, Ticket};
use crate::relay::{Relay, Route};

/// Of a terminal, as the agent takes it.
const TERMINAL_MAX: u32 = 10_000;
/// As ssh(1) exits when something else than the command failed.
const FAILED: u32 = 255;
/// The agent's own SFTP server.
const SFTP: &str = "internal-sftp";
const STDERR: u32 = 1;

/// A channel on which nothing was started yet.
pub(super) struct Setup {
    channel: Channel<Msg>,
    user: String,
    env: BTreeMap<String, String>,
    pty: Option<Pty>,
    _slot: OwnedSemaphorePermit,
}

/// Those of one connection.
#[derive(Default)]
pub(super) struct Setups(HashMap<ChannelId, Setup>);

impl Setups {
    pub(super) fn put(&mut self, channel: Channel<Msg>, user: &str, slot: OwnedSemaphorePermit) {
        let setup = Setup { channel, user: user.to_owned(), env: BTreeMap::new(), pty: None, _slot: slot };
        self.0.insert(setup.channel.id(), setup);
    }

    pub(super) fn take(&mut self, id: ChannelId) -> Option<Setup> {
        self.0.remove(&id)
    }

    /// Changes one; `false` when that is refused.
    pub(super) fn with(&mut self, id: ChannelId, change: impl FnOnce(&mut Setup) -> bool) -> bool {
        self.0.get_mut(&id).is_some_and(change)
    }
}

impl Setup {
    pub(super) fn shell() -> Vec<String> {
        LOGIN_SHELL.map(str::to_owned).into()
    }

    /// As sshd has it: the user's words are a shell's.
    pub(super) fn command(text: &str) -> Vec<String> {
        ["sh", "-c", text].map(str::to_owned).into()
    }

    pub(super) fn sftp() -> Vec<String> {
        vec![SFTP.to_owned()]
    }

    pub(super) fn pty(&mut self, term: &str, cols: u32, rows: u32) -> bool {
        let (cols, rows) = (cols.min(TERMINAL_MAX), rows.min(TERMINAL_MAX));
        self.pty = Some(Pty { cols, rows, term: term.chars().take(limits::MAP_KEY_MAX_BYTES).collect() });
        true
    }

    pub(super) fn variable(&mut self, name: &str, value: &str) -> bool {
        let fits = self.env.len() < limits::MAP_MAX_ENTRIES && name.len() <= limits::MAP_KEY_MAX_BYTES;
        let plain = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        let taken = fits && plain && value.len() <= limits::ENV_VALUE_MAX_BYTES;
        if taken {
            self.env.insert(name.to_owned(), value.to_owned());
        }
        taken
    }

    /// Runs a process to its end.
    pub(super) async fn run(
        self,
        args: Vec<String>,
        relay: Arc<Relay>,
        route: Result<Route, Error>,
        handle: Handle,
        pulse: Pulse,
    ) {
        let Self { channel, user, env, pty, _slot } = self;
        let start = StartProcess {
            args,
            user,
            env: env.into_iter().collect(),
            // An interactive shell is that of a terminal; all else has pipes.
            pty,
            stdin: true,
            ..StartProcess::default()
        };
        let (mut reader, writer) = channel.split();
        let ended = match route {
            Ok(route) => joined(&mut reader, &writer, start, &relay, route, &pulse).await,
            Err(error) => Err(error),
        };
        let status = match ended {
            Ok(exited) => exited,
            Err(error) => {
                let text = format!("dispense: {}\r\n", error.message);
                // A client that is gone does not read it.
                let _ = writer.extended_data_bytes(STDERR, text.into_bytes()).await;
                ProcessExited { status: Some(process_exited::Status::Code(FAILED)), ..Default::default() }
            }
        };
        finish(&writer, &handle, status).await;
    }
}

/// Joins a channel and a process, until the process has ended.
async fn joined(
    reader: &mut ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
    start: StartProcess,
    relay: &Arc<Relay>,
    route: Route,
    pulse: &Pulse,
) -> Result<ProcessExited, Error> {
    let mut process = Process::start(relay.clone(), route, start).await?;
    let ticket = process.ticket().clone();
    let input = forward_input(reader, &ticket, relay, pulse);
    let output = forward_output(&mut process, writer, pulse);
    tokio::select! {
        // Output is what a client waits for; input that is under way then is for nobody.
        ended = output => ended,
        // A client that closed the channel, or its connection, has left the process; as sshd does, it is told so.
        () = input => {
            let relay = relay.clone();
            tokio::spawn(async move { ticket.hang_up(&relay).await });
            Ok(ProcessExited { status: Some(process_exited::Status::Code(FAILED)), ..Default::default() })
        }
    }
}

/// Gives the process what the client sends; returns when the client has closed the channel.
async fn forward_input(reader: &mut ChannelReadHalf, ticket: &Ticket, relay: &Relay, pulse: &Pulse) {
    let input = &ticket.input;
    while let Some(message) = reader.wait().await {
        pulse.beat();
        let taken = match message {
            ChannelMsg::Data { data } => input.write(data).await,
            ChannelMsg::Eof => input.push(process_input::Kind::Eof(true)),
            ChannelMsg::WindowChange { col_width, row_height, .. } => {
                let (cols, rows) = (col_width.min(TERMINAL_MAX), row_height.min(TERMINAL_MAX));
                input.push(process_input::Kind::Resize(PtySize { cols, rows }))
            }
            ChannelMsg::Signal { signal } => {
                if let Some(number) = signals::number(&signal)
                    && let Err(error) = ticket.signal(relay, number).await
                {
                    tracing::debug!(%error, "a signal was not sent");
                }
                Ok(())
            }
            ChannelMsg::Close => return,
            // What was asked for before the start, and what SSH has besides.
            _ => Ok(()),
        };
        if taken.is_err() {
            // The process takes no more; its output may go on.
            std::future::pending::<()>().await;
        }
    }
}

/// Gives the client what the process writes; returns when the process has ended.
async fn forward_output(
    process: &mut Process,
    writer: &ChannelWriteHalf<Msg>,
    pulse: &Pulse,
) -> Result<ProcessExited, Error> {
    loop {
        match process.next().await? {
            Event::Output(output) => {
                pulse.beat();
                let sent = match output.stream() {
                    OutputStream::Stderr => writer.extended_data_bytes(STDERR, output.data).await,
                    _ => writer.data_bytes(output.data).await,
                };
                if sent.is_err() {
                    // The client is gone; the other direction notices.
                    std::future::pending::<()>().await;
                }
            }
            Event::Exited(exited) => return Ok(exited),
        }
    }
}

/// Tells how it ended, and closes. A client that is gone needs none of it.
async fn finish(writer: &ChannelWriteHalf<Msg>, handle: &Handle, exited: ProcessExited) {
    let _ = writer.eof().await;
    match exited.status {
        Some(process_exited::Status::Signal(signal)) => match signals::name(signal) {
            Some(name) => {
                let _ = handle.exit_signal_request(writer.id(), name, false, String::new(), "en".to_owned()).await;
            }
            // One that SSH has no name for, as a shell tells it.
            None => {
                let _ = writer.exit_status(128 + signal).await;
            }
        },
        Some(process_exited::Status::Code(code)) => {
            let _ = writer.exit_status(code).await;
        }
        None => {
            let _ = writer.exit_status(FAILED).await;
        }
    }
    let _ = writer.close().await;
}

/// Linux's numbers and SSH's names of signals.
mod signals {
    use russh::Sig;

    pub(super) const HUP: u32 = 1;

    pub(super) fn number(signal: &Sig) -> Option<u32> {
        Some(match signal {
            Sig::HUP => HUP,
            Sig::INT => 2,
            Sig::QUIT => 3,
            Sig::ILL => 4,
            Sig::ABRT => 6,
            Sig::FPE => 8,
            Sig::KILL => 9,
            Sig::USR1 => 10,
            Sig::SEGV => 11,
            Sig::PIPE => 13,
            Sig::ALRM => 14,
            Sig::TERM => 15,
            Sig::Custom(name) if name == "USR2" => 12,
            Sig::Custom(_) => return None,
        })
    }

    pub(super) fn name(number: u32) -> Option<Sig> {
        const ALL: [Sig; 12] = [
            Sig::HUP,
            Sig::INT,
            Sig::QUIT,
            Sig::ILL,
            Sig::ABRT,
            Sig::FPE,
            Sig::KILL,
            Sig::USR1,
            Sig::SEGV,
            Sig::PIPE,
            Sig::ALRM,
            Sig::TERM,
        ];
        ALL.into_iter().find(|signal| self::number(signal) == Some(number))
    }
}
