//! Framing of the byte stream to an agent, which is that of gRPC: one byte of flags, four bytes of length
//! (big-endian), the message. A server passes message frames between a gRPC body and an agent unopened.
//!
//! ```text
//! caller → agent:  Call, request message…, end-of-file
//! agent → caller:  response message…, Status (flags 0x80)
//! ```
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
    /// Neither a message nor a status.
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
        if !header.is_status {
            return Ok(Some(Frame::Message(payload)));
        }
        Status::decode(payload).map(|status| Some(Frame::Status(status))).map_err(|_| FrameError::Malformed("Status"))
    }
}

/// The first bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes after the header.
    pub len: usize,
    /// A `Status`, not a message.
    pub is_status: bool,
}

impl Header {
    /// Reads the header at the front of `bytes` without taking it; `None` when it is not whole yet.
    pub fn peek(bytes: &[u8], max_bytes: usize) -> Result<Option<Self>, FrameError> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [flags, a, b, c, d] = *header;
        let len = u32::from_be_bytes([a, b, c, d]);
        let is_status = match flags {
            FLAG_MESSAGE => false,
            FLAG_STATUS => true,
            other => return Err(FrameError::UnknownFlags(other)),
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > max_bytes {
            return Err(FrameError::TooLong { len: len as u64, max: max_bytes });
        }
        Ok(Some(Self { len, is_status }))
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

/// The first frame of a call.
pub fn encode_call(method: &str, request_id: &str, traceparent: &str, buffer: &mut BytesMut) {
    let [method, request_id, traceparent] = [method, request_id, traceparent].map(str::to_owned);
    encode(&Call { method, request_id, traceparent }, buffer);
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
