//! Calls that an agent answers: the frames pass unopened in both directions. Only field 1 of the first
//! request message is read, which names the sandbox.

mod answer;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dispense_api::error::{Code, Error, reason};
use dispense_api::frame::{self, FrameError, HEADER_BYTES, Header};
use dispense_api::limits;
use dispense_api::method::Method;
use dispense_api::runner::{SessionFrame, session_frame::Kind};
use http::{Request, Response};
use http_body_util::BodyExt;
use prost::Message;
use tokio::sync::mpsc;
use tonic::body::Body;

use super::{GRPC, Parts};
use crate::auth::Principal;
use answer::Answer;

/// From the start of a call to the end of its first message.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// For a sandbox that waits for a runner, and again for one that starts.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The one field of every first request message that the server reads.
#[derive(Clone, PartialEq, Message)]
struct Addressed {
    #[prost(string, tag = "1")]
    sandbox: String,
}

/// Carries one call.
pub(super) async fn call(
    parts: &Parts,
    caller: &Principal,
    method: Method,
    request: Request<Body>,
) -> Result<Response<Answer>, Error> {
    let mut body = request.into_body();
    let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, first_message(&mut body)).await;
    let (sandbox, begun) = first.map_err(|_| protocol("the first message did not come in time"))??;
    let route = parts.sandboxes.seen_by(caller).route(&sandbox, method, START_TIMEOUT).await?;
    let stream = parts.relay.open(&route, &caller.origin.trace, START_TIMEOUT).await?;
    let mut head = BytesMut::with_capacity(begun.len() + 128);
    frame::encode_call(method.path(), &caller.origin.request_id, &caller.origin.trace, &mut head);
    head.extend_from_slice(&begun);
    let uplink = tokio::spawn(send_up(body, head.freeze(), stream.outbound));
    let mut response = Response::new(Answer::new(method, caller.origin.trace.clone(), stream.inbound, uplink));
    response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC);
    Ok(response)
}

/// Reads the body until its first message is whole: the sandbox's name, and all bytes so far.
async fn first_message(body: &mut Body) -> Result<(String, Bytes), Error> {
    let mut begun = BytesMut::new();
    loop {
        if let Some(header) = Header::peek(&begun, limits::REQUEST_MESSAGE_MAX_BYTES).map_err(malformed)? {
            if header.is_status {
                return Err(protocol("a request has no frame with flags 0x80"));
            }
            if begun.len() >= HEADER_BYTES + header.len {
                let message = begun.get(HEADER_BYTES..HEADER_BYTES + header.len).unwrap_or_default();
                let addressed = Addressed::decode(message)
                    .map_err(|_| protocol("the first message does not name a sandbox in field 1"))?;
                return Ok((addressed.sandbox, begun.freeze()));
            }
        }
        let Some(next) = body.frame().await else {
            return Err(protocol("the call ended before its first message"));
        };
        let next = next.map_err(|_| protocol("the call was cut before its first message"))?;
        if let Ok(data) = next.into_data() {
            begun.extend_from_slice(&data);
        }
    }
}

/// Passes the request's bytes to the agent. The end of the body is the end of this direction only.
async fn send_up(mut body: Body, head: Bytes, outbound: mpsc::Sender<SessionFrame>) {
    let send = async |kind| outbound.send(SessionFrame { kind: Some(kind) }).await.is_ok();
    if !send(Kind::Data(head)).await {
        return;
    }
    while let Some(next) = body.frame().await {
        let kind = match next.map(|next| next.into_data()) {
            Ok(Ok(data)) => Kind::Data(data),
            // Trailers of a request say nothing.
            Ok(Err(_)) => continue,
            Err(error) => Kind::Reset(format!("the caller is gone: {error}")),
        };
        let last = matches!(kind, Kind::Reset(_));
        if !send(kind).await || last {
            return;
        }
    }
    if send(Kind::Eof(true)).await {
        // The stream's other direction goes on; it ends when the runner ends it or the caller is gone.
        outbound.closed().await;
    }
}

fn malformed(error: FrameError) -> Error {
    match error {
        FrameError::TooLong { .. } => {
            Error::new(Code::ResourceExhausted, reason::PROTOCOL, format!("{error}: send smaller messages"))
        }
        FrameError::UnknownFlags(1) => Error::new(
            Code::Unimplemented,
            reason::PROTOCOL,
            "compressed messages are not taken: turn compression off in the client",
        ),
        FrameError::UnknownFlags(_) | FrameError::Malformed(_) | FrameError::Truncated => protocol(&error.to_string()),
    }
}

fn protocol(message: &str) -> Error {
    Error::new(Code::InvalidArgument, reason::PROTOCOL, message)
}
