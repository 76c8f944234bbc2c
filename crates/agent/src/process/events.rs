//! One reader of a process: its events in order, from offsets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dispense_api::limits;
use dispense_api::v1::{OutputStream, ProcessExited};
use tokio::sync::watch;

use super::Process;
use super::journal::Piece;

static NEXT_READER: AtomicU64 = AtomicU64::new(1);

/// What happened next.
#[derive(Debug)]
pub(crate) enum Event {
    Output {
        stream: OutputStream,
        offset: u64,
        data: Bytes,
    },
    Gap {
        stream: OutputStream,
        from: u64,
        to: u64,
    },
    /// Last.
    Exited(ProcessExited),
    /// Last: all that is there now was told.
    End,
}

/// A reader; when it goes it holds nothing back any more.
#[derive(Debug)]
pub(crate) struct Events {
    process: Arc<Process>,
    id: u64,
    positions: Vec<u64>,
    version: watch::Receiver<u64>,
    lossless: bool,
    follow: bool,
    /// Stream to look at first, so that none starves.
    first: usize,
}

impl Events {
    /// Reads from `offset` of each stream on.
    pub(crate) fn open(
        process: Arc<Process>,
        offset: impl Fn(OutputStream) -> Option<u64>,
        lossless: bool,
        follow: bool,
    ) -> Self {
        let id = NEXT_READER.fetch_add(1, Ordering::Relaxed);
        let version = process.version.subscribe();
        let mut positions = Vec::new();
        for stream in &process.streams {
            let mut journal = stream.journal();
            let position = offset(stream.kind).unwrap_or(journal.len()).min(journal.len());
            if lossless {
                journal.hold(id, position);
            }
            positions.push(position);
        }
        Self { process, id, positions, version, lossless, follow, first: 0 }
    }

    /// The next event; nothing comes after [`Event::Exited`] or [`Event::End`].
    ///
    /// CANCEL SAFETY: an event is taken only by the poll that returns it.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            self.version.borrow_and_update();
            // Read before the journals, so that no output can come between them and the exit.
            let exit = self.process.exit();
            if let Some(event) = self.available() {
                return event;
            }
            if let Some(exited) = exit {
                return Event::Exited(exited);
            }
            if !self.follow {
                return Event::End;
            }
            // The sender lives in the process, which this reader holds.
            let _ = self.version.changed().await;
        }
    }

    fn available(&mut self) -> Option<Event> {
        let count = self.process.streams.len();
        for index in (0..count).map(|step| (self.first + step) % count) {
            let stream = &self.process.streams[index];
            let position = self.positions[index];
            let piece = stream.journal().read(position, limits::DATA_CHUNK_BYTES);
            let event = match piece {
                Piece::Wait | Piece::End => continue,
                Piece::Data(data) => {
                    self.positions[index] += data.len() as u64;
                    Event::Output { stream: stream.kind, offset: position, data }
                }
                Piece::GapTo(to) => {
                    self.positions[index] = to;
                    Event::Gap { stream: stream.kind, from: position, to }
                }
            };
            self.first = (index + 1) % count;
            return Some(event);
        }
        None
    }

    /// What was returned by [`Events::next`] has been passed on: the process may write as much again.
    pub(crate) fn passed_on(&self) {
        if !self.lossless {
            return;
        }
        for (stream, position) in self.process.streams.iter().zip(&self.positions) {
            stream.journal().hold(self.id, *position);
        }
        self.process.changed();
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if self.lossless {
            for stream in &self.process.streams {
                stream.journal().release(self.id);
            }
            self.process.changed();
        }
    }
}
