//! The workspace of a sandbox in a browser: a terminal and files over Socket.IO v4, at `/workspace/{sandbox}`, and at
//! the protocol's own path of the host `{sandbox}.{workspace domain}`.
//!
//! ```text
//! io(url, {path: "/workspace/web", auth: {token, session?, offset?}})
//! io("https://web.workspace.example", {auth})
//!     fetchDir fetchContent updateContent ──► the agent's FileService, beneath /workspace
//!     terminal:write terminal:resize      ──► a shell of this connection, opened at the first use
//!     file:refresh                        ◄── what was listed and has changed
//!     what was left, and is found again   ◄── recovery: one session has one client
//! ```
//!
//! Inside the sandbox it is at port 3001, see [`inside`](super::inside). The token is an API key, best one with a scope and
//! a short life. Nothing reaches the sandbox before it was checked.

mod events;
mod files;
mod path;
mod recovery;
mod terminal;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use dispense_api::error::{Code, Error};
use dispense_api::id::SandboxId;
use dispense_api::method::Method;
use http::{Request, Uri};
use serde::Deserialize;
use socketioxide::extract::{SocketRef, TryData};
use socketioxide::handler::ConnectHandler;
use socketioxide::{ParserConfig, SocketIo};
use tokio_util::sync::CancellationToken;
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt, service_fn};

use super::preview::headers::host;
use super::rest::Refusal;
use super::{Parts, observe::Matched, origin::Origins};
use crate::auth::{Principal, Role};
use crate::config::WorkspaceConfig;
use crate::preview::label;
use crate::relay::Route;
use recovery::{Key, Recovery, Whose};
use terminal::Terminal;

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
    /// Of the client's own choice: one that comes back with it finds what it left.
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
    /// As the client named it.
    sandbox: String,
    id: SandboxId,
    session: String,
    offset: Option<u64>,
    recovery: Arc<Recovery>,
    terminal: Terminal,
    watch: watch::Watch,
    lanes: events::Lanes,
    /// It has disconnected, or a newer connection has its session.
    gone: CancellationToken,
}

impl Client {
    /// Where the sandbox is, for a call that this client may make.
    async fn route(&self, method: Method) -> Result<Route, Error> {
        self.parts.sandboxes.seen_by(&self.caller).route(&self.sandbox, method, START_TIMEOUT).await
    }

    fn recovery_key(&self) -> Key {
        let whose = if self.session.is_empty() {
            Whose::Key(self.caller.key_id.clone())
        } else {
            Whose::Session { account: self.caller.account.clone(), name: self.session.clone() }
        };
        Key { sandbox: self.id.clone(), whose }
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
        let (recovery, origins, config) =
            (Arc::new(Recovery::default()), parts.origins.clone(), parts.workspace.clone());
        let enter = move |socket: SocketRef, auth: TryData<Auth>| {
            let (parts, recovery) = (parts.clone(), recovery.clone());
            async move { enter(parts, recovery, &socket, auth.0.ok()).await.map_err(|error| error.message) }
        };
        io.ns("/", events::connected.with(enter));
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
async fn enter(
    parts: Arc<Parts>,
    recovery: Arc<Recovery>,
    socket: &SocketRef,
    auth: Option<Auth>,
) -> Result<(), Error> {
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
        id: row.id,
        session: auth.session,
        offset: auth.offset,
        recovery,
        terminal: Terminal::default(),
        watch: watch::Watch::default(),
        lanes: events::Lanes::default(),
        gone: CancellationToken::new(),
    };
    socket.extensions.insert(Arc::new(client));
    Ok(())
}
