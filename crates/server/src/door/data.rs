//! Calls that an agent answers: the frames pass unopened in both directions. Only field 1 of the first
//! request message is read, which names the sandbox.

mod answer;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dispense_api::error::{Code, Error, reason};
use dispense_api::frame::{FrameError, HEADER_BYTES, Header, Kind};
use dispense_api::limits;
use dispense_api::method::Method;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt;
use prost::Message;
use tonic::body::Body;

use super::{GRPC, Parts};
use crate::auth::Principal;
use crate::relay::call::gone;
use crate::relay::session::{self, Outbound, Session, Unsent};
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
    let Session { inbound, outbound } = parts.relay.open(&route, &caller.origin.trace, START_TIMEOUT).await?;
    let mut head = BytesMut::with_capacity(begun.len() + 128);
    session::call(method, &caller.origin, &mut head);
    let refused = Arc::new(OnceLock::new());
    head.extend_from_slice(&begun);
    // Most calls have one request, and its end comes with it.
    let is_last = body.is_end_stream();
    let sent = if is_last { outbound.send_last(head).await } else { outbound.send(head.freeze()).await };
    sent.map_err(|unsent| match unsent {
        Unsent::Malformed(error) => malformed(error),
        Unsent::Gone => gone(),
    })?;
    let up = Up { outbound, refused: refused.clone() };
    let uplink = tokio::spawn(up.send(body));
    let mut response = Response::new(Answer::new(method, caller.origin.trace.clone(), inbound, uplink, refused));
    response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC);
    Ok(response)
}

/// Reads the body until its first message is whole: the sandbox's name, and all bytes so far.
async fn first_message(body: &mut Body) -> Result<(String, Bytes), Error> {
    let mut begun = BytesMut::new();
    loop {
        if let Some(header) = Header::peek(&begun, limits::REQUEST_MESSAGE_MAX_BYTES).map_err(malformed)? {
            if header.kind != Kind::Message {
                return Err(malformed(FrameError::UnknownFlags(begun[0])));
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

/// The way of a request's bytes to the agent. They pass unopened, but only as whole messages: what is none would be taken for
/// the server's own words.
struct Up {
    outbound: Outbound,
    /// Why the caller's bytes are not passed on.
    refused: Arc<OnceLock<Error>>,
}

impl Up {
    /// Passes the rest of a body on. Its end is the end of this direction only.
    async fn send(self, mut body: Body) {
        while let Some(next) = body.frame().await {
            match next.map(http_body::Frame::into_data) {
                Ok(Ok(data)) => {
                    if !self.pass(data).await {
                        return;
                    }
                }
                // Trailers of a request say nothing.
                Ok(Err(_)) => {}
                Err(error) => return self.outbound.reset(format!("the caller is gone: {error}")).await,
            }
        }
        self.outbound.end_requests().await;
    }

    /// Passes bytes on; `false` when there is nothing more to pass.
    async fn pass(&self, bytes: Bytes) -> bool {
        match self.outbound.send(bytes).await {
            Ok(()) => true,
            Err(Unsent::Gone) => false,
            Err(Unsent::Malformed(error)) => {
                let error = malformed(error);
                let why = error.message.clone();
                // It is set once.
                let _ = self.refused.set(error);
                self.outbound.reset(why).await;
                false
            }
        }
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
