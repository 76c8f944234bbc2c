//! Pumps: from a process's pipes or terminal into its journals.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use dispense_api::limits;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Process, Stream};
use crate::sys;

/// The first read; a pipe that fills its reads gets larger ones, up to [`limits::DATA_CHUNK_BYTES`].
const READ_MIN_BYTES: usize = 8 << 10;

/// Reads `fd` into the journal of a stream until its end.
pub(super) async fn pump(process: Arc<Process>, index: usize, fd: OwnedFd) {
    let stream = &process.streams[index];
    if let Err(error) = copy(&process, stream, fd).await
        // EIO is how a terminal tells that its other side is closed.
        && error.raw_os_error() != Some(libc::EIO)
    {
        tracing::warn!(pid = process.pid, %error, "output cannot be read");
    }
    finish(&process, stream);
}

async fn copy(process: &Process, stream: &Stream, fd: OwnedFd) -> io::Result<()> {
    set_nonblocking(&fd)?;
    let fd = sys::register(fd, Interest::READABLE)?;
    let mut version = process.version.subscribe();
    let mut buffer = Vec::new();
    let mut size = READ_MIN_BYTES;
    loop {
        version.borrow_and_update();
        let room = stream.journal().room();
        if room == 0 {
            // A lossless reader is behind: the process waits, as it would on a pipe.
            let _ = version.changed().await;
            continue;
        }
        // A read that would block tells that all that was written by now has been read.
        let count = match read(&fd, &mut buffer, size.min(room)) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(process, stream, &fd).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        stream.journal().push(&mut buffer);
        process.activity.mark();
        process.changed();
        size =
            if count >= size { (size * 4).min(limits::DATA_CHUNK_BYTES) } else { size.max(count).max(READ_MIN_BYTES) };
        // The reader that sends this output runs on the same thread.
        tokio::task::yield_now().await;
    }
}

/// Waits until there is more to read. When the process is over, readers are told that this is all; what its
/// children still write goes into the journal for those who ask later.
async fn wait(process: &Process, stream: &Stream, fd: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = tokio::select! {
        ready = fd.readable() => ready?,
        () = process.over.cancelled(), if !stream.journal().is_finished() => {
            // Output may have arrived since the last read.
            if is_readable(fd) {
                return Ok(());
            }
            finish(process, stream);
            return Ok(());
        }
    };
    if !is_readable(fd) {
        ready.clear_ready();
    }
    Ok(())
}

fn is_readable(fd: &AsyncFd<OwnedFd>) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(fd.get_ref(), PollFlags::IN)];
    poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
}

fn read(fd: &AsyncFd<OwnedFd>, buffer: &mut Vec<u8>, max: usize) -> io::Result<usize> {
    buffer.clear();
    if buffer.capacity() < max || buffer.capacity() > 2 * max.max(READ_MIN_BYTES) {
        *buffer = Vec::with_capacity(max);
    }
    Ok(rustix::io::read(fd.get_ref(), rustix::buffer::spare_capacity(buffer))?)
}

fn finish(process: &Process, stream: &Stream) {
    stream.journal().finish();
    process.changed();
}

/// Makes a descriptor fit for the event loop.
pub(super) fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

/// Changes the size of a terminal; 0 keeps 80 columns and 24 rows.
pub(super) fn set_size(terminal: &impl AsFd, cols: u32, rows: u32) -> io::Result<()> {
    let fit = |value: u32, default| if value == 0 { default } else { u16::try_from(value).unwrap_or(u16::MAX) };
    let size = Winsize { ws_col: fit(cols, 80), ws_row: fit(rows, 24), ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}
