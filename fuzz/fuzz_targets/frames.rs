//! The byte stream between server and agent: however it is cut, the same frames come out, within the bound.

#![no_main]

use bytes::BytesMut;
use dispense_api::frame::{Decoder, Frame, FrameError};
use libfuzzer_sys::fuzz_target;

const MAX_BYTES: usize = 4096;

fuzz_target!(|input: (Vec<u8>, u8)| {
    let (stream, cut) = input;
    let at_once = decode(&stream, stream.len().max(1));
    let in_pieces = decode(&stream, usize::from(cut) + 1);
    assert_eq!(at_once, in_pieces);
});

/// What comes out when the stream comes in pieces of a size.
fn decode(stream: &[u8], piece: usize) -> (Vec<Frame>, Option<FrameError>) {
    let decoder = Decoder::new(MAX_BYTES);
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for piece in stream.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => {
                    if let Frame::Message(message) = &frame {
                        assert!(message.len() <= MAX_BYTES);
                    }
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}
