//! A call to an agent whose messages this server reads and writes itself: for the doors whose protocol is not the
//! agent's own.
//!
//! What the agent answers is hostile until parsed: frames are bounded, and what does not decode ends the call.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use dispense_api::error::{Code, Error, reason};
use dispense_api::frame::{self, Decoder, Frame};
use dispense_api::limits;
use dispense_api::method::Method;
use futures_util::FutureExt;
use prost::Message;

use super::session::{self, Inbound, Outbound, Session};
use super::{Origin, Relay, Route};

/// The answers of a call. When it is dropped before the last one, the call is cancelled.
pub(crate) struct Answers {
    inbound: Inbound,
    requests: Requests,
    decoder: Decoder,
    /// Bytes of the session that are no whole frame yet.
    begun: BytesMut,
}

/// The requests of a call after the first.
#[derive(Clone)]
pub(crate) struct Requests(pub(super) Outbound);

impl Relay {
    /// Calls a method with one request; `timeout` is for a sandbox that is starting.
    pub(crate) async fn ask(
        &self,
        route: &Route,
        method: Method,
        origin: &Origin,
        request: &impl Message,
        timeout: Duration,
    ) -> Result<Answers, Error> {
        self.ask_all(route, method, origin, std::slice::from_ref(request), timeout).await
    }

    /// The same with several requests that are all there: everybody on the way is woken once.
    pub(crate) async fn ask_all(
        &self,
        route: &Route,
        method: Method,
        origin: &Origin,
        requests: &[impl Message],
        timeout: Duration,
    ) -> Result<Answers, Error> {
        let (answers, mut head) = self.begin(route, method, origin, timeout).await?;
        for request in requests {
            frame::encode(request, &mut head);
        }
        let sent = answers.requests.0.send_last(head).await;
        sent.map(|()| answers).map_err(|_| gone())
    }

    /// The same for a method that takes more requests than this first one.
    pub(crate) async fn call(
        &self,
        route: &Route,
        method: Method,
        origin: &Origin,
        first: &impl Message,
        timeout: Duration,
    ) -> Result<Answers, Error> {
        let (answers, mut head) = self.begin(route, method, origin, timeout).await?;
        frame::encode(first, &mut head);
        let sent = answers.requests.0.send(head.freeze()).await;
        sent.map(|()| answers).map_err(|_| gone())
    }

    async fn begin(
        &self,
        route: &Route,
        method: Method,
        origin: &Origin,
        timeout: Duration,
    ) -> Result<(Answers, BytesMut), Error> {
        let Session { inbound, outbound } = self.open(route, &origin.trace, timeout).await?;
        let mut head = BytesMut::new();
        session::call(method, origin, &mut head);
        let decoder = Decoder::new(limits::RESPONSE_MESSAGE_MAX_BYTES);
        Ok((Answers { inbound, requests: Requests(outbound), decoder, begun: BytesMut::new() }, head))
    }
}

impl Requests {
    /// Sends a message; `false` when nobody takes it any more.
    pub(crate) async fn send(&self, message: &impl Message) -> bool {
        let mut bytes = BytesMut::new();
        frame::encode(message, &mut bytes);
        self.0.send(bytes.freeze()).await.is_ok()
    }

    /// Says that there are no more. An agent that was told so with the last one is not told again.
    pub(crate) async fn end(&self) {
        self.0.end_requests().await;
    }
}

impl Answers {
    /// For the requests after the first.
    pub(crate) fn requests(&self) -> Requests {
        self.requests.clone()
    }

    /// The message of a method that answers with one.
    pub(crate) async fn only<M: Message + Default>(mut self) -> Result<M, Error> {
        let answer = self.next().await?.ok_or_else(broken)?;
        // The session takes the next call when this one has ended.
        self.next::<()>().await?.map_or(Ok(answer), |()| Err(broken()))
    }

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
            Ok(Frame::End) => Err(broken()),
            Err(error) => Err(lost(&error)),
        }
    }

    /// When the last message has come that the caller wants: takes the status too, if it has come with it, so that the
    /// session takes the next call.
    pub(crate) fn settle(&mut self) {
        // Else the call is cancelled, which is no loss.
        let _ = self.next::<()>().now_or_never();
    }

    /// The next frame.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Frame>> {
        loop {
            match self.decoder.decode(&mut self.begun) {
                Ok(Some(frame)) => {
                    if let Frame::Status(status) = &frame {
                        self.inbound.over(status.kept && self.begun.is_empty());
                    }
                    return Poll::Ready(Ok(frame));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(io::Error::other(error))),
            }
            match ready!(self.inbound.poll_data(context)) {
                Ok(data) => self.begun.extend_from_slice(&data),
                Err(_) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
    }
}

/// The connection to the agent ended before the answer did.
pub(super) fn lost(error: &io::Error) -> Error {
    let message = format!("the connection to the sandbox was lost ({error}): see `dispense get`");
    Error::new(Code::Unavailable, reason::AGENT_UNREACHABLE, message)
}

/// Nobody takes the call's bytes any more.
pub(crate) fn gone() -> Error {
    Error::new(Code::Unavailable, reason::AGENT_UNREACHABLE, "the sandbox's runner is gone")
}

/// An answer that no honest agent gives.
pub(crate) fn broken() -> Error {
    Error::new(Code::Internal, reason::PROTOCOL, "the sandbox's agent broke the protocol")
}
