//! Our stdout and stderr, written by a thread, so that a reader who is slow holds up the process and not our
//! signals.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

/// Chunks between the stream and the thread.
const CHUNKS_IN_FLIGHT: usize = 8;

/// Where bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sink {
    Stdout,
    Stderr,
}

/// The writing thread.
pub(super) struct Output {
    chunks: mpsc::Sender<(Sink, Bytes)>,
    /// Answers whether all was written, or why not.
    done: oneshot::Receiver<Result<(), Errno>>,
}

impl Output {
    pub(super) fn start() -> Self {
        let (chunks, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let (sender, done) = oneshot::channel();
        std::thread::spawn(move || {
            let written = write(receiver);
            // The receiver may have ended with the process.
            let _ = sender.send(written);
        });
        Self { chunks, done }
    }

    /// Waits for room; `None` when nobody reads any more.
    pub(super) async fn room(&self) -> Option<mpsc::Permit<'_, (Sink, Bytes)>> {
        self.chunks.reserve().await.ok()
    }

    /// Returns when nobody reads any more.
    pub(super) async fn failed(&self) {
        self.chunks.closed().await;
    }

    /// Waits until all is written, or tells why it cannot be: `EPIPE` when somebody stopped reading.
    pub(super) async fn finish(self) -> Result<(), Errno> {
        drop(self.chunks);
        self.done.await.unwrap_or(Err(Errno::PIPE))
    }
}

fn write(mut chunks: mpsc::Receiver<(Sink, Bytes)>) -> Result<(), Errno> {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    while let Some((sink, data)) = chunks.blocking_recv() {
        let fd = match sink {
            Sink::Stdout => stdout.as_fd(),
            Sink::Stderr => stderr.as_fd(),
        };
        write_all(fd, &data)?;
    }
    Ok(())
}

fn write_all(fd: BorrowedFd<'_>, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::write(fd, data) {
            Ok(count) => data = &data[count..],
            Err(Errno::INTR) => {}
            // Somebody made our output non-blocking.
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
                let _ = poll(&mut fds, None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
