//! What is written to a process, kept until the process has been given it, so that a new connection can send
//! again what the old one lost.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::error::{Code, Error};
use crate::v1;
use crate::v1::process_input::Kind;

/// Bytes that wait for the process: enough for 100 MB/s over 40 ms of round trip.
const WINDOW_BYTES: u64 = 4 << 20;

#[derive(Default)]
struct State {
    /// Not yet known to be taken, oldest first.
    items: VecDeque<v1::ProcessInput>,
    /// How many of them the present connection has sent.
    sent: usize,
    /// Offset behind the last byte written.
    end: u64,
    /// Offset of the first byte that is not known to be taken.
    taken: u64,
    /// Number of the present connection; older ones send nothing.
    connection: u64,
    /// The process takes no more.
    closed: bool,
    size: Option<v1::PtySize>,
}

/// Input of one process, over as many connections as it takes.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
    /// Something is to be sent, or nothing will be any more.
    more: Notify,
    /// There is room.
    room: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes bytes; waits while the window is full.
    pub async fn write(&self, data: Bytes) -> Result<(), Error> {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // From here on a notice counts.
            room.as_mut().enable();
            {
                let state = self.lock();
                if state.closed || state.end - state.taken < WINDOW_BYTES {
                    break;
                }
            }
            room.await;
        }
        self.push(Kind::Data(data))
    }

    /// Queues something.
    pub fn push(&self, kind: Kind) -> Result<(), Error> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::new(Code::Cancelled, "process_ended", "the process takes no more input"));
        }
        let offset = state.end;
        match &kind {
            Kind::Data(data) => state.end += data.len() as u64,
            Kind::Resize(size) => state.size = Some(*size),
            Kind::Eof(_) => {}
        }
        state.items.push_back(v1::ProcessInput { kind: Some(kind), offset });
        state.drop_done();
        drop(state);
        self.more.notify_one();
        Ok(())
    }

    /// The process was given all bytes before `offset`.
    pub fn taken(&self, offset: u64) {
        let mut state = self.lock();
        state.taken = offset.clamp(state.taken, state.end);
        state.drop_done();
        drop(state);
        self.room.notify_waiters();
    }

    /// The process takes no more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.more.notify_one();
        self.room.notify_waiters();
    }

    /// A new connection begins: what is not known to be taken is sent again, after the terminal's size.
    pub fn begin(&self) -> u64 {
        let mut state = self.lock();
        state.connection += 1;
        state.sent = 0;
        if state.connection > 1
            && let Some(size) = state.size
        {
            let offset = state.taken;
            state.items.push_front(v1::ProcessInput { kind: Some(Kind::Resize(size)), offset });
        }
        let connection = state.connection;
        drop(state);
        // Whoever waits for the old connection looks again.
        self.more.notify_one();
        connection
    }

    /// What a connection sends next; `None` when it is not the present one any more.
    ///
    /// CANCEL SAFETY: an item is taken only when it is returned.
    pub async fn next(&self, connection: u64) -> Option<v1::ProcessInput> {
        loop {
            {
                let mut state = self.lock();
                if state.connection != connection {
                    // The notice may have been meant for the present one.
                    self.more.notify_one();
                    return None;
                }
                if let Some(item) = state.items.get(state.sent).cloned() {
                    state.sent += 1;
                    return Some(item);
                }
            }
            self.more.notified().await;
        }
    }
}

impl State {
    /// Forgets what need not be sent again.
    fn drop_done(&mut self) {
        while self.sent > 0
            && let Some(item) = self.items.front()
        {
            let done = match &item.kind {
                Some(Kind::Data(data)) => item.offset + data.len() as u64 <= self.taken,
                // A new connection sends the size anew.
                Some(Kind::Resize(_)) | None => true,
                Some(Kind::Eof(_)) => false,
            };
            if !done {
                return;
            }
            self.items.pop_front();
            self.sent -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn data(outbox: &Outbox, connection: u64) -> (u64, Bytes) {
        match outbox.next(connection).await {
            Some(v1::ProcessInput { kind: Some(Kind::Data(data)), offset }) => (offset, data),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_new_connection_sends_what_is_not_known_to_be_taken() {
        let outbox = Outbox::default();
        let first = outbox.begin();
        for text in ["one", "two", "three"] {
            outbox.write(Bytes::from(text)).await.expect("open");
        }
        for _ in 0..3 {
            data(&outbox, first).await;
        }
        // In the middle of the second.
        outbox.taken(4);
        let second = outbox.begin();
        assert!(outbox.next(first).await.is_none());
        assert_eq!(data(&outbox, second).await, (3, Bytes::from("two")));
        assert_eq!(data(&outbox, second).await, (6, Bytes::from("three")));
        outbox.taken(11);
        let third = outbox.begin();
        outbox.push(Kind::Eof(true)).expect("open");
        assert!(matches!(outbox.next(third).await, Some(v1::ProcessInput { kind: Some(Kind::Eof(_)), .. })));
    }

    #[tokio::test]
    async fn a_full_window_waits_until_the_process_has_taken_something() {
        let outbox = Outbox::default();
        outbox.write(Bytes::from(vec![0; WINDOW_BYTES as usize])).await.expect("open");
        let mut second = std::pin::pin!(outbox.write(Bytes::from_static(b"x")));
        tokio::select! {
            biased;
            _ = &mut second => panic!("it must wait"),
            () = std::future::ready(()) => {}
        }
        outbox.taken(1);
        second.await.expect("room");
    }

    #[tokio::test]
    async fn the_size_of_the_terminal_comes_first_on_a_new_connection() {
        let outbox = Outbox::default();
        let first = outbox.begin();
        outbox.push(Kind::Resize(v1::PtySize { cols: 100, rows: 30 })).expect("open");
        outbox.write(Bytes::from_static(b"x")).await.expect("open");
        outbox.next(first).await;
        outbox.next(first).await;
        let second = outbox.begin();
        let item = outbox.next(second).await.expect("an item");
        assert_eq!(item.kind, Some(Kind::Resize(v1::PtySize { cols: 100, rows: 30 })));
    }
}
