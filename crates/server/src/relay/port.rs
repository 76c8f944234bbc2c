//! A byte stream to a port of a sandbox, for the doors that speak a protocol over it themselves.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use dispense_api::error::{Code, Error, reason};
use dispense_api::frame::Frame;
use dispense_api::method::Method;
use dispense_api::v1::{OpenPortRequest, OpenPortResponse, open_port_request, open_port_response};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::call::{Answers, broken, lost};
use super::session::PolledOutbound;
use super::{Origin, Relay, Route};

/// For the last bytes, to a program that may not read them.
const FINISH_TIMEOUT: Duration = Duration::from_secs(60);
/// Of one message towards the sandbox.
const CHUNK_BYTES: usize = 64 << 10;
/// A port on the sandbox's loopback answers at once, or nobody listens.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The stream. Each direction ends by itself.
pub(crate) struct PortStream {
    answers: Answers,
    outbound: PolledOutbound,
    /// Bytes of the port that were not read yet.
    unread: Bytes,
    read_ended: bool,
    write_ended: bool,
}

impl Relay {
    /// Connects to a TCP port on the sandbox's loopback; `timeout` is for a sandbox that is starting.
    pub(crate) async fn connect_port(&self, route: &Route, port: u16, timeout: Duration) -> Result<PortStream, Error> {
        self.open_port(route, OpenPortRequest { port: port.into(), ..Default::default() }, timeout).await
    }

    /// Takes a connection that came to a listener in the sandbox.
    pub(crate) async fn take_connection(&self, route: &Route, connection: u64) -> Result<PortStream, Error> {
        self.open_port(route, OpenPortRequest { connection, ..Default::default() }, CONNECT_TIMEOUT).await
    }

    async fn open_port(&self, route: &Route, first: OpenPortRequest, timeout: Duration) -> Result<PortStream, Error> {
        let (port, first) = (first.port, OpenPortRequest { sandbox: route.sandbox.to_string(), ..first });
        let answers = self.call(route, Method::OpenPort, &Origin::default(), &first, timeout).await?;
        let mut stream = PortStream {
            outbound: answers.requests().0.polled(),
            answers,
            unread: Bytes::new(),
            read_ended: false,
            write_ended: false,
        };
        let connected = std::future::poll_fn(|context| stream.poll_connected(context));
        match tokio::time::timeout(CONNECT_TIMEOUT, connected).await {
            Ok(connected) => connected.map(|()| stream),
            Err(_) => {
                let message =
                    format!("port {port} of the sandbox did not accept within {} s", CONNECT_TIMEOUT.as_secs());
                Err(Error::new(Code::DeadlineExceeded, reason::AGENT_UNREACHABLE, message))
            }
        }
    }
}

impl PortStream {
    /// Takes back what was read ahead: it is read again, first.
    pub(crate) fn give_back(&mut self, ahead: Bytes) {
        self.unread = if self.unread.is_empty() { ahead } else { [ahead, self.unread.clone()].concat().into() };
    }

    /// When nothing more comes from the caller: waits until the sandbox has taken everything, or does not. What it still
    /// sends is dropped.
    pub(crate) async fn finish(mut self) {
        let ended = async {
            // Of a direction that was cut off, too.
            if self.shutdown().await.is_err() {
                return;
            }
            while let Ok(Frame::Message(_)) = std::future::poll_fn(|context| self.answers.poll_frame(context)).await {}
        };
        if tokio::time::timeout(FINISH_TIMEOUT, ended).await.is_err() {
            tracing::debug!("the last bytes to a port were not taken");
        }
    }

    fn poll_connected(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match ready!(self.answers.poll_frame(context)) {
            Ok(Frame::Message(message)) => match kind(message) {
                Some(open_port_response::Kind::Connected(_)) => Poll::Ready(Ok(())),
                _ => Poll::Ready(Err(broken())),
            },
            Ok(Frame::End) => Poll::Ready(Err(broken())),
            Ok(Frame::Status(status)) => Poll::Ready(Err(Error::try_from(status).unwrap_or_else(|()| broken()))),
            Err(error) => Poll::Ready(Err(lost(&error))),
        }
    }

    /// Sends one message, when there is room for it.
    fn poll_send(&mut self, context: &mut Context<'_>, message: OpenPortRequest) -> Poll<io::Result<()>> {
        ready!(self.outbound.poll_ready(context))?;
        Poll::Ready(self.outbound.send(&message))
    }
}

fn kind(message: Bytes) -> Option<open_port_response::Kind> {
    OpenPortResponse::decode(message).ok()?.kind
}

impl AsyncRead for PortStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.read_ended {
            match ready!(self.answers.poll_frame(context))? {
                Frame::Message(message) => match kind(message) {
                    Some(open_port_response::Kind::Data(data)) => self.unread = data,
                    Some(open_port_response::Kind::Eof(_)) => self.read_ended = true,
                    Some(open_port_response::Kind::Connected(_)) | None => {}
                },
                Frame::End => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Frame::Status(status) if status.code.is_empty() => self.read_ended = true,
                Frame::Status(status) => return Poll::Ready(Err(io::Error::other(status.message))),
            }
        }
        let count = buffer.remaining().min(self.unread.len());
        buffer.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let count = data.len().min(CHUNK_BYTES);
        let kind = open_port_request::Kind::Data(Bytes::copy_from_slice(&data[..count]));
        ready!(self.poll_send(context, OpenPortRequest { kind: Some(kind), ..Default::default() }))?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_ended {
            let kind = open_port_request::Kind::Eof(true);
            ready!(self.poll_send(context, OpenPortRequest { kind: Some(kind), ..Default::default() }))?;
            self.write_ended = true;
        }
        Poll::Ready(Ok(()))
    }
}
