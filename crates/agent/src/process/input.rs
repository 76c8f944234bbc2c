//! Input of a process: a pipe, or its terminal. Whoever writes waits while the process does not read.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

/// Where input goes. Shared by all that are attached; one writes at a time.
#[derive(Debug)]
pub(crate) enum Input {
    /// It was started without stdin, or stdin was closed.
    Closed,
    Pipe(AsyncFd<OwnedFd>),
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

/// What ends a line of a terminal's input as a whole: end-of-file when the line is empty.
const TERMINAL_EOF: &[u8] = &[4];

impl Input {
    /// Writes all of `data`. A process that closed its stdin loses it, as behind any pipe.
    pub(crate) async fn write(this: &Mutex<Self>, data: &[u8]) -> io::Result<()> {
        let mut input = this.lock().await;
        let fd = match &*input {
            Self::Closed => return Ok(()),
            Self::Pipe(fd) => fd,
            Self::Terminal(fd) => fd,
        };
        match write_all(fd, data).await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(libc::EIO) => {
                *input = Self::Closed;
                Ok(())
            }
            result => result,
        }
    }

    /// No more input.
    pub(crate) async fn close(this: &Mutex<Self>) -> io::Result<()> {
        let mut input = this.lock().await;
        if let Self::Terminal(fd) = &*input {
            return write_all(fd, TERMINAL_EOF).await;
        }
        *input = Self::Closed;
        Ok(())
    }
}

async fn write_all(fd: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = fd.writable().await?;
        match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
            Ok(Ok(count)) => data = &data[count..],
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}
