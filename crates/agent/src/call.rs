//! Calls: request messages in, response messages and one status out, one after the other over one byte stream.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use dispense_api::agent::Status;
use dispense_api::error::{Code, Error, reason};
use dispense_api::frame::{self, Decoder, Frame};
use dispense_api::limits;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// Payloads up to this are copied, to go with what follows; larger ones are written where they lie.
const GATHER_BYTES: usize = 32 << 10;
/// For what is still on its way when a call has been answered.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// A buffer that one call has made larger is not kept for the next.
const KEPT_BUFFER_BYTES: usize = 64 << 10;

/// Tells whether the peer has gone for good, which end-of-file alone does not: it may be a half-close.
pub(crate) type Gone = Arc<dyn Fn() -> bool + Send + Sync>;

/// The caller's frames.
pub(crate) struct Requests<S> {
    reader: ReadHalf<S>,
    buffer: BytesMut,
    decoder: Decoder,
    gone: Gone,
    end: Option<End>,
    /// The caller's trace context; empty where there is none.
    pub(crate) trace: String,
}

/// How the requests of a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By a frame: the stream goes on.
    Frame,
    /// With the stream.
    Stream,
}

/// The agent's frames.
pub(crate) struct Responses<S> {
    writer: WriteHalf<S>,
    buffer: BytesMut,
    begun: Instant,
    /// A message was begun and not ended: nothing can follow.
    torn: bool,
}

/// Splits a stream into both.
pub(crate) fn split<S: AsyncRead + AsyncWrite>(stream: S, gone: Gone) -> (Requests<S>, Responses<S>) {
    let (reader, writer) = tokio::io::split(stream);
    let decoder = Decoder::new(limits::REQUEST_MESSAGE_MAX_BYTES);
    let requests = Requests { reader, buffer: BytesMut::new(), decoder, gone, end: None, trace: String::new() };
    (requests, Responses { writer, buffer: BytesMut::new(), begun: Instant::now(), torn: false })
}

fn protocol(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidArgument, reason::PROTOCOL, message)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Requests<S> {
    /// The next message; `None` when there are no more.
    ///
    /// CANCEL SAFETY: what was read stays in the buffer.
    pub(crate) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Error> {
        loop {
            if self.end.is_some() {
                return Ok(None);
            }
            match self.decoder.decode(&mut self.buffer).map_err(|error| protocol(error.to_string()))? {
                Some(Frame::Message(bytes)) => {
                    let name = std::any::type_name::<M>().rsplit(':').next().unwrap_or_default();
                    return M::decode(bytes)
                        .map(Some)
                        .map_err(|_| protocol(format!("a request message is not a {name}")));
                }
                Some(Frame::Status(_)) => return Err(protocol("a caller sends no status")),
                Some(Frame::End) => {
                    self.end = Some(End::Frame);
                    continue;
                }
                None => {}
            }
            let count = self.reader.read_buf(&mut self.buffer).await.map_err(gone)?;
            if count == 0 {
                self.end = Some(End::Stream);
                if !self.buffer.is_empty() {
                    return Err(protocol("the request ended inside a frame"));
                }
            }
        }
    }

    /// After an answer: passes over what the caller had still to say. `true` when the stream takes another call.
    pub(crate) async fn finish(&mut self) -> bool {
        let ended = async {
            while self.end.is_none() {
                match self.decoder.decode(&mut self.buffer) {
                    Ok(Some(Frame::Message(_))) => {}
                    Ok(Some(Frame::End)) => self.end = Some(End::Frame),
                    Ok(None) if matches!(self.reader.read_buf(&mut self.buffer).await, Ok(1..)) => {}
                    _ => self.end = Some(End::Stream),
                }
            }
        };
        if tokio::time::timeout(END_TIMEOUT, ended).await.is_err() || self.end != Some(End::Frame) {
            return false;
        }
        self.end = None;
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        true
    }

    /// The only message of a unary request.
    pub(crate) async fn only<M: Message + Default>(&mut self) -> Result<M, Error> {
        self.next().await?.ok_or_else(|| protocol("the request has no message"))
    }

    /// Whether the caller has gone for good.
    pub(crate) fn gone(&self) -> bool {
        (self.gone)()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Responses<S> {
    /// Sends a message.
    pub(crate) async fn send(&mut self, message: &impl Message) -> io::Result<()> {
        self.gather(message);
        self.flush().await
    }

    /// Keeps a message, to go with what follows: others, or the status. Each write wakes three processes up.
    pub(crate) fn gather(&mut self, message: &impl Message) {
        frame::encode(message, &mut self.buffer);
    }

    /// The same for a message whose last field is `payload`; a large one is sent, without a copy. `head` has the encoded
    /// message up to and including the length of the payload.
    pub(crate) async fn gather_with_payload(&mut self, head: &[u8], mut payload: Bytes) -> io::Result<()> {
        let len = head.len() + payload.len();
        self.buffer.extend_from_slice(&[frame::FLAG_MESSAGE]);
        self.buffer.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        self.buffer.extend_from_slice(head);
        if payload.len() <= GATHER_BYTES && self.buffer.len() <= GATHER_BYTES {
            self.buffer.extend_from_slice(&payload);
            return Ok(());
        }
        // A caller's mistake may end the call in the midst of this.
        self.torn = true;
        while !self.buffer.is_empty() {
            let slices = [IoSlice::new(&self.buffer), IoSlice::new(&payload)];
            let count = self.writer.write_vectored(&slices).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let of_head = count.min(self.buffer.len());
            self.buffer.advance(of_head);
            payload.advance(count - of_head);
        }
        self.writer.write_all(&payload).await?;
        self.torn = false;
        self.writer.flush().await
    }

    /// Whether something is kept that was not sent.
    pub(crate) fn has_gathered(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Sends what is kept.
    ///
    /// CANCEL SAFETY: what was not sent yet stays in the buffer.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.writer.write_all_buf(&mut self.buffer).await?;
        self.writer.flush().await
    }

    /// A call begins.
    pub(crate) fn begin(&mut self) {
        self.begun = Instant::now();
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = BytesMut::new();
        }
    }

    /// Ends the answer, and the stream's direction unless it is kept.
    pub(crate) async fn finish(&mut self, result: Result<(), Error>, kept: bool) -> io::Result<()> {
        if self.torn {
            self.writer.shutdown().await?;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut status = result.map_or_else(Status::from, |()| Status::default());
        status.elapsed_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        status.kept = kept;
        frame::encode_status(&status, &mut self.buffer);
        self.flush().await?;
        if kept { Ok(()) } else { self.writer.shutdown().await }
    }
}

/// The caller went away while it was answered.
pub(crate) fn gone(_: io::Error) -> Error {
    Error::new(Code::Cancelled, "gone", "the caller has gone")
}
