//! The terminal of a client: a shell with a terminal of its own. A client that was cut off finds it again, see
//! [`recovery`](super::recovery): by the name of its session, or, where it gave none, as the one of its key that was cut
//! off first.

use std::sync::{Arc, Mutex as StdMutex};

use bytes::Bytes;
use dispense_api::LOGIN_SHELL;
use dispense_api::error::{Code, Error};
use dispense_api::method::Method;
use dispense_api::outbox::Outbox;
use dispense_api::v1::{Pty, PtySize, StartProcess, process_exited, process_input};
use serde::Deserialize;
use serde_json::json;
use socketioxide::extract::SocketRef;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinHandle;

use super::events::{deliver, ended, send_away, told};
use super::recovery::{Left, Present, RECOVERY_WINDOW};
use super::{Client, ROOT};
use crate::relay::process::{Event, Process, Ticket};
use crate::sandbox::spec::invalid;

/// Of one event.
const DATA_MAX_BYTES: usize = 64 << 10;
const COLS_DEFAULT: u32 = 80;
const ROWS_DEFAULT: u32 = 24;
/// Of columns and of rows.
const TERMINAL_MAX: u32 = 10_000;
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
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    cols: i64,
    rows: i64,
}

/// Of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    cols: u32,
    rows: u32,
}

impl TryFrom<Asked> for Size {
    type Error = Error;

    fn try_from(asked: Asked) -> Result<Self, Error> {
        let bounded = |field, count: i64| {
            let count = u32::try_from(count).ok().filter(|count| (1..=TERMINAL_MAX).contains(count));
            count.ok_or_else(|| invalid(field, format_args!("use a number from 1 to {TERMINAL_MAX}")))
        };
        Ok(Self { cols: bounded("cols", asked.cols)?, rows: bounded("rows", asked.rows)? })
    }
}

/// Where a client's terminal is.
#[derive(Default)]
pub(super) struct Terminal(Arc<Mutex<Option<Open>>>);

/// An open terminal.
pub(super) struct Open {
    shell: Shell,
    /// Carries its output to the client; whether it has ended, and not the client.
    output: JoinHandle<bool>,
}

/// The process behind a terminal.
#[derive(Clone)]
pub(super) struct Shell {
    ticket: Ticket,
    /// Bytes of its output that the client was sent.
    sent: Arc<StdMutex<u64>>,
    /// It has ended, and the client was sent that.
    ended: bool,
}

impl Shell {
    fn sent(&self) -> u64 {
        *self.sent.lock().expect("no holder panics")
    }
}

impl Client {
    /// Keeps everybody from the terminal until the client has found the one that it left; `None` where it is in use.
    pub(super) fn hold_terminal(&self) -> Option<OwnedMutexGuard<Option<Open>>> {
        self.terminal.0.clone().try_lock_owned().ok()
    }

    /// Gives a client that comes back what it left: the directories that it follows, and its terminal with what it missed.
    pub(super) async fn resume(self: &Arc<Self>, socket: &SocketRef, mut terminal: OwnedMutexGuard<Option<Open>>) {
        if let Some(before) = self.recovery.arrive(self, socket) {
            before.supersede().await;
        }
        let Some(left) = self.recovery.take(&self.recovery_key()) else { return };
        self.watch.resume(socket, left.folders).await;
        let Some(shell) = left.shell else { return };
        // One that has ended is told again only to who says that it has not seen all of it.
        if shell.ended && self.offset.is_none_or(|seen| seen >= shell.sent()) {
            return;
        }
        match self.attach(socket, shell).await {
            Ok(open) => *terminal = Some(open),
            // It has ended meanwhile: the next key opens another one.
            Err(error) => tracing::debug!(%error, "a terminal was not resumed"),
        }
    }

    async fn attach(&self, socket: &SocketRef, mut shell: Shell) -> Result<Open, Error> {
        let sent = shell.sent();
        let from = match self.offset {
            Some(offset) => offset.min(sent),
            // What was on its way when it was cut off is lost, and nobody knows how much that is.
            None => sent.saturating_sub(SEEN_AGAIN_BYTES),
        };
        let process = Process::join(self.parts.relay.clone(), shell.ticket.clone(), from).await?;
        if self.offset.is_none() {
            deliver(socket, "terminal:data", &json!({"data": RESET, "offset": from})).await;
        }
        shell.ended = false;
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
        let shell = Shell { ticket: process.ticket().clone(), sent: Arc::default(), ended: false };
        let output = tokio::spawn(carry(process, socket.clone(), shell.sent.clone()));
        Ok(Open { shell, output })
    }

    /// What takes input: of a terminal that is opened if there is none, or the last has ended. While the way to the
    /// sandbox is cut it waits there.
    async fn terminal(&self, socket: &SocketRef, size: Size) -> Result<Arc<Outbox>, Error> {
        let mut terminal = self.terminal.0.lock().await;
        // Nobody would end it.
        if self.gone.is_cancelled() {
            return Err(ended());
        }
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

    pub(super) async fn resize(&self, socket: &SocketRef, asked: Asked) -> Result<(), Error> {
        let size = Size::try_from(asked)?;
        let resize = process_input::Kind::Resize(PtySize { cols: size.cols, rows: size.rows });
        self.terminal(socket, size).await?.push(resize)
    }

    /// The client is gone: what it had waits for it, or ends where the client has no name and was not cut off. Who leaves
    /// twice has nothing to leave the second time.
    pub(super) async fn leave(self: &Arc<Self>, cut_off: bool) {
        let (key, relay) = (self.recovery_key(), self.parts.relay.clone());
        // Held until it waits: who has the session next looks after this.
        let mut terminal = self.terminal.0.lock().await;
        let folders = self.watch.stop().await;
        let mut shell = None;
        if let Some(Open { shell: open, output }) = terminal.take() {
            output.abort();
            let ended = matches!(output.await, Ok(true));
            // What it said last may not have come, and only a session's client can say so.
            shell = (!ended || key.is_session()).then_some(Shell { ended, ..open });
        }
        let waits = if key.is_session() { shell.is_some() || !folders.is_empty() } else { shell.is_some() && cut_off };
        let over = if waits {
            let (number, oldest) = self.recovery.put(&key, Left { shell, folders });
            let (recovery, relay) = (self.recovery.clone(), relay.clone());
            tokio::spawn(async move {
                tokio::time::sleep(RECOVERY_WINDOW).await;
                if let Some(shell) = recovery.expire(&key, number).and_then(|left| left.shell) {
                    shell.ticket.hang_up(&relay).await;
                }
            });
            oldest.and_then(|left| left.shell)
        } else {
            shell
        };
        self.recovery.depart(self);
        drop(terminal);
        if let Some(shell) = over {
            shell.ticket.hang_up(&relay).await;
        }
    }
}

impl Present {
    /// A newer connection has the session of this one, whose network may be gone with nobody knowing.
    async fn supersede(self) {
        self.client.gone.cancel();
        self.client.leave(true).await;
        let why = "a newer connection has this one's `auth.session`: give each connection a session of its own";
        let why = Error::new(Code::Cancelled, "session_taken", why);
        tokio::spawn(async move { send_away(self.socket, &why).await });
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
                deliver(&socket, "error", &told(&error)).await;
                return true;
            }
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
    fn a_size_is_in_bounds_or_refused_by_its_field() {
        let size = |cols, rows| Size::try_from(Asked { cols, rows });
        assert_eq!(size(1, 10_000).expect("in bounds"), Size { cols: 1, rows: 10_000 });
        for (cols, rows, field) in [(0, 24, "cols"), (80, 70_000, "rows"), (-1, 24, "cols"), (80, i64::MAX, "rows")] {
            let error = size(cols, rows).expect_err("out of bounds");
            assert_eq!(error.code, Code::InvalidArgument);
            assert_eq!(error.message, format!("{field}: use a number from 1 to 10000"));
        }
    }

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
