//! A call to an agent whose messages this server reads and writes itself: for the doors whose protocol is not the
//! agent's own.
//!
//! What the agent answers is hostile until parsed: frames are bounded, and what does not decode ends the call.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use dispense_api::error::{Code, Error, reason};
use dispense_api::frame::{self, Decoder, Frame};
use dispense_api::limits;
use dispense_api::method::Method;
use dispense_api::runner::{SessionFrame, session_frame::Kind};
use futures_util::Stream;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::{AgentStream, Origin, Relay, Route};

/// The answers of a call.
pub(crate) struct Answers {
    inbound: Streaming<SessionFrame>,
    decoder: Decoder,
    /// Bytes of the session that are no whole frame yet.
    begun: BytesMut,
}

/// The requests of a call after the first. Dropping it ends the call's requests for the agent, as a caller who is gone.
#[derive(Clone)]
pub(crate) struct Requests(pub(super) mpsc::Sender<SessionFrame>);

impl Relay {
    /// Calls a method; `timeout` is for a sandbox that is starting.
    pub(crate) async fn call(
        &self,
        route: &Route,
        method: Method,
        origin: &Origin,
        first: &impl Message,
        timeout: Duration,
    ) -> Result<(Requests, Answers), Error> {
        let AgentStream { inbound, outbound } = self.open(route, &origin.trace, timeout).await?;
        let mut head = BytesMut::new();
        frame::encode_call(method.path(), &origin.request_id, &origin.trace, &mut head);
        frame::encode(first, &mut head);
        let frame = SessionFrame { kind: Some(Kind::Data(head.freeze())) };
        outbound.send(frame).await.map_err(|_| gone())?;
        let decoder = Decoder::new(limits::RESPONSE_MESSAGE_MAX_BYTES);
        Ok((Requests(outbound), Answers { inbound, decoder, begun: BytesMut::new() }))
    }
}

impl Requests {
    /// Sends a message; `false` when nobody takes it any more.
    pub(crate) async fn send(&self, message: &impl Message) -> bool {
        let mut bytes = BytesMut::new();
        frame::encode(message, &mut bytes);
        self.0.send(SessionFrame { kind: Some(Kind::Data(bytes.freeze())) }).await.is_ok()
    }
}

impl Requests {
    /// Says that there are no more; the answers go on as long as this lives.
    pub(crate) async fn end(&self) {
        // An agent that has answered already needs no end.
        let _ = self.0.send(SessionFrame { kind: Some(Kind::Eof(true)) }).await;
    }
}

impl Answers {
    /// The next message; `None` when the agent has answered all.
    ///
    /// CANCEL SAFETY: what was read stays in the buffer.
    pub(crate) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Error> {
        match std::future::poll_fn(|context| self.poll_frame(context)).await {
            Ok(Frame::Message(message)) => M::decode(message).map(Some).map_err(|_| broken()),
            Ok(Frame::Status(status)) => match Error::try_from(status) {
                Ok(error) => Err(error),
                Err(()) => Ok(None),
            },
            Err(error) => Err(lost(&error)),
        }
    }

    /// The next frame.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Frame>> {
        loop {
            match self.decoder.decode(&mut self.begun) {
                Ok(Some(frame)) => return Poll::Ready(Ok(frame)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(io::Error::other(error))),
            }
            match ready!(Pin::new(&mut self.inbound).poll_next(context)) {
                Some(Ok(SessionFrame { kind: Some(Kind::Data(data)) })) => self.begun.extend_from_slice(&data),
                _ => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
    }
}

/// The connection to the agent ended before the answer did.
pub(super) fn lost(error: &io::Error) -> Error {
    let message = format!("the connection to the sandbox was lost ({error}): see `dispense get`");
    Error::new(Code::Unavailable, reason::AGENT_UNREACHABLE, message)
}

/// An answer that no honest agent gives.
pub(crate) fn broken() -> Error {
    Error::new(Code::Internal, reason::PROTOCOL, "the sandbox's agent broke the protocol")
}

fn gone() -> Error {
    Error::new(Code::Unavailable, reason::AGENT_UNREACHABLE, "the sandbox's runner is gone")
}
