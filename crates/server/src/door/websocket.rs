//! WebSockets of our own protocols (RFC 6455).
//!
//! A browser's WebSocket can bring no header but its subprotocols: there the key stands beside the protocol's name.

use axum::body::Body;
use axum::response::Response;
use dispense_api::error::Error;
use http::header::{
    AUTHORIZATION, CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::sandbox::spec::invalid;

/// The only version that there is.
const VERSION: &str = "13";

/// Before a key that comes as a subprotocol.
const BEARER: &str = "bearer.";

/// One that is open.
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The words of a header that lists some.
pub(super) fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Whether a request asks for one.
pub(super) fn is_asked(headers: &HeaderMap) -> bool {
    words(headers, UPGRADE).any(|word| word.eq_ignore_ascii_case("websocket"))
}

/// Moves a key among the subprotocols to where it stands in every other request.
pub(super) fn take_bearer(headers: &mut HeaderMap) {
    if headers.contains_key(AUTHORIZATION) {
        return;
    }
    let key = words(headers, SEC_WEBSOCKET_PROTOCOL).find_map(|word| word.strip_prefix(BEARER));
    if let Some(value) = key.and_then(|key| HeaderValue::from_str(&format!("Bearer {key}")).ok()) {
        headers.insert(AUTHORIZATION, value);
    }
}

/// Opens one, with messages of at most so many bytes, and serves it when this answer has been sent. Whoever names
/// protocols has to name this one.
pub(super) fn accept<F>(
    request: &mut Request<Body>,
    protocol: &'static str,
    max_bytes: usize,
    serve: impl FnOnce(Socket) -> F + Send + 'static,
) -> Result<Response, Error>
where
    F: Future<Output = ()> + Send,
{
    let headers = request.headers();
    let offered: Vec<&str> = words(headers, SEC_WEBSOCKET_PROTOCOL).collect();
    if !offered.is_empty() && !offered.contains(&protocol) {
        return Err(invalid("sec-websocket-protocol", format_args!("offer `{protocol}`")));
    }
    if !words(headers, SEC_WEBSOCKET_VERSION).any(|word| word == VERSION) {
        return Err(invalid("sec-websocket-version", format_args!("this server speaks version {VERSION}")));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| invalid("sec-websocket-key", "it is missing"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).expect("base64 is a header");
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !offered.is_empty() {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let limits =
                    WebSocketConfig::default().max_message_size(Some(max_bytes)).max_frame_size(Some(max_bytes));
                let io = TokioIo::new(upgraded);
                serve(WebSocketStream::from_raw_socket(io, Role::Server, Some(limits)).await).await;
            }
            Err(error) => tracing::debug!(%error, "a WebSocket was not opened"),
        }
    });
    Ok(response)
}
