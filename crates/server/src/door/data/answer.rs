//! The answer of an agent as the body of a gRPC response: message frames pass as they came, the final
//! `Status` frame becomes the trailers. What an agent sends is hostile until it is parsed.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use dispense_api::agent;
use dispense_api::error::{Code, Error, reason};
use dispense_api::frame::{HEADER_BYTES, Header, Kind};
use dispense_api::limits;
use dispense_api::method::Method;
use dispense_api::trace::Span;
use http::HeaderMap;
use http_body::Frame;
use prost::Message;
use tokio::task::JoinHandle;
use tonic::Status;

use crate::relay::session::Inbound;

/// A status has a sentence and some details.
const STATUS_MAX_BYTES: usize = 64 << 10;
/// No agent has answered one call for longer than a year.
const ELAPSED_MAX: Duration = Duration::from_secs(365 * 86_400);

/// Where in the agent's stream of frames the scanner is.
enum Scan {
    /// In a frame's header; the bytes of it that have come.
    Header(BytesMut),
    /// In a message, with so many bytes to go.
    Message(usize),
    /// In the status, whose length is known.
    Status(BytesMut, usize),
}

/// The body.
pub(crate) struct Answer {
    method: Method,
    /// Of the request.
    trace: String,
    inbound: Inbound,
    uplink: JoinHandle<()>,
    /// Why the caller's bytes were not passed on.
    refused: Arc<OnceLock<Error>>,
    scan: Scan,
    /// Bytes that came and were not passed on yet.
    chunk: Bytes,
    ended: bool,
}

impl Answer {
    pub(super) fn new(
        method: Method,
        trace: String,
        inbound: Inbound,
        uplink: JoinHandle<()>,
        refused: Arc<OnceLock<Error>>,
    ) -> Self {
        let (scan, chunk) = (Scan::Header(BytesMut::new()), Bytes::new());
        Self { method, trace, inbound, uplink, refused, scan, chunk, ended: false }
    }

    /// Takes from the chunk what can be passed on; `Ok(None)` when more must come.
    fn advance(&mut self) -> Result<Option<Frame<Bytes>>, Error> {
        while self.chunk.has_remaining() {
            match &mut self.scan {
                Scan::Message(left) => {
                    let data = self.chunk.split_to((*left).min(self.chunk.len()));
                    *left -= data.len();
                    if *left == 0 {
                        self.scan = Scan::Header(BytesMut::new());
                    }
                    return Ok(Some(Frame::data(data)));
                }
                Scan::Status(_, len) if *len > STATUS_MAX_BYTES => return Err(broken("its status is too long")),
                Scan::Status(status, len) => {
                    let part = self.chunk.split_to((*len - status.len()).min(self.chunk.len()));
                    status.extend_from_slice(&part);
                    if status.len() == *len {
                        let status =
                            agent::Status::decode(&**status).map_err(|_| broken("its status does not decode"))?;
                        let elapsed = Duration::from_micros(status.elapsed_us).min(ELAPSED_MAX);
                        Span::ended(format!("agent {}", self.method.path()), &self.trace, elapsed);
                        self.inbound.over(status.kept && self.chunk.is_empty());
                        return Ok(Some(Frame::trailers(trailers(status))));
                    }
                }
                Scan::Header(begun) if begun.is_empty() => {
                    // The usual case: whole messages, passed without a copy.
                    if let Some(whole) = whole_messages(&self.chunk)? {
                        let messages = self.chunk.split_to(whole);
                        self.look_ahead();
                        return Ok(Some(Frame::data(messages)));
                    }
                    self.header()?;
                    if let Some(data) = self.begun_message() {
                        return Ok(Some(Frame::data(data)));
                    }
                }
                Scan::Header(_) => {
                    self.header()?;
                    if let Some(data) = self.begun_message() {
                        return Ok(Some(Frame::data(data)));
                    }
                }
            }
        }
        // An empty status has nothing to wait for.
        if let Scan::Status(_, 0) = self.scan {
            return Ok(Some(Frame::trailers(trailers(agent::Status::default()))));
        }
        Ok(None)
    }

    /// A caller may go as soon as it has the last message: the status that came with it has ended the call by then.
    fn look_ahead(&mut self) {
        if let Ok(Some(Header { kind: Kind::Status, len })) = Header::peek(&self.chunk, STATUS_MAX_BYTES)
            && self.chunk.len() == HEADER_BYTES + len
            && let Ok(status) = agent::Status::decode(&self.chunk[HEADER_BYTES..])
        {
            self.inbound.over(status.kept);
        }
    }

    /// Collects a header that was cut, or that of a message that is not whole.
    fn header(&mut self) -> Result<(), Error> {
        let Scan::Header(begun) = &mut self.scan else { return Ok(()) };
        let part = self.chunk.split_to((HEADER_BYTES - begun.len()).min(self.chunk.len()));
        begun.extend_from_slice(&part);
        Ok(())
    }

    /// When the header is whole: enters the frame. The header of a message is passed on.
    fn begun_message(&mut self) -> Option<Bytes> {
        let Scan::Header(begun) = &mut self.scan else { return None };
        let header = Header::peek(begun, limits::RESPONSE_MESSAGE_MAX_BYTES);
        match header {
            Ok(None) => None,
            Ok(Some(Header { kind: Kind::Status, len })) => {
                self.scan = Scan::Status(BytesMut::new(), len);
                None
            }
            // The next look at the chunk tells it as an error.
            Err(_) | Ok(Some(Header { kind: Kind::End, .. })) => {
                self.chunk = std::mem::take(begun).freeze();
                None
            }
            Ok(Some(header)) => {
                let bytes = begun.split().freeze();
                self.scan = if header.len == 0 { Scan::Header(BytesMut::new()) } else { Scan::Message(header.len) };
                Some(bytes)
            }
        }
    }

    fn end(&mut self, error: Error) -> Frame<Bytes> {
        self.ended = true;
        Frame::trailers(trailers(error.into()))
    }
}

/// Length of the run of whole message frames at the front of `chunk`, or of the part of a message there;
/// `None` when it begins with a status or a cut header.
fn whole_messages(chunk: &[u8]) -> Result<Option<usize>, Error> {
    let mut end = 0;
    while let Some(header) =
        Header::peek(&chunk[end..], limits::RESPONSE_MESSAGE_MAX_BYTES).map_err(|error| broken(&error.to_string()))?
    {
        let next = end + HEADER_BYTES + header.len;
        match header.kind {
            Kind::End => return Err(broken("an answer has no end of requests")),
            Kind::Message if next <= chunk.len() => {}
            Kind::Message | Kind::Status => break,
        }
        end = next;
    }
    Ok((end > 0).then_some(end))
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            match self.advance() {
                Ok(Some(frame)) => {
                    self.ended = frame.is_trailers();
                    return Poll::Ready(Some(Ok(frame)));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Ok(self.end(error)))),
            }
            match ready!(self.inbound.poll_data(context)) {
                Ok(data) => self.chunk = data,
                Err(why) => {
                    let error = self.refused.get().cloned().unwrap_or_else(|| lost(&why));
                    return Poll::Ready(Some(Ok(self.end(error))));
                }
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // A caller that is gone takes both directions with it.
        self.uplink.abort();
    }
}

fn lost(why: &str) -> Error {
    let message = format!(
        "the connection to the sandbox's agent was lost ({why}): the sandbox may have been stopped, see `dispense get`"
    );
    Error::new(Code::Unavailable, reason::AGENT_UNREACHABLE, message)
}

fn broken(why: &str) -> Error {
    Error::new(Code::Internal, reason::PROTOCOL, format!("the sandbox's agent broke the protocol: {why}"))
}

/// The end of the call.
fn trailers(status: agent::Status) -> HeaderMap {
    let status = match Error::try_from(status) {
        Ok(error) => Status::from(error),
        Err(()) => Status::ok(""),
    };
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        // A sentence that no header can carry.
        headers.insert("grpc-status", http::HeaderValue::from_static("13"));
    }
    headers
}
