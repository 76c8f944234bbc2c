//! Framing of the byte stream to an agent, which is that of gRPC: one byte of flags, four bytes of length
//! (big-endian), the message. A server passes message frames between a gRPC body and an agent unopened.
//!
//! ```text
//! caller → agent:  Call, request message…, end-of-file
//! agent → caller:  response message…, Status (flags 0x80)
//! ```
//!
//! Where both keep the stream, the end of the requests is a frame (flags 0x40, empty), and after it and the status the
//! next `Call` may come.
//!
//! Everything here is sync and does no IO. BOUND: a [`Decoder`] never asks for more than its maximum, so a
//! peer that announces a huge frame is refused before anything is kept.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::agent::{Call, Status};

/// Flags and length.
pub const HEADER_BYTES: usize = 5;
/// Flags of a message.
pub const FLAG_MESSAGE: u8 = 0x00;
/// Flags of the `Status` that ends an answer.
pub const FLAG_STATUS: u8 = 0x80;
/// Flags of the empty frame that ends the requests.
pub const FLAG_END: u8 = 0x40;
/// The end of the requests, whole.
pub const END: [u8; HEADER_BYTES] = [FLAG_END, 0, 0, 0, 0];

/// A frame that no honest peer sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is over the bound.
    #[error("a frame of {len} bytes is over the limit of {max}")]
    TooLong {
        /// As announced.
        len: u64,
        /// The bound.
        max: usize,
    },
    /// None that the protocol has, or none that belongs there.
    #[error("a frame has unknown flags {0:#04x}")]
    UnknownFlags(u8),
    /// The message is not what the method says.
    #[error("a frame does not decode as {0}")]
    Malformed(&'static str),
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
}

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// An encoded message of the method.
    Message(Bytes),
    /// The end of an answer.
    Status(Status),
    /// The end of the requests.
    End,
}

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub struct Decoder {
    max_bytes: usize,
}

impl Decoder {
    /// Refuses frames over `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes }
    }

    /// Takes the next frame off the front of `buffer`; `None` when it is not whole yet.
    pub fn decode(&self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(header) = Header::peek(buffer, self.max_bytes)? else { return Ok(None) };
        let whole = HEADER_BYTES + header.len;
        if buffer.len() < whole {
            buffer.reserve(whole - buffer.len());
            return Ok(None);
        }
        buffer.advance(HEADER_BYTES);
        let payload = buffer.split_to(header.len).freeze();
        match header.kind {
            Kind::Message => Ok(Some(Frame::Message(payload))),
            Kind::Status => {
                let status = Status::decode(payload).map_err(|_| FrameError::Malformed("Status"))?;
                Ok(Some(Frame::Status(status)))
            }
            Kind::End if payload.is_empty() => Ok(Some(Frame::End)),
            Kind::End => Err(FrameError::Malformed("the end of the requests")),
        }
    }
}

/// The first bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes after the header.
    pub len: usize,
    /// What follows.
    pub kind: Kind,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message of the method.
    Message,
    /// The end of an answer.
    Status,
    /// The end of the requests.
    End,
}

impl Header {
    /// Reads the header at the front of `bytes` without taking it; `None` when it is not whole yet.
    pub fn peek(bytes: &[u8], max_bytes: usize) -> Result<Option<Self>, FrameError> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [flags, a, b, c, d] = *header;
        let len = u32::from_be_bytes([a, b, c, d]);
        let kind = match flags {
            FLAG_MESSAGE => Kind::Message,
            FLAG_STATUS => Kind::Status,
            FLAG_END => Kind::End,
            other => return Err(FrameError::UnknownFlags(other)),
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > max_bytes {
            return Err(FrameError::TooLong { len: len as u64, max: max_bytes });
        }
        Ok(Some(Self { len, kind }))
    }
}

/// Follows a sequence of message frames that passes unopened, and tells whether it stands between two.
#[derive(Debug)]
pub struct Boundaries {
    max_bytes: usize,
    header: BytesMut,
    /// Of the message that has begun.
    left: usize,
}

impl Boundaries {
    /// Refuses frames over `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, header: BytesMut::with_capacity(HEADER_BYTES), left: 0 }
    }

    /// Goes on over `bytes`. Only messages may pass: whatever else a peer slips in is refused.
    pub fn advance(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        while !bytes.is_empty() {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            bytes = &bytes[passed..];
            let part = (HEADER_BYTES - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            let Some(header) = Header::peek(&self.header, self.max_bytes)? else { continue };
            if header.kind != Kind::Message {
                return Err(FrameError::UnknownFlags(self.header[0]));
            }
            self.left = header.len;
            self.header.clear();
        }
        Ok(())
    }

    /// No frame has begun and not ended.
    pub fn between(&self) -> bool {
        self.left == 0 && self.header.is_empty()
    }
}

/// Appends a message frame.
pub fn encode(message: &impl Message, buffer: &mut BytesMut) {
    put(FLAG_MESSAGE, message, buffer);
}

/// Appends a message frame around bytes that are encoded already.
pub fn encode_raw(message: &[u8], buffer: &mut BytesMut) {
    buffer.reserve(HEADER_BYTES + message.len());
    buffer.put_u8(FLAG_MESSAGE);
    buffer.put_u32(u32::try_from(message.len()).expect("messages are bounded far below 4 GiB"));
    buffer.put_slice(message);
}

/// Appends the frame that ends an answer.
pub fn encode_status(status: &Status, buffer: &mut BytesMut) {
    put(FLAG_STATUS, status, buffer);
}

/// The first frame of a call, after which the stream is not kept.
pub fn encode_call(method: &str, buffer: &mut BytesMut) {
    encode(&Call { method: method.to_owned(), ..Call::default() }, buffer);
}

fn put(flags: u8, message: &impl Message, buffer: &mut BytesMut) {
    let len = message.encoded_len();
    buffer.reserve(HEADER_BYTES + len);
    buffer.put_u8(flags);
    buffer.put_u32(u32::try_from(len).expect("messages are bounded far below 4 GiB"));
    message.encode_raw(buffer);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_survive_any_cut(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8), cut in 1usize..64) {
            let mut wire = BytesMut::new();
            for payload in &payloads {
                encode_raw(payload, &mut wire);
            }
            let decoder = Decoder::new(1 << 10);
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut buffer).expect("well-formed") {
                    let Frame::Message(bytes) = frame else { panic!("not a message") };
                    seen.push(bytes.to_vec());
                }
            }
            prop_assert_eq!(seen, payloads);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn what_passes_unopened_is_followed_across_any_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cut in 1usize..64,
            flags in prop::sample::select(vec![FLAG_STATUS, FLAG_END, 0x01]),
        ) {
            let (mut wire, mut ends) = (BytesMut::new(), vec![0]);
            for payload in &payloads {
                encode_raw(payload, &mut wire);
                ends.push(wire.len());
            }
            let (mut boundaries, mut at) = (Boundaries::new(1 << 10), 0);
            for piece in wire.chunks(cut) {
                boundaries.advance(piece).expect("only messages");
                at += piece.len();
                prop_assert_eq!(boundaries.between(), ends.contains(&at));
            }
            // Between two messages nothing else is let through.
            let refused = [flags, 0, 0, 0, 0].chunks(cut).try_for_each(|piece| boundaries.advance(piece));
            prop_assert_eq!(refused, Err(FrameError::UnknownFlags(flags)));
        }

        #[test]
        fn garbage_never_panics_and_never_grows_past_the_bound(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let decoder = Decoder::new(256);
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
            prop_assert!(buffer.capacity() <= 2 * (600 + 256 + HEADER_BYTES));
        }
    }

    #[test]
    fn a_huge_frame_is_refused_at_its_header() {
        let mut buffer = BytesMut::from(&[0u8, 0x40, 0, 0, 0][..]);
        let error = Decoder::new(1024).decode(&mut buffer).expect_err("1 GiB is over the bound");
        assert_eq!(error, FrameError::TooLong { len: 1 << 30, max: 1024 });
    }
}
