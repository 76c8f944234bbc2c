//! The output of one stream of one process, kept with offsets from its start.
//!
//! BOUND: at most [`limits::JOURNAL_BYTES`] and one chunk are kept. The oldest bytes are dropped, and a reader
//! behind them is told the exact gap; but bytes that a lossless reader has not taken are never dropped:
//! then the journal is full, and whoever fills it waits.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, Bytes};
use dispense_api::limits;

/// Reads below this are gathered, so that a process that writes byte by byte costs bytes and not chunks.
const SMALL_BYTES: usize = 8 << 10;
/// A gathered chunk is closed at this size.
const GATHERED_BYTES: usize = 32 << 10;

/// What a reader gets at its offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Data(Bytes),
    /// The journal now begins at this offset.
    GapTo(u64),
    /// Nothing yet.
    Wait,
    /// Nothing any more.
    End,
}

/// A journal.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// Offset of the first kept byte.
    start: u64,
    /// Closed chunks, each with the offset of its first byte.
    chunks: VecDeque<(u64, Bytes)>,
    /// Gathered small reads behind the last closed chunk.
    tail: Vec<u8>,
    /// Offset behind the last byte.
    end: u64,
    ended: bool,
    /// Offsets of lossless readers, by reader.
    held: BTreeMap<u64, u64>,
}

impl Journal {
    /// One that holds `data`, which begins at this offset.
    pub(crate) fn holding(start: u64, data: Bytes) -> Self {
        let end = start.saturating_add(data.len() as u64);
        let start = end - data.len() as u64;
        let chunks = if data.is_empty() { VecDeque::new() } else { VecDeque::from([(start, data)]) };
        Self { start, chunks, end, ..Self::default() }
    }

    /// Appends what the process wrote and leaves `data` empty: small reads are copied, so that its room is used
    /// again, large ones are taken as they are.
    pub(crate) fn push(&mut self, data: &mut Vec<u8>) {
        let len = data.len() as u64;
        if data.len() < SMALL_BYTES {
            if self.tail.len() + data.len() > GATHERED_BYTES {
                self.close_tail();
            }
            self.tail.extend_from_slice(data);
            data.clear();
        } else {
            self.close_tail();
            self.chunks.push_back((self.end, Bytes::from(std::mem::take(data))));
        }
        self.end += len;
        self.trim();
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            let start = self.end - self.tail.len() as u64;
            self.chunks.push_back((start, Bytes::from(std::mem::take(&mut self.tail))));
        }
    }

    fn trim(&mut self) {
        let keep_from = self.end.saturating_sub(limits::JOURNAL_BYTES as u64);
        let keep_from = self.held.values().copied().fold(keep_from, u64::min);
        while let Some((start, chunk)) = self.chunks.front() {
            if start + chunk.len() as u64 > keep_from {
                break;
            }
            self.start = start + chunk.len() as u64;
            self.chunks.pop_front();
        }
    }

    /// Bytes that may be pushed before the journal is full for want of a lossless reader's taking.
    pub(crate) fn room(&self) -> usize {
        let Some(slowest) = self.held.values().min() else { return limits::JOURNAL_BYTES };
        let waiting = usize::try_from(self.end - slowest).unwrap_or(usize::MAX);
        limits::JOURNAL_BYTES.saturating_sub(waiting)
    }

    /// What is at `offset`, at most `max` bytes.
    pub(crate) fn read(&self, offset: u64, max: usize) -> Piece {
        if offset < self.start {
            return Piece::GapTo(self.start);
        }
        if offset >= self.end {
            return if self.ended { Piece::End } else { Piece::Wait };
        }
        let tail_start = self.end - self.tail.len() as u64;
        if offset >= tail_start {
            let from = (offset - tail_start) as usize;
            let to = self.tail.len().min(from + max);
            return Piece::Data(Bytes::copy_from_slice(&self.tail[from..to]));
        }
        let index = self.chunks.partition_point(|(start, _)| *start <= offset) - 1;
        let (start, chunk) = &self.chunks[index];
        let mut data = chunk.clone();
        data.advance((offset - start) as usize);
        data.truncate(max);
        Piece::Data(data)
    }

    /// The same, without more to come.
    pub(crate) fn finished(mut self) -> Self {
        self.ended = true;
        self
    }

    /// No more bytes will come.
    pub(crate) fn finish(&mut self) {
        self.ended = true;
    }

    /// Whether no more bytes will come.
    pub(crate) fn is_finished(&self) -> bool {
        self.ended
    }

    /// Bytes since the start of the process.
    pub(crate) fn len(&self) -> u64 {
        self.end
    }

    /// Bytes that are kept.
    pub(crate) fn kept_bytes(&self) -> usize {
        usize::try_from(self.end - self.start).unwrap_or(usize::MAX)
    }

    /// The last bytes, at most `max` of them, with the offset of the first.
    pub(crate) fn tail(&self, max: usize) -> (u64, Bytes) {
        let mut position = self.end.saturating_sub(max as u64).max(self.start);
        let from = position;
        let mut all = Vec::with_capacity(usize::try_from(self.end - from).unwrap_or(0));
        while let Piece::Data(data) = self.read(position, max) {
            position += data.len() as u64;
            all.extend_from_slice(&data);
        }
        (from, all.into())
    }

    /// A lossless reader stands at `offset`.
    pub(crate) fn hold(&mut self, reader: u64, offset: u64) {
        self.held.insert(reader, offset);
    }

    /// A lossless reader left.
    pub(crate) fn release(&mut self, reader: u64) {
        self.held.remove(&reader);
        self.trim();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(journal: &Journal, mut offset: u64, max: usize) -> (Vec<u8>, u64) {
        let mut all = Vec::new();
        loop {
            match journal.read(offset, max) {
                Piece::Data(data) => {
                    offset += data.len() as u64;
                    all.extend_from_slice(&data);
                }
                Piece::GapTo(start) => offset = start,
                Piece::Wait | Piece::End => return (all, offset),
            }
        }
    }

    proptest! {
        #[test]
        fn a_reader_from_any_offset_sees_exactly_the_bytes_from_there(
            writes in prop::collection::vec(0usize..40_000, 0..40), from in 0u64..200_000, max in 1usize..300_000,
        ) {
            let (mut journal, mut expected) = (Journal::default(), Vec::new());
            for (index, len) in writes.into_iter().enumerate() {
                let mut data = vec![index as u8; len];
                expected.extend_from_slice(&data);
                journal.push(&mut data);
            }
            let from = from.min(expected.len() as u64);
            let (seen, end) = read_all(&journal, from, max);
            prop_assert_eq!(&seen[..], &expected[from as usize..]);
            prop_assert_eq!(end, journal.len());
        }
    }

    #[test]
    fn the_oldest_bytes_are_dropped_and_the_gap_is_exact() {
        let mut journal = Journal::default();
        for _ in 0..40 {
            journal.push(&mut vec![1; 256 << 10]);
        }
        let Piece::GapTo(start) = journal.read(0, 10) else { panic!("a gap") };
        assert_eq!(journal.len() - start, limits::JOURNAL_BYTES as u64);
        assert_eq!(read_all(&journal, start, 1 << 20).0.len(), limits::JOURNAL_BYTES);
    }

    #[test]
    fn a_lossless_reader_makes_the_journal_full_instead_of_losing_bytes() {
        let mut journal = Journal::default();
        journal.hold(1, 0);
        while journal.room() > 0 {
            journal.push(&mut vec![1; 256 << 10]);
        }
        assert!(matches!(journal.read(0, 10), Piece::Data(_)));
        journal.hold(1, 1 << 20);
        assert_eq!(journal.room(), 1 << 20);
        journal.release(1);
        assert_eq!(journal.room(), limits::JOURNAL_BYTES);
    }

    #[test]
    fn the_tail_is_the_end_of_what_was_written() {
        let mut journal = Journal::default();
        assert_eq!(journal.tail(10), (0, Bytes::new()));
        journal.push(&mut b"hello ".to_vec());
        journal.push(&mut vec![b'x'; SMALL_BYTES]);
        journal.push(&mut b"world".to_vec());
        assert_eq!(journal.tail(7), (6 + SMALL_BYTES as u64 - 2, Bytes::from_static(b"xxworld")));
        assert_eq!(journal.tail(1 << 20).1.len(), 11 + SMALL_BYTES);
    }

    #[test]
    fn single_bytes_cost_bytes_and_not_chunks() {
        let mut journal = Journal::default();
        for _ in 0..100_000 {
            journal.push(&mut vec![b'x']);
        }
        assert!(journal.chunks.len() <= 100_000 / (GATHERED_BYTES / 2));
    }
}
