//! The events of a client, and what it is answered: every one is acknowledged, and a failure is an `error` event too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dispense_api::error::{Code, Error};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use socketioxide::extract::{AckSender, Event, SocketRef, TryData};
use socketioxide::socket::DisconnectReason;
use socketioxide::{SendError, SocketError, TransportType};
use tokio::sync::oneshot;

use super::{Client, files, terminal};
use crate::auth::until::KEY_ENDED;
use crate::sandbox::spec::clip;

const FETCH_DIR: Known = Known { name: "fetchDir", takes: "{path}" };
const FETCH_CONTENT: Known = Known { name: "fetchContent", takes: "{path}" };
const UPDATE_CONTENT: Known =
    Known { name: "updateContent", takes: "{path, content, encoding?}: strings, or `content` as a Buffer" };
const TERMINAL_WRITE: Known = Known { name: "terminal:write", takes: "{data}: a string" };
const TERMINAL_RESIZE: Known = Known { name: "terminal:resize", takes: "{cols, rows}: whole numbers" };
const ALL: [Known; 5] = [FETCH_DIR, FETCH_CONTENT, UPDATE_CONTENT, TERMINAL_WRITE, TERMINAL_RESIZE];
/// Before a client that takes nothing is tried again; its queue is bounded.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// Lanes of one client before those that are over are looked for.
const LANES_KEPT: usize = 64;

/// An event that there is.
#[derive(Clone, Copy)]
struct Known {
    name: &'static str,
    takes: &'static str,
}

/// What of a client is done in the order in which it came: the library makes a task of each event.
#[derive(Default)]
pub(super) struct Lanes(Mutex<HashMap<Lane, oneshot::Receiver<()>>>);

/// What has one order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Lane {
    Terminal,
    /// A file, by its path as the client wrote it: others are written beside it.
    File(String),
}

/// The place of one event in its lane.
struct Turn {
    before: Option<oneshot::Receiver<()>>,
    _over: oneshot::Sender<()>,
}

impl Lanes {
    fn enter(&self, lane: Lane) -> Turn {
        let (over, end) = oneshot::channel();
        let mut last = self.0.lock().expect("no holder panics");
        let before = last.insert(lane, end);
        // BOUND: those whose last event is over go when there are many.
        if last.len() > LANES_KEPT {
            last.retain(|_, end| matches!(end.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        }
        Turn { before, _over: over }
    }
}

impl Turn {
    /// Waits for those before it.
    ///
    /// CANCEL SAFETY: who waits again goes on waiting for the same.
    async fn comes(&mut self) {
        if let Some(before) = &mut self.before {
            // Nothing is ever sent: it ends.
            let _ = before.await;
            self.before = None;
        }
    }
}

impl Known {
    fn malformed(self) -> Error {
        Error::new(Code::InvalidArgument, "payload", format!("`{}` takes {}", self.name, self.takes))
    }
}

/// Of events that name a path.
#[derive(Debug, Deserialize)]
struct PathData {
    path: String,
}

/// A client has come in: takes its events from now on, and then gives it what it left. Not `async` itself: no event may
/// come before there is somebody who takes it.
pub(super) fn connected(socket: SocketRef) -> impl Future<Output = ()> + Send {
    // Before any event: what the client types is for the terminal that it finds again.
    let found = client(&socket).map(|client| (client.hold_terminal(), client));
    listen(&socket);
    async move {
        let Some((terminal, client)) = found else { return };
        tokio::spawn(leave_with_key(socket.clone(), client.clone()));
        if let Some(terminal) = terminal {
            client.resume(&socket, terminal).await;
        }
        if !socket.connected() {
            // It may have gone before there was somebody to tell.
            gone(&client, true).await;
        }
    }
}

fn listen(socket: &SocketRef) {
    on(
        socket,
        FETCH_DIR,
        |_| None,
        async |client, socket, data: PathData| {
            let tree = client.list(&socket, &data.path).await?;
            emit(&socket, "file:refresh", &tree);
            Ok(tree)
        },
    );
    on(
        socket,
        FETCH_CONTENT,
        |_| None,
        async |client, socket, data: PathData| {
            let content = client.read(&data.path).await?;
            emit(&socket, "file:content", &content);
            Ok(content)
        },
    );
    let file = |update: &files::Update| Some(Lane::File(update.path.clone()));
    on(socket, UPDATE_CONTENT, file, async |client, _, update| client.write(update).await.map(|()| json!({})));
    on(
        socket,
        TERMINAL_WRITE,
        |_| Some(Lane::Terminal),
        async |client, socket, typed: terminal::Typed| client.type_in(&socket, typed).await.map(|()| json!({})),
    );
    on(
        socket,
        TERMINAL_RESIZE,
        |_| Some(Lane::Terminal),
        async |client, socket, size: terminal::Asked| client.resize(&socket, size).await.map(|()| json!({})),
    );
    socket.on_fallback(async |socket: SocketRef, Event(name): Event, ack: AckSender| {
        answer(&socket, ack, Err(unknown(&name)));
    });
    socket.on_disconnect(async |socket: SocketRef, why: DisconnectReason| {
        let cut_off = match why {
            DisconnectReason::HeartbeatTimeout => true,
            // Polling has no connection to lose: that is a client who left while it changed to a WebSocket.
            DisconnectReason::TransportError => socket.transport_type() == TransportType::Websocket,
            _ => false,
        };
        tracing::debug!(%why, cut_off, "a workspace's client is gone");
        if let Some(client) = client(&socket) {
            gone(&client, cut_off).await;
        }
    });
}

/// Takes an event; `lane` tells what it waits for.
fn on<T, H, F>(socket: &SocketRef, event: Known, lane: fn(&T) -> Option<Lane>, handle: H)
where
    T: DeserializeOwned + Send + Sync + 'static,
    H: Fn(Arc<Client>, SocketRef, T) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Value, Error>> + Send + 'static,
{
    socket.on(event.name, move |socket: SocketRef, data: TryData<T>, ack: AckSender| {
        // Now, and not in the task that the library makes of the rest.
        let lane = data.0.as_ref().ok().and_then(lane);
        let turn = lane.and_then(|lane| Some(client(&socket)?.lanes.enter(lane)));
        async move {
            let mut turn = turn;
            if let Some(turn) = &mut turn {
                turn.comes().await;
            }
            let done = match (present(&socket), data.0) {
                (Ok(client), Ok(data)) => handle(client, socket.clone(), data).await,
                (Ok(_), Err(_)) => Err(event.malformed()),
                (Err(error), _) => Err(error),
            };
            answer(&socket, ack, done);
        }
    });
}

async fn gone(client: &Arc<Client>, cut_off: bool) {
    client.gone.cancel();
    client.leave(cut_off).await;
}

/// A client whose key opens nothing any more is sent away.
async fn leave_with_key(socket: SocketRef, client: Arc<Client>) {
    tokio::select! {
        () = client.parts.keys.ended(&client.caller.key_id) => {}
        () = client.gone.cancelled() => return,
    }
    send_away(socket, &Error::new(Code::Unauthenticated, "unauthenticated", KEY_ENDED)).await;
}

/// Tells a client why it has to go, and ends its connection. One that takes nothing is waited for until its heartbeat fails.
pub(super) async fn send_away(socket: SocketRef, why: &Error) {
    deliver(&socket, "error", &told(why)).await;
    while let Err(error) = socket.clone().disconnect() {
        if !matches!(error, SocketError::InternalChannelFull) {
            return tracing::debug!(%error, "a client was gone before it was sent away");
        }
        tokio::time::sleep(FULL_PAUSE).await;
    }
}

fn client(socket: &SocketRef) -> Option<Arc<Client>> {
    socket.extensions.get::<Arc<Client>>()
}

/// The client of a connection, as long as the connection is its own.
fn present(socket: &SocketRef) -> Result<Arc<Client>, Error> {
    let client = client(socket).filter(|client| !client.gone.is_cancelled());
    client.ok_or_else(ended)
}

/// This connection is not the client's any more.
pub(super) fn ended() -> Error {
    Error::new(Code::Cancelled, "connection_ended", "this connection has ended: connect again")
}

fn unknown(event: &str) -> Error {
    let all: Vec<String> = ALL.iter().map(|known| format!("`{}`", known.name)).collect();
    let message = format!("there is no event `{}`: there are {}", clip(event), all.join(", "));
    Error::new(Code::Unimplemented, "event_unknown", message)
}

/// Acknowledges an event: `{ok: true, …}`, or `{ok: false, error}` and an `error` event.
fn answer(socket: &SocketRef, ack: AckSender, result: Result<Value, Error>) {
    let body = match result {
        Ok(mut value) => {
            value["ok"] = Value::Bool(true);
            value
        }
        Err(error) => {
            let told = told(&error);
            emit(socket, "error", &told);
            json!({"ok": false, "error": told})
        }
    };
    if let Err(error) = ack.send(&body) {
        tracing::debug!(%error, "an event was not acknowledged");
    }
}

/// `{code, message}`
pub(super) fn told(error: &Error) -> Value {
    json!({"code": error.code.as_str(), "message": clip_long(&error.message)})
}

fn emit(socket: &SocketRef, event: &str, value: &Value) {
    // A client that is gone, or takes nothing, needs no more.
    if let Err(error) = socket.emit(event, value) {
        tracing::debug!(%error, event, "not sent");
    }
}

/// Sends an event, and waits while the client's queue is full; `false` when it is gone.
pub(super) async fn deliver(socket: &SocketRef, event: &str, value: &Value) -> bool {
    loop {
        match socket.emit(event, value) {
            Ok(()) => return true,
            Err(SendError::Socket(SocketError::InternalChannelFull)) => tokio::time::sleep(FULL_PAUSE).await,
            Err(_) => return false,
        }
    }
}

fn clip_long(text: &str) -> String {
    const MESSAGE_CHARS: usize = 1000;
    if text.chars().count() <= MESSAGE_CHARS { text.to_owned() } else { format!("{}…", clip(text)) }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn events_of_a_lane_have_their_turns_as_they_came() {
        let lanes = Lanes::default();
        let enter = || lanes.enter(Lane::File("a".to_owned()));
        let (mut first, mut second, mut third) = (enter(), enter(), enter());
        first.comes().await;
        lanes.enter(Lane::File("b".to_owned())).comes().await;
        lanes.enter(Lane::Terminal).comes().await;
        assert!(third.comes().now_or_never().is_none());
        assert!(second.comes().now_or_never().is_none());
        drop(first);
        second.comes().await;
        drop(second);
        third.comes().await;
        for count in 0..2 * LANES_KEPT {
            lanes.enter(Lane::File(count.to_string())).comes().await;
        }
        assert!(lanes.0.lock().expect("no holder panics").len() <= LANES_KEPT + 1);
        assert!(enter().comes().now_or_never().is_none(), "what is not over is kept");
    }

    #[test]
    fn an_error_names_what_there_is() {
        let error = unknown("fetchFile");
        assert_eq!(error.code, Code::Unimplemented);
        for name in ["`fetchFile`", "`fetchDir`", "`updateContent`", "`terminal:resize`"] {
            assert!(error.message.contains(name), "{error}");
        }
        assert_eq!(FETCH_DIR.malformed().message, "`fetchDir` takes {path}");
    }
}
