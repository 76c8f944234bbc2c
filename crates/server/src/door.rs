//! The doors: each outside protocol is one module that authenticates, parses, calls the domain and maps the
//! answer. No decision is taken here, and no door calls another.
//!
//! One port serves them all; this module picks the door by content type and path.

mod data;
pub(crate) mod grpc;
pub(crate) mod health;
pub(crate) mod inside;
pub(crate) mod listener;
mod malformed;
mod observe;
pub(crate) mod openapi;
pub(crate) mod origin;
pub(crate) mod preview;
mod pulse;
pub(crate) mod request;
mod rest;
mod service;
mod slow;
pub(crate) mod ssh;
pub(crate) mod tls;
mod websocket;
pub(crate) mod workspace;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Buf;
use dispense_api::error::{Code, Error};
use dispense_api::method::Method;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use service::Inline;
use tonic::body::Body as GrpcBody;
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::{AllowOrigin, CorsLayer};
use workspace::WorkspaceDoor;

use crate::auth::gate::{Gate, Refused};
use crate::auth::issuer::Issuer;
use crate::auth::keys::unauthenticated;
use crate::auth::limit::RETRY_AFTER;
use crate::auth::table::{self, Need};
use crate::auth::until::KEY_ENDED;
use crate::auth::{Keys, Principal};
use crate::config::WorkspaceConfig;
use crate::metrics::Metrics;
use crate::preview::Previews;
use crate::provider::Provider;
use crate::relay::Relay;
use crate::sandbox::service::Sandboxes;
use crate::sandbox::spec::invalid;
use crate::ssh::Ssh;
use crate::vault::Vault;
use health::Health;
use observe::{Matched, Observation};
use origin::Origins;
use preview::PreviewDoor;

/// Of the body of a refused request this much is read before the answer.
const REFUSED_MAX_BYTES: usize = 256 << 10;
const REFUSED_TIMEOUT: Duration = Duration::from_secs(1);
/// An answer takes longer only if it waits for something.
const SOON: Duration = Duration::from_secs(1);
/// Browsers ask again after this time whether they may.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(3600);

/// What the doors work with.
pub(crate) struct Parts {
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) gate: Gate,
    pub(crate) vault: Vault,
    pub(crate) provider: Provider,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Health,
    pub(crate) previews: Arc<Previews>,
    pub(crate) workspace: Arc<WorkspaceConfig>,
    pub(crate) ssh: Option<Arc<Ssh>>,
    pub(crate) origins: Origins,
}

impl Parts {
    /// The keys, for one caller.
    fn issuer<'a>(&'a self, caller: &'a Principal) -> Issuer<'a> {
        Issuer { keys: &self.keys, sandboxes: &self.sandboxes, caller }
    }
}

/// The public port.
pub(crate) struct Doors {
    parts: Arc<Parts>,
    grpc: Routes,
    rest: Router,
    cors: Option<CorsLayer>,
    previews: PreviewDoor,
    workspace: WorkspaceDoor,
}

impl Doors {
    /// Pages of these origins may call.
    pub(crate) fn new(parts: Arc<Parts>, workspace: WorkspaceDoor, origins: &[HeaderValue]) -> Self {
        let rest = rest::router(parts.clone()).merge(service::router(parts.clone()));
        let grpc = grpc::routes(&parts).add_service(service::server(&parts)).prepare();
        let cors = (!origins.is_empty()).then(|| cors(origins));
        let previews = PreviewDoor::new(parts.clone());
        Self { grpc, rest, cors, previews, workspace, parts }
    }

    /// Answers one request. Each request has a future of this in memory, so what is large and not for all of them is a
    /// box of its own.
    pub(crate) async fn serve(self: Arc<Self>, mut request: Request<Incoming>) -> Result<Response, Infallible> {
        if let Some(place) = self.previews.place(&request) {
            let observation = Observation::begin(&self.parts, "preview", request.headers_mut());
            let answer = Box::pin(self.previews.serve(place, request));
            return answer.await.map(|response| observation.follow(response));
        }
        match self.cors.clone() {
            Some(cors) => {
                let service = cors.layer(service_fn(|request| self.clone().observed(request)));
                Box::pin(service.oneshot(request)).await
            }
            None => self.observed(request).await,
        }
    }

    async fn observed(self: Arc<Self>, mut request: Request<Incoming>) -> Result<Response, Infallible> {
        let content_type = request.headers().get(http::header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let (is_grpc, is_web) =
            (content_type.starts_with(b"application/grpc"), content_type.starts_with(b"application/grpc-web"));
        let host = self.workspace.sandbox_of(&request);
        let is_workspace = host.is_some() || WorkspaceDoor::serves(request.uri().path());
        let door = match (is_workspace, is_grpc) {
            (true, _) => "workspace",
            (false, true) => "grpc",
            (false, false) => "rest",
        };
        let observation = Observation::begin(&self.parts, door, request.headers_mut());
        let response = if let Some(sandbox) = host {
            Box::pin(self.workspace.clone().serve_own(sandbox, request.map(Body::new))).await
        } else if is_workspace {
            Box::pin(self.workspace.clone().serve(request.map(Body::new))).await
        } else if is_web {
            let grpc = service_fn(|request| self.clone().grpc(request));
            let answer = Box::pin(GrpcWebLayer::new().layer(grpc).oneshot(request));
            answer.await.map(|response| response.map(Body::new))
        } else if is_grpc {
            self.grpc(request.map(GrpcBody::new)).await.map(|response| response.map(Body::new))
        } else {
            self.rest.clone().oneshot(request.map(Body::new)).await
        };
        Ok(observation.follow(response.unwrap_or_else(|never| match never {})))
    }

    async fn grpc(self: Arc<Self>, request: Request<GrpcBody>) -> Result<http::Response<GrpcBody>, Infallible> {
        let inline = Inline::asked(request.headers(), request.uri().path());
        let path = request.uri().path().to_owned();
        let need = table::grpc(&path);
        let (response, caller) = self.call(request, need).await;
        let mut response = match inline {
            Some(inline) => inline.apply(response),
            None => response,
        };
        // Last: an answer that was made anew has nothing noted.
        if need.is_some() {
            Matched(path).note(&mut response, caller);
        }
        Ok(response)
    }

    async fn call(
        &self,
        mut request: Request<GrpcBody>,
        need: Option<Need>,
    ) -> (http::Response<GrpcBody>, Option<Principal>) {
        let caller = match admit(&self.parts.gate, &mut request, need).await {
            Ok(caller) => caller,
            Err(Refused { error, caller }) => return (grpc_refusal(error), caller.map(|caller| *caller)),
        };
        let method = request.uri().path().strip_prefix('/').and_then(Method::parse);
        let response = match (method, &caller) {
            (Some(method), Some(caller)) => match Box::pin(data::call(&self.parts, caller, method, request)).await {
                Ok(response) => response.map(GrpcBody::new),
                Err(error) => grpc_refusal(error),
            },
            _ => {
                let answer = self.grpc.clone().oneshot(slow::message_in_time(request));
                match while_admitted(&self.parts.keys, caller.as_ref(), answer).await {
                    Ok(response) => with_details(response.unwrap_or_else(|never| match never {})),
                    Err(error) => grpc_refusal(error),
                }
            }
        };
        (response, caller)
    }
}

fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let exposed = [
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
        "retry-after",
        "x-request-id",
        "accept-ranges",
        "content-range",
        "etag",
    ];
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.iter().cloned()))
        .allow_methods([
            http::Method::GET,
            http::Method::POST,
            http::Method::PUT,
            http::Method::PATCH,
            http::Method::DELETE,
        ])
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers(exposed.map(http::HeaderName::from_static))
        .max_age(PREFLIGHT_MAX_AGE)
}

/// Lets a request in, or not; its handler finds the caller among its extensions.
async fn admit<B>(gate: &Gate, request: &mut Request<B>, need: Option<Need>) -> Result<Option<Principal>, Refused>
where
    B: http_body::Body<Data: Send, Error: Send> + Unpin + Send,
{
    let admitted = gate.admit(request.headers(), need);
    let admitted = admitted.and_then(|caller| match well_encoded(request.uri()) {
        Ok(()) => Ok(caller),
        Err(error) => Err(Refused { error, caller: caller.map(Box::new) }),
    });
    match admitted {
        Ok(caller) => {
            if let Some(caller) = caller.clone() {
                request.extensions_mut().insert(caller);
            }
            Ok(caller)
        }
        Err(refused) => {
            read_away(request).await;
            Err(refused)
        }
    }
}

/// What is no UTF-8 behind its `%` would be read as something else.
fn well_encoded(uri: &http::Uri) -> Result<(), Error> {
    let parts = [("path", Some(uri.path())), ("query", uri.query())];
    for (what, part) in parts.into_iter().filter_map(|(what, part)| Some((what, part?))) {
        if percent_encoding::percent_decode_str(part).decode_utf8().is_err() {
            return Err(invalid(what, "it is not UTF-8 behind its percent signs"));
        }
    }
    Ok(())
}

/// The answer of a handler; of one that takes long only for as long as its caller's key opens anything.
async fn while_admitted<T>(
    keys: &Keys,
    caller: Option<&Principal>,
    answer: impl Future<Output = T>,
) -> Result<T, Error> {
    let mut answer = std::pin::pin!(answer);
    // Nearly all are answered at once, and need nobody to watch their key.
    if let Ok(answer) = tokio::time::timeout(SOON, answer.as_mut()).await {
        return Ok(answer);
    }
    let Some(caller) = caller else { return Ok(answer.await) };
    tokio::select! {
        answer = &mut answer => Ok(answer),
        () = keys.ended(&caller.key_id) => Err(unauthenticated(KEY_ENDED)),
    }
}

/// Reads the body of a refused request. Over HTTP/1.1 an answer before the end of the request closes the
/// connection, and a client that still writes would see that instead of the answer.
async fn read_away<B>(request: &mut Request<B>)
where
    B: http_body::Body<Data: Send, Error: Send> + Unpin + Send,
{
    if request.version() >= http::Version::HTTP_2 {
        return;
    }
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = request.body_mut().frame().await {
            bytes += frame.data_ref().map_or(0, Buf::remaining);
            if bytes > REFUSED_MAX_BYTES {
                return;
            }
        }
    };
    // A slow one is answered all the same.
    let _ = tokio::time::timeout(REFUSED_TIMEOUT, read).await;
}

/// A gRPC answer that is only a status.
fn grpc_refusal(error: Error) -> http::Response<GrpcBody> {
    let retry_after = retry_after(&error);
    let mut response = tonic::Status::from(error).into_http();
    response.headers_mut().extend(retry_after.map(|value| (http::header::RETRY_AFTER, value)));
    response
}

/// Says it in our words where the library refused a message: what it could not decode is the caller's fault.
fn with_details(response: http::Response<GrpcBody>) -> http::Response<GrpcBody> {
    let Some(status) = tonic::Status::from_header_map(response.headers()) else { return response };
    if !status.details().is_empty() {
        return response;
    }
    let refused = |code, reason| grpc_refusal(Error::new(code, reason, status.message()));
    match status.code() {
        tonic::Code::Internal => refused(Code::InvalidArgument, "malformed_message"),
        tonic::Code::OutOfRange => refused(Code::ResourceExhausted, BODY_TOO_LARGE),
        tonic::Code::Unimplemented => refused(Code::Unimplemented, "unimplemented"),
        _ => response,
    }
}

/// When a caller who called too often may come back.
fn retry_after(error: &Error) -> Option<HeaderValue> {
    error.details.get(RETRY_AFTER)?.parse().ok()
}

/// In the details of [`METHOD_UNKNOWN`]: the methods that a path takes.
const ALLOW: &str = "allow";
const METHOD_UNKNOWN: &str = "method_unknown";

/// A path that is there, with a method that is not.
fn method_unknown(path: &str) -> Error {
    let message = "this path does not take that method";
    Error::new(Code::Unimplemented, METHOD_UNKNOWN, message).with(ALLOW, table::verbs(path).join(", "))
}

/// In the details of [`RANGE_OUTSIDE`]: how long the file is, as a header has it.
const CONTENT_RANGE: &str = "content_range";
const RANGE_OUTSIDE: &str = "range_outside";
/// The message, or the body, is over its limit.
const BODY_TOO_LARGE: &str = "body_too_large";

/// A range of a file that has nothing there.
fn range_outside(size: u64) -> Error {
    let message = format!("the file has {size} bytes: the range has none of them");
    Error::new(Code::InvalidArgument, RANGE_OUTSIDE, message).with(CONTENT_RANGE, format!("bytes */{size}"))
}

/// Status and headers of a refusal over HTTP.
fn http_head(error: &Error) -> (StatusCode, HeaderMap) {
    let status = match error.reason.as_str() {
        METHOD_UNKNOWN => StatusCode::METHOD_NOT_ALLOWED,
        RANGE_OUTSIDE => StatusCode::RANGE_NOT_SATISFIABLE,
        BODY_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::from_u16(error.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    };
    let mut headers = HeaderMap::new();
    headers.extend(retry_after(error).map(|value| (http::header::RETRY_AFTER, value)));
    if error.code == Code::Unauthenticated {
        headers.insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    let allow = error.details.get(ALLOW).and_then(|allow| allow.parse().ok());
    headers.extend(allow.map(|value| (http::header::ALLOW, value)));
    let range = error.details.get(CONTENT_RANGE).and_then(|range| range.parse().ok());
    headers.extend(range.map(|value| (http::header::CONTENT_RANGE, value)));
    (status, headers)
}

/// The content type of gRPC answers.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
