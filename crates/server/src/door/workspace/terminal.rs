//! The terminal of a client: a shell with a terminal of its own. A client that was cut off finds it again: by the name of
//! its session, or, where it gave none, as the one of its key that was cut off first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use bytes::Bytes;
use dispense_api::LOGIN_SHELL;
use dispense_api::error::Error;
use dispense_api::method::Method;
use dispense_api::outbox::Outbox;
use dispense_api::v1::{Pty, PtySize, StartProcess, process_exited, process_input};
use serde::Deserialize;
use serde_json::{Value, json};
use socketioxide::extract::SocketRef;
use socketioxide::{SendError, SocketError};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::{Client, ROOT};
use crate::relay::process::{Event, Process, Ticket};

/// How long a terminal waits for its client.
const RECOVERY_WINDOW: Duration = Duration::from_secs(120);
/// Before a client that takes nothing is tried again; its queue is bounded.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// Of one event.
const DATA_MAX_BYTES: usize = 64 << 10;
const COLS_DEFAULT: u32 = 80;
const ROWS_DEFAULT: u32 = 24;
const TERMINAL_MAX: u32 = 10_000;
/// Terminals without a session's name that wait for one key; the oldest ends.
const UNNAMED_MAX: usize = 16;
/// Of a client that cannot say what it has seen, so much is told again, on a screen that is cleared first.
const SEEN_AGAIN_BYTES: u64 = 64 << 10;
/// Clears a terminal of every kind.
const RESET: &str = "\x1bc";

/// Of `terminal:write`.
#[derive(Debug, Deserialize)]
pub(super) struct Typed {
    data: String,
}

/// Of `terminal:resize`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Size {
    cols: u32,
    rows: u32,
}

/// Where a client's terminal is.
#[derive(Default)]
pub(super) struct Terminal(Mutex<Option<Open>>);

/// An open terminal.
struct Open {
    shell: Shell,
    /// Carries its output to the client; whether it has ended, and not the client.
    output: JoinHandle<bool>,
}

/// The process behind a terminal.
#[derive(Clone)]
struct Shell {
    ticket: Ticket,
    /// Bytes of its output that the client was sent.
    sent: Arc<StdMutex<u64>>,
}

/// Terminals whose clients are away, the oldest of one key first.
#[derive(Default)]
pub(super) struct Parked(StdMutex<HashMap<ParkedKey, VecDeque<Shell>>>);

/// Where a client looks for its terminal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ParkedKey {
    sandbox: String,
    whose: Whose,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    Session { account: String, name: String },
    Key(String),
}

impl ParkedKey {
    fn holds(&self) -> usize {
        match self.whose {
            Whose::Session { .. } => 1,
            Whose::Key(_) => UNNAMED_MAX,
        }
    }
}

impl Parked {
    /// Lets one wait; the one that has to go for it.
    fn put(&self, key: &ParkedKey, shell: Shell) -> Option<Shell> {
        let mut parked = self.0.lock().expect("no holder panics");
        let waiting = parked.entry(key.clone()).or_default();
        waiting.push_back(shell);
        if waiting.len() > key.holds() { waiting.pop_front() } else { None }
    }

    /// Takes the one that has waited longest, if it is wanted.
    fn take(&self, key: &ParkedKey, wanted: impl Fn(&Shell) -> bool) -> Option<Shell> {
        let mut parked = self.0.lock().expect("no holder panics");
        let waiting = parked.get_mut(key)?;
        let at = waiting.iter().position(wanted)?;
        let shell = waiting.remove(at);
        if waiting.is_empty() {
            parked.remove(key);
        }
        shell
    }
}

impl Client {
    fn parked_key(&self) -> ParkedKey {
        let whose = if self.session.is_empty() {
            Whose::Key(self.caller.key_id.clone())
        } else {
            Whose::Session { account: self.caller.account.clone(), name: self.session.clone() }
        };
        ParkedKey { sandbox: self.sandbox.clone(), whose }
    }

    /// Gives a client that comes back its terminal, with what it missed.
    pub(super) async fn resume_terminal(&self, socket: &SocketRef) {
        let Some(shell) = self.parked.take(&self.parked_key(), |_| true) else { return };
        let mut terminal = self.terminal.0.lock().await;
        match self.attach(socket, shell).await {
            Ok(open) => *terminal = Some(open),
            // It has ended meanwhile: the next key opens another one.
            Err(error) => tracing::debug!(%error, "a terminal was not resumed"),
        }
    }

    async fn attach(&self, socket: &SocketRef, shell: Shell) -> Result<Open, Error> {
        let sent = *shell.sent.lock().expect("no holder panics");
        let from = match self.offset {
            Some(offset) => offset.min(sent),
            // What was on its way when it was cut off is lost, and nobody knows how much that is.
            None => sent.saturating_sub(SEEN_AGAIN_BYTES),
        };
        let process = Process::join(self.parts.relay.clone(), shell.ticket.clone(), from).await?;
        if self.offset.is_none() {
            deliver(socket, "terminal:data", &json!({"data": RESET, "offset": from})).await;
        }
        let output = tokio::spawn(carry(process, socket.clone(), shell.sent.clone()));
        Ok(Open { shell, output })
    }

    async fn open(&self, socket: &SocketRef, size: Size) -> Result<Open, Error> {
        let route = self.route(Method::RunProcess).await?;
        let start = StartProcess {
            args: LOGIN_SHELL.map(str::to_owned).into(),
            cwd: ROOT.to_owned(),
            pty: Some(Pty { cols: size.cols, rows: size.rows, term: String::new() }),
            stdin: true,
            ..StartProcess::default()
        };
        let process = Process::start(self.parts.relay.clone(), route, start).await?;
        let shell = Shell { ticket: process.ticket().clone(), sent: Arc::default() };
        let output = tokio::spawn(carry(process, socket.clone(), shell.sent.clone()));
        Ok(Open { shell, output })
    }

    /// What takes input: of a terminal that is opened if there is none, or the last has ended. While the way to the
    /// sandbox is cut it waits there.
    async fn terminal(&self, socket: &SocketRef, size: Size) -> Result<Arc<Outbox>, Error> {
        let mut terminal = self.terminal.0.lock().await;
        if let Some(open) = terminal.as_ref()
            && !open.output.is_finished()
        {
            return Ok(open.shell.ticket.input.clone());
        }
        let open = self.open(socket, size).await?;
        let input = open.shell.ticket.input.clone();
        *terminal = Some(open);
        Ok(input)
    }

    pub(super) async fn type_in(&self, socket: &SocketRef, typed: Typed) -> Result<(), Error> {
        let size = Size { cols: COLS_DEFAULT, rows: ROWS_DEFAULT };
        self.terminal(socket, size).await?.write(Bytes::from(typed.data)).await
    }

    pub(super) async fn resize(&self, socket: &SocketRef, size: Size) -> Result<(), Error> {
        let bounded = |count: u32| count.clamp(1, TERMINAL_MAX);
        let size = Size { cols: bounded(size.cols), rows: bounded(size.rows) };
        let resize = process_input::Kind::Resize(PtySize { cols: size.cols, rows: size.rows });
        self.terminal(socket, size).await?.push(resize)
    }

    /// The client is gone: its terminal waits for it, or ends where the client has no name and was not cut off.
    pub(super) async fn leave(&self, cut_off: bool) {
        self.watch.stop().await;
        let Some(open) = self.terminal.0.lock().await.take() else { return };
        open.output.abort();
        if matches!(open.output.await, Ok(true)) {
            return;
        }
        let relay = self.parts.relay.clone();
        if self.session.is_empty() && !cut_off {
            return open.shell.ticket.hang_up(&relay).await;
        }
        let (key, parked, ticket) = (self.parked_key(), self.parked.clone(), open.shell.ticket.clone());
        if let Some(oldest) = parked.put(&key, open.shell) {
            oldest.ticket.hang_up(&relay).await;
        }
        tokio::spawn(async move {
            tokio::time::sleep(RECOVERY_WINDOW).await;
            if let Some(shell) = parked.take(&key, |shell| shell.ticket.is(&ticket)) {
                shell.ticket.hang_up(&relay).await;
            }
        });
    }
}

/// Carries output to a client: `terminal:data {data, offset}`, where `offset` is that of the end of `data`. Returns
/// whether there is no more of it; else the client is gone.
async fn carry(mut process: Process, socket: SocketRef, sent: Arc<StdMutex<u64>>) -> bool {
    let mut text = Text::default();
    loop {
        match process.next().await {
            Ok(Event::Output(output)) => {
                let mut end = output.offset;
                for part in output.data.chunks(DATA_MAX_BYTES) {
                    end += part.len() as u64;
                    let whole = text.take(part);
                    // What waits for the rest of its character was not sent.
                    let offset = end - text.waiting() as u64;
                    if !whole.is_empty()
                        && !deliver(&socket, "terminal:data", &json!({"data": whole, "offset": offset})).await
                    {
                        return false;
                    }
                    *sent.lock().expect("no holder panics") = offset;
                }
            }
            Ok(Event::Exited(exited)) => {
                let status = match exited.status {
                    Some(process_exited::Status::Code(code)) => json!({"code": code}),
                    Some(process_exited::Status::Signal(signal)) => json!({"signal": signal}),
                    None => json!({}),
                };
                deliver(&socket, "terminal:exit", &status).await;
                return true;
            }
            Err(error) => {
                let told = json!({"code": error.code.as_str(), "message": error.message});
                deliver(&socket, "error", &told).await;
                return true;
            }
        }
    }
}

/// Sends an event, and waits while the client's queue is full; `false` when it is gone.
async fn deliver(socket: &SocketRef, event: &str, value: &Value) -> bool {
    loop {
        match socket.emit(event, value) {
            Ok(()) => return true,
            Err(SendError::Socket(SocketError::InternalChannelFull)) => tokio::time::sleep(FULL_PAUSE).await,
            Err(_) => return false,
        }
    }
}

/// Cuts bytes into text, never within a character. What is no UTF-8 at all is replaced.
#[derive(Default)]
struct Text {
    begun: Vec<u8>,
}

impl Text {
    fn take(&mut self, bytes: &[u8]) -> String {
        self.begun.extend_from_slice(bytes);
        let cut = match std::str::from_utf8(&self.begun) {
            Ok(_) => self.begun.len(),
            Err(_) => self.begun.len() - unfinished(&self.begun),
        };
        let whole: Vec<u8> = self.begun.drain(..cut).collect();
        String::from_utf8_lossy(&whole).into_owned()
    }

    fn waiting(&self) -> usize {
        self.begun.len()
    }
}

/// Bytes at the end that may become a character.
fn unfinished(bytes: &[u8]) -> usize {
    const LONGEST: usize = 4;
    for back in 1..LONGEST.min(bytes.len() + 1) {
        let byte = bytes[bytes.len() - back];
        let wanted = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => return 0,
        };
        return if back < wanted { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_is_cut_and_no_byte_is_lost() {
        let all = "aé€😀z".repeat(50);
        for size in 1..9 {
            let mut text = Text::default();
            let mut out = String::new();
            for part in all.as_bytes().chunks(size) {
                let whole = text.take(part);
                assert!(!whole.contains('\u{fffd}'));
                out.push_str(&whole);
            }
            assert_eq!((out.as_str(), text.waiting()), (all.as_str(), 0));
        }
    }

    #[test]
    fn what_is_no_text_is_replaced_and_does_not_wait() {
        let mut text = Text::default();
        assert_eq!(text.take(b"a\xff\xfeb"), "a\u{fffd}\u{fffd}b");
        assert_eq!(text.take(b"\xbf\xbf\xbf\xbf"), "\u{fffd}".repeat(4));
        assert_eq!((text.take(b"\xf0\x9f"), text.waiting()), (String::new(), 2));
        assert_eq!((text.take(b"x").as_str(), text.waiting()), ("\u{fffd}x", 0));
    }
}
