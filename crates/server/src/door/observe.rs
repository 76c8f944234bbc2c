//! What is noted of every request: a line in the log with its id, and the metrics.
//!
//! An answer has ended when its last byte has left, so the note is taken by the body; one whose caller goes first
//! is noted as cancelled.

use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use dispense_api::error::Code;
use dispense_api::trace::{Kind, Span, TRACEPARENT};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::{Body as _, Frame, SizeHint};

use super::Parts;
use crate::auth::Principal;
use crate::auth::keys::{Keys, unauthenticated};
use crate::auth::secret::hex;
use crate::auth::until::{Ending, Until};
use crate::metrics::{Metrics, Request};

/// Names a request in the logs of everybody that it passes; a caller may bring its own.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_MAX_BYTES: usize = 128;
/// Where new ids come from: a count, under a key of this process. Nobody reads from one how many there were between.
static IDS: LazyLock<(RandomState, AtomicU64)> = LazyLock::new(Default::default);
/// An answer that is whole.
const OK: &str = "ok";
/// The method of a request that no row of the authorisation table names.
const UNKNOWN: &str = "unknown";

/// In an answer's extensions: the row of the authorisation table that the request fell under.
#[derive(Debug, Clone)]
pub(super) struct Matched(pub(super) String);

impl Matched {
    /// Notes it on an answer, with who called.
    pub(super) fn note<B>(self, response: &mut http::Response<B>, caller: Option<Principal>) {
        response.extensions_mut().insert(self);
        if let Some(caller) = caller {
            response.extensions_mut().insert(caller);
        }
    }
}

/// A request that is under way.
pub(super) struct Observation {
    metrics: Arc<Metrics>,
    keys: Arc<Keys>,
    request: Request,
    request_id: HeaderValue,
    account: String,
    /// What ends the answer before its time.
    until: Option<Until>,
    begun: Instant,
    code: Option<&'static str>,
    span: Span,
}

/// The id that a caller gave, if it is one, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let plain = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=REQUEST_ID_MAX_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    headers.get(REQUEST_ID).filter(plain).cloned().unwrap_or_else(|| {
        let number = IDS.0.hash_one(IDS.1.fetch_add(1, Ordering::Relaxed));
        HeaderValue::from_str(&hex(&number.to_be_bytes())).expect("hex digits are a header")
    })
}

impl Observation {
    /// Names the request, for everybody that it passes from here.
    pub(super) fn begin(parts: &Parts, door: &'static str, headers: &mut HeaderMap) -> Self {
        let (metrics, keys) = (parts.metrics.clone(), parts.keys.clone());
        metrics.begun(door);
        let request = Request { door, method: UNKNOWN.to_owned() };
        let request_id = request_id(headers);
        headers.insert(REQUEST_ID, request_id.clone());
        let parent = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let span = Span::start(door, Kind::Server, parent);
        // Also one that a caller made up.
        headers.remove(TRACEPARENT);
        if let Ok(value) = HeaderValue::from_str(&span.traceparent())
            && !value.is_empty()
        {
            headers.insert(TRACEPARENT, value);
        }
        let account = String::new();
        Self { metrics, keys, request, request_id, account, until: None, begun: Instant::now(), code: None, span }
    }

    /// Follows the answer to its end.
    pub(super) fn follow(mut self, mut response: Response) -> Response {
        let mut request_id = self.request_id.clone();
        // HTTP/2 would keep each in a table, for a next time that never comes.
        request_id.set_sensitive(true);
        response.headers_mut().insert(REQUEST_ID, request_id);
        if let Some(Matched(method)) = response.extensions_mut().remove() {
            self.request.method = method;
        }
        if let Some(caller) = response.extensions_mut().remove::<Principal>() {
            self.account = caller.account;
            self.until = Some(Until::key(self.keys.clone(), caller.key_id));
        }
        // A preview's may end with a link.
        if let Some(until) = response.extensions_mut().remove() {
            self.until = Some(until);
        }
        self.code = grpc_code(response.headers()).or_else(|| match response.status() {
            // Of gRPC the trailers tell.
            StatusCode::OK if self.request.door == "grpc" => None,
            status if status.is_client_error() || status.is_server_error() => Some(http_code(status)),
            _ => Some(OK),
        });
        let content_type = response.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let has_trailers = self.request.door == "grpc" && !content_type.starts_with(b"application/grpc-web");
        let (head, body) = response.into_parts();
        let observed = Observed { body, observation: self, has_trailers, ending: None, is_stream: false, whole: false };
        Response::from_parts(head, Body::new(observed))
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let (duration, code) = (self.begun.elapsed(), self.code.unwrap_or(Code::Cancelled.as_str()));
        self.metrics.ended(&self.request, code, duration);
        let request_id = self.request_id.to_str().unwrap_or_default();
        if self.span.is_recorded() {
            self.span.rename(&self.request.method);
            self.span.set("dispense.door", self.request.door);
            self.span.set("dispense.code", code);
            self.span.set("dispense.account", self.account.clone());
            self.span.set("dispense.request_id", request_id.to_owned());
            if code != OK {
                self.span.fail(code);
            }
        }
        tracing::info!(
            target: "dispense_server::access",
            door = self.request.door,
            method = %self.request.method,
            code,
            ms = duration.as_micros() as f64 / 1000.0,
            account = %self.account,
            request_id,
            "request"
        );
    }
}

/// The body of an answer.
struct Observed {
    body: Body,
    observation: Observation,
    /// Whether the protocol tells the outcome behind the body.
    has_trailers: bool,
    /// Of an answer that goes on.
    ending: Option<Ending>,
    /// It did not have all of it at once.
    is_stream: bool,
    whole: bool,
}

impl Observed {
    /// The end of an answer whose caller may not have the rest.
    fn cut(&mut self, why: &str) -> Option<Result<Frame<Bytes>, axum::Error>> {
        let error = unauthenticated(&format!("{why}: the answer ends here"));
        self.observation.code = Some(error.code.as_str());
        self.body = Body::empty();
        if !self.has_trailers {
            return Some(Err(axum::Error::new(error)));
        }
        let mut trailers = HeaderMap::new();
        // A sentence of our own fits a header.
        let _ = tonic::Status::from(error).add_header(&mut trailers);
        Some(Ok(Frame::trailers(trailers)))
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        let Some(until) = self.observation.until.as_ref().filter(|_| !self.whole) else { return Poll::Pending };
        self.ending.get_or_insert_with(|| until.ended()).as_mut().poll(cx)
    }
}

impl http_body::Body for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        // One that is answered at once has not the time to be revoked.
        let goes_on = frame.is_pending() || self.ending.is_some();
        if goes_on && !self.is_stream {
            self.is_stream = true;
            self.observation.metrics.stream_begun(self.observation.request.door);
        }
        if goes_on && let Poll::Ready(why) = self.poll_ended(cx) {
            self.whole = true;
            return Poll::Ready(self.cut(why));
        }
        let frame = ready!(frame);
        match &frame {
            Some(Ok(frame)) => {
                if let Some(code) = frame.trailers_ref().and_then(grpc_code) {
                    self.observation.code = Some(code);
                }
            }
            Some(Err(_)) => self.observation.code = Some(Code::Internal.as_str()),
            None => self.whole = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if self.is_stream {
            self.observation.metrics.stream_ended(self.observation.request.door);
        }
        // Of an answer of known length nobody asks for the end.
        if !self.whole && !self.body.is_end_stream() && self.observation.request.door == "rest" {
            self.observation.code = Some(Code::Cancelled.as_str());
        }
    }
}

fn grpc_code(headers: &HeaderMap) -> Option<&'static str> {
    let number = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    Some(if number == 0 { OK } else { Code::from_grpc(number).as_str() })
}

fn http_code(status: StatusCode) -> &'static str {
    const CODES: [Code; 12] = [
        Code::InvalidArgument,
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::NotFound,
        Code::FailedPrecondition,
        Code::ResourceExhausted,
        Code::Cancelled,
        Code::Internal,
        Code::Unimplemented,
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::AlreadyExists,
    ];
    let code = CODES.into_iter().find(|code| code.http() == status.as_u16());
    code.unwrap_or(if status.is_client_error() { Code::InvalidArgument } else { Code::Internal }).as_str()
}
