//! Errors inside responses, for callers who send `x-dispense-errors: inline`: the call succeeds as far as gRPC is
//! concerned, and the response's `error` says what is wrong. It covers every refusal, also of the key or of bytes
//! that are no message, since it works on what leaves the door.

use std::time::{SystemTime, UNIX_EPOCH};

use dispense_api::error::Error;
use dispense_api::service::{ErrorResponse, RunClaudeTaskResponse, run_claude_task_response::ResponseType};
use http::{HeaderMap, Response};
use prost::Message;
use prost_reflect::{DynamicMessage, ReflectMessage, Value};
use tonic::body::Body;

use super::gateway::method;

/// The header, and its one value.
const HEADER: &str = "x-dispense-errors";
const INLINE: &str = "inline";
/// Flags and length before a message.
const FRAME_HEADER_BYTES: usize = 5;

/// A call whose errors stand in its response.
pub(in crate::door) struct Inline {
    method: prost_reflect::MethodDescriptor,
}

impl Inline {
    /// If the caller asks for it and calls this service.
    pub(in crate::door) fn asked(headers: &HeaderMap, path: &str) -> Option<Self> {
        headers.get(HEADER).filter(|value| value.as_bytes().eq_ignore_ascii_case(INLINE.as_bytes()))?;
        let method = method(path.strip_prefix("/dispense.DispenseService/")?)?;
        Some(Self { method })
    }

    /// A response that is only an error, as one that carries it.
    pub(in crate::door) fn apply(&self, response: Response<Body>) -> Response<Body> {
        match tonic::Status::from_header_map(response.headers()) {
            Some(status) if status.code() != tonic::Code::Ok => self.response(&Error::from(&status)),
            _ => response,
        }
    }

    fn response(&self, error: &Error) -> Response<Body> {
        let message =
            if self.method.is_server_streaming() { last_event(error).encode_to_vec() } else { self.carrier(error) };
        let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + message.len());
        frame.push(0);
        frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
        frame.extend_from_slice(&message);
        let trailers =
            HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"))]);
        let frames = [http_body::Frame::data(bytes::Bytes::from(frame)), http_body::Frame::trailers(trailers)];
        let body = http_body_util::StreamBody::new(tokio_stream::iter(frames.map(Ok::<_, tonic::Status>)));
        let mut response = Response::new(Body::new(body));
        response.headers_mut().insert(http::header::CONTENT_TYPE, super::super::GRPC);
        response
    }

    /// The response message with nothing but its `error`.
    fn carrier(&self, error: &Error) -> Vec<u8> {
        let mut carrier = DynamicMessage::new(self.method.output());
        if let Some(field) = carrier.descriptor().get_field_by_name("error")
            && let Some(kind) = field.kind().as_message()
        {
            let mut inner = DynamicMessage::new(kind.clone());
            // Both sides are generated from one file.
            if inner.transcode_from(&error_response(error)).is_ok() {
                carrier.set_field(&field, Value::Message(inner));
            }
        }
        carrier.encode_to_vec()
    }
}

/// An error as this service tells it.
pub(super) fn error_response(error: &Error) -> ErrorResponse {
    let mut details = error.details.clone();
    if !error.reason.is_empty() {
        details.insert("reason".to_owned(), error.reason.clone());
    }
    ErrorResponse { code: error.code.as_str().to_owned(), message: error.message.clone(), details }
}

fn last_event(error: &Error) -> RunClaudeTaskResponse {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    RunClaudeTaskResponse {
        r#type: ResponseType::Error.into(),
        content: format!("{}: {}", error.code, error.message),
        timestamp: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
        exit_code: 1,
        is_finished: true,
    }
}
