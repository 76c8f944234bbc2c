//! The workspace of a sandbox in a browser: a terminal and files over Socket.IO v4, at `/workspace/{sandbox}`, and at
//! the protocol's own path of the host `{sandbox}.{workspace domain}`.
//!
//! ```text
//! io(url, {path: "/workspace/web", auth: {token, session?, offset?}})
//! io("https://web.workspace.example", {auth})
//!     fetchDir fetchContent updateContent ──► the agent's FileService, beneath /workspace
//!     terminal:write terminal:resize      ──► a shell of this connection, opened at the first use
//!     file:refresh                        ◄── what was listed and has changed
//! ```
//!
//! Inside the sandbox it is at port 3001, see [`inside`](super::inside). The token is an API key, best one with a scope and
//! a short life. Nothing reaches the sandbox before it was checked.

mod files;
mod terminal;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use dispense_api::error::{Code, Error};
use dispense_api::method::Method;
use http::{Request, Uri};
use serde::Deserialize;
use serde_json::{Value, json};
use socketioxide::extract::{AckSender, SocketRef, TryData};
use socketioxide::handler::ConnectHandler;
use socketioxide::socket::DisconnectReason;
use socketioxide::{ParserConfig, SocketIo, TransportType};
use tokio_util::sync::CancellationToken;
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt, service_fn};

use super::preview::headers::host;
use super::rest::Refusal;
use super::{Parts, observe::Matched, origin::Origins};
use crate::auth::until::KEY_ENDED;
use crate::auth::{Principal, Role};
use crate::config::WorkspaceConfig;
use crate::preview::label;
use crate::relay::Route;
use crate::sandbox::spec::clip;
use terminal::{Parked, Terminal};

/// Where the workspace is in every sandbox.
const ROOT: &str = "/workspace";
/// Of the paths that this door serves.
const PREFIX: &str = "/workspace/";
/// On a sandbox's own host and port: where a client looks that is told no path.
const DEFAULT_PATH: &str = "/socket.io";
/// One event: a file of the largest size that is carried, in base64, and its frame.
const EVENT_MAX_BYTES: usize = 24 << 20;
/// Packets that wait for a slow client.
const QUEUE_PACKETS: usize = 256;
/// For a sandbox that sleeps or starts.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a name that a client gives its session.
const SESSION_MAX_BYTES: usize = 128;

/// The door.
#[derive(Clone)]
pub(crate) struct WorkspaceDoor {
    service: BoxCloneSyncService<Request<Body>, Response, Infallible>,
    origins: Origins,
    config: Arc<WorkspaceConfig>,
}

/// In a request's extensions: the sandbox that its path or its host names.
#[derive(Debug, Clone)]
struct Named(String);

/// What a client says of itself when it connects.
#[derive(Debug, Deserialize)]
struct Auth {
    token: String,
    /// Of the client's own choice: one that comes back with it gets its terminal back.
    #[serde(default)]
    session: String,
    /// Of the terminal's output, as `terminal:data` told it: what the client has seen.
    #[serde(default)]
    offset: Option<u64>,
}

/// One client.
pub(super) struct Client {
    parts: Arc<Parts>,
    caller: Principal,
    sandbox: String,
    session: String,
    offset: Option<u64>,
    parked: Arc<Parked>,
    terminal: Terminal,
    watch: watch::Watch,
    /// It has disconnected.
    gone: CancellationToken,
}

impl Client {
    /// Where the sandbox is, for a call that this client may make.
    async fn route(&self, method: Method) -> Result<Route, Error> {
        self.parts.sandboxes.seen_by(&self.caller).route(&self.sandbox, method, START_TIMEOUT).await
    }
}

impl WorkspaceDoor {
    pub(crate) fn new(parts: Arc<Parts>) -> Self {
        let (service, io) = SocketIo::builder()
            .req_path("/workspace")
            .max_payload(EVENT_MAX_BYTES as u64)
            .ws_max_message_size(EVENT_MAX_BYTES)
            .ws_max_frame_size(EVENT_MAX_BYTES)
            .max_buffer_size(QUEUE_PACKETS)
            .with_parser(ParserConfig::common().max_incoming_binary_buf_size(EVENT_MAX_BYTES).max_incoming_binaries(4))
            .build_svc();
        let (parked, origins, config) = (Arc::new(Parked::default()), parts.origins.clone(), parts.workspace.clone());
        let enter = move |socket: SocketRef, auth: TryData<Auth>| {
            let (parts, parked) = (parts.clone(), parked.clone());
            async move { enter(parts, parked, &socket, auth.0.ok()).await.map_err(|error| error.message) }
        };
        io.ns("/", connected.with(enter));
        let service = service_fn(move |request: Request<Body>| {
            let service = service.clone();
            async move { Ok(service.oneshot(request).await?.map(Body::new)) }
        });
        let service = BoxCloneSyncService::new(service);
        Self { service, origins, config }
    }

    /// Whether a path is this door's.
    pub(super) fn serves(path: &str) -> bool {
        path.strip_prefix(PREFIX).is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
    }

    /// The sandbox whose own host a request is for.
    pub(super) fn sandbox_of<B>(&self, request: &Request<B>) -> Option<String> {
        label(host(request)?, self.config.domain.as_deref()?)
    }

    /// Answers one request whose path names the sandbox.
    pub(super) async fn serve(self, request: Request<Body>) -> Result<Response, Infallible> {
        if let Err(error) = self.origins.check(request.uri(), request.headers()) {
            return Ok(Refusal(error).into_response());
        }
        let rest = request.uri().path().strip_prefix(PREFIX).unwrap_or_default();
        let sandbox = rest.split('/').next().unwrap_or_default().to_owned();
        self.transport(sandbox, request).await
    }

    /// Answers one request of a sandbox's own host or port.
    pub(super) async fn serve_own(self, sandbox: String, request: Request<Body>) -> Result<Response, Infallible> {
        let path = request.uri().path();
        let here = path.strip_prefix(DEFAULT_PATH).is_some_and(|rest| rest.is_empty() || rest == "/");
        let checked = match here {
            true => self.origins.check(request.uri(), request.headers()),
            false => Err(elsewhere()),
        };
        match checked {
            Ok(()) => self.transport(sandbox, request).await,
            Err(error) => {
                let mut response = Refusal(error).into_response();
                Matched("workspace".to_owned()).note(&mut response, None);
                Ok(response)
            }
        }
    }

    /// Answers one request of the transport.
    async fn transport(self, sandbox: String, mut request: Request<Body>) -> Result<Response, Infallible> {
        let query =
            request.uri().query().map_or_else(|| "/workspace/".to_owned(), |query| format!("/workspace/?{query}"));
        if let Ok(uri) = query.parse::<Uri>() {
            *request.uri_mut() = uri;
        }
        request.extensions_mut().insert(Named(sandbox));
        let mut response = self.service.oneshot(request).await?;
        Matched("workspace".to_owned()).note(&mut response, None);
        Ok(response)
    }
}

fn elsewhere() -> Error {
    let message = "this host has the workspace of a sandbox, at `/socket.io/`, and nothing else";
    Error::new(Code::NotFound, "route_unknown", message)
}

/// Lets a client in, or not: the error is what its `connect_error` has.
async fn enter(parts: Arc<Parts>, parked: Arc<Parked>, socket: &SocketRef, auth: Option<Auth>) -> Result<(), Error> {
    let refused = |message: &str| Error::new(Code::Unauthenticated, "unauthenticated", message);
    let auth = auth.ok_or_else(|| refused("unauthenticated: `auth.token` is missing: it is an API key"))?;
    let Some(Named(sandbox)) = socket.req_parts().extensions.get::<Named>().cloned() else {
        return Err(refused("unauthenticated: the path names no sandbox"));
    };
    // Where no key is asked for, any token does.
    let caller = parts.keys.open(&auth.token).or_else(|| parts.gate.holder(""));
    let caller = caller.ok_or_else(|| refused("unauthenticated: `auth.token` is not valid"))?;
    if caller.role < Role::Member {
        return Err(Error::new(Code::PermissionDenied, "role", "permission_denied: this needs the role `member`"));
    }
    if auth.session.len() > SESSION_MAX_BYTES {
        return Err(Error::new(Code::InvalidArgument, "session", "invalid_argument: `auth.session` is too long"));
    }
    // Once, so that a sandbox that is not there is told before anything is asked of it.
    let told = |error: Error| Error { message: format!("{}: {}", error.code.as_str(), error.message), ..error };
    let row = parts.sandboxes.seen_by(&caller).used("workspace.connect", &sandbox).await.map_err(told)?;
    row.spec.offers_services().map_err(told)?;
    let client = Client {
        parts,
        caller,
        sandbox,
        session: auth.session,
        offset: auth.offset,
        parked,
        terminal: Terminal::default(),
        watch: watch::Watch::default(),
        gone: CancellationToken::new(),
    };
    socket.extensions.insert(Arc::new(client));
    Ok(())
}

/// Of events that name a path.
#[derive(Debug, Deserialize)]
struct PathData {
    path: String,
}

async fn connected(socket: SocketRef) {
    socket.on("fetchDir", async |socket: SocketRef, data: TryData<PathData>, ack: AckSender| {
        let tree = match (client(&socket), data.0) {
            (Some(client), Ok(data)) => client.list(&socket, &data.path).await,
            (_, data) => Err(malformed(data.is_err())),
        };
        if let Ok(tree) = &tree {
            emit(&socket, "file:refresh", tree);
        }
        answer(&socket, ack, tree);
    });
    socket.on("fetchContent", async |socket: SocketRef, data: TryData<PathData>, ack: AckSender| {
        let content = match (client(&socket), data.0) {
            (Some(client), Ok(data)) => client.read(&data.path).await,
            (_, data) => Err(malformed(data.is_err())),
        };
        if let Ok(content) = &content {
            emit(&socket, "file:content", content);
        }
        answer(&socket, ack, content);
    });
    socket.on("updateContent", async |socket: SocketRef, data: TryData<files::Update>, ack: AckSender| {
        let written = match (client(&socket), data.0) {
            (Some(client), Ok(update)) => client.write(update).await,
            (_, data) => Err(malformed(data.is_err())),
        };
        answer(&socket, ack, written.map(|()| json!({})));
    });
    socket.on("terminal:write", async |socket: SocketRef, data: TryData<terminal::Typed>, ack: AckSender| {
        let typed = match (client(&socket), data.0) {
            (Some(client), Ok(typed)) => client.type_in(&socket, typed).await,
            (_, data) => Err(malformed(data.is_err())),
        };
        answer(&socket, ack, typed.map(|()| json!({})));
    });
    socket.on("terminal:resize", async |socket: SocketRef, data: TryData<terminal::Size>, ack: AckSender| {
        let resized = match (client(&socket), data.0) {
            (Some(client), Ok(size)) => client.resize(&socket, size).await,
            (_, data) => Err(malformed(data.is_err())),
        };
        answer(&socket, ack, resized.map(|()| json!({})));
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
            client.gone.cancel();
            client.leave(cut_off).await;
        }
    });
    if let Some(client) = client(&socket) {
        tokio::spawn(leave_with_key(socket.clone(), client.clone()));
        client.resume_terminal(&socket).await;
    }
}

/// A client whose key opens nothing any more is sent away.
async fn leave_with_key(socket: SocketRef, client: Arc<Client>) {
    tokio::select! {
        () = client.parts.keys.ended(&client.caller.key_id) => {}
        () = client.gone.cancelled() => return,
    }
    emit(&socket, "error", &json!({"code": Code::Unauthenticated.as_str(), "message": KEY_ENDED}));
    if let Err(error) = socket.disconnect() {
        tracing::debug!(%error, "a client was gone before it was sent away");
    }
}

fn client(socket: &SocketRef) -> Option<Arc<Client>> {
    socket.extensions.get::<Arc<Client>>()
}

fn malformed(payload: bool) -> Error {
    let what = if payload { "the payload has not the fields that this event takes" } else { "this client is gone" };
    Error::new(Code::InvalidArgument, "payload", what)
}

/// Acknowledges an event: `{ok: true, …}`, or `{ok: false, error}` and an `error` event.
fn answer(socket: &SocketRef, ack: AckSender, result: Result<Value, Error>) {
    let body = match result {
        Ok(mut value) => {
            value["ok"] = Value::Bool(true);
            value
        }
        Err(error) => {
            let told = json!({"code": error.code.as_str(), "message": clip_long(&error.message)});
            emit(socket, "error", &told);
            json!({"ok": false, "error": told})
        }
    };
    if let Err(error) = ack.send(&body) {
        tracing::debug!(%error, "an event was not acknowledged");
    }
}

fn emit(socket: &SocketRef, event: &str, value: &Value) {
    // A client that is gone, or takes nothing, needs no more.
    if let Err(error) = socket.emit(event, value) {
        tracing::debug!(%error, event, "not sent");
    }
}

fn clip_long(text: &str) -> String {
    const MESSAGE_CHARS: usize = 1000;
    if text.chars().count() <= MESSAGE_CHARS { text.to_owned() } else { format!("{}…", clip(text)) }
}
