//! Our stdin, read by a thread, since a terminal or a pipe cannot be read without blocking everywhere.

use std::io;
use std::os::fd::AsFd;

use bytes::{Bytes, BytesMut};
use dispense_client::Input;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;

/// As much as a pipe of the kernel holds.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks between the thread and the stream.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Passes stdin on until its end or that of the process.
pub(super) fn forward(input: Input) {
    let (sender, mut chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
    // Not joined: it may sit in a read for ever, and the process ends without it.
    std::thread::spawn(move || read(&sender));
    tokio::spawn(async move {
        while let Some(chunk) = chunks.recv().await {
            if input.write(chunk).await.is_err() {
                return;
            }
        }
        // A process that has ended needs no end of its input.
        let _ = input.close().await;
    });
}

fn read(sender: &mpsc::Sender<Bytes>) {
    let stdin = io::stdin();
    let mut buffer = BytesMut::new();
    loop {
        buffer.resize(CHUNK_BYTES, 0);
        match rustix::io::read(stdin.as_fd(), &mut buffer[..]) {
            Ok(0) => return,
            Ok(count) => {
                let chunk = buffer.split_to(count).freeze();
                if sender.blocking_send(chunk).is_err() {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(stdin.as_fd()),
            // E.g. a terminal that was closed.
            Err(_) => return,
        }
    }
}

fn wait(fd: std::os::fd::BorrowedFd<'_>) {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    // Interrupted or not, the next read tells.
    let _ = poll(&mut fds, None);
}
