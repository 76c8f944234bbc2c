//! Input of a process: a pipe, or its terminal. Whoever writes waits while the process does not read.
//!
//! A writer that gives its bytes offsets can come back after its connection was cut: what was taken before is
//! not written again.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

/// Where input goes.
#[derive(Debug)]
pub(crate) enum Target {
    /// It was started without stdin, or stdin was closed.
    Closed,
    Pipe(AsyncFd<OwnedFd>),
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

/// Shared by all that are attached; one writes at a time.
#[derive(Debug)]
pub(crate) struct Input {
    target: Target,
    /// What each writer's connections have brought so far, the one that came last at the end.
    writers: VecDeque<(String, u64)>,
}

/// Writers of one process that are remembered.
const WRITERS_MAX: usize = 16;
/// What ends a line of a terminal's input as a whole: end-of-file when the line is empty.
const TERMINAL_EOF: &[u8] = &[4];

/// Why input was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// Bytes in between never came.
    #[error("the input jumps to offset {found}, while {expected} bytes have come: send it from there")]
    Jump {
        /// Where the writer is.
        expected: u64,
        /// Where its data says it is.
        found: u64,
    },
    #[error("failed to write input: {0}")]
    Write(#[from] io::Error),
}

impl Input {
    pub(super) fn new(target: Target) -> Self {
        Self { target, writers: VecDeque::new() }
    }

    /// How many bytes of a writer were taken.
    pub(crate) async fn taken(this: &Mutex<Self>, writer: &str) -> u64 {
        this.lock().await.writers.iter().find(|(name, _)| name == writer).map_or(0, |(_, taken)| *taken)
    }

    /// Writes all of `data`. A process that closed its stdin loses it, as behind any pipe.
    ///
    /// CANCEL SAFETY: none, the rest of `data` is not written; [`Input::resume`] can be repeated.
    pub(crate) async fn write(this: &Mutex<Self>, data: &[u8]) -> Result<(), InputError> {
        this.lock().await.pass(data, |_| ()).await
    }

    /// Writes what of `data`, whose first byte is at `offset`, was not taken from this writer before, and tells
    /// the offset that it has reached.
    ///
    /// CANCEL SAFETY: what was written is counted, so the same call may be repeated.
    pub(crate) async fn resume(
        this: &Mutex<Self>,
        writer: &str,
        offset: u64,
        mut data: &[u8],
    ) -> Result<u64, InputError> {
        let mut input = this.lock().await;
        let before = input.writers.iter().position(|(name, _)| name == writer);
        let before = before.and_then(|index| input.writers.remove(index)).map_or(0, |(_, taken)| taken);
        input.writers.push_back((writer.to_owned(), before));
        if input.writers.len() > WRITERS_MAX {
            input.writers.pop_front();
        }
        if offset > before {
            return Err(InputError::Jump { expected: before, found: offset });
        }
        let known = usize::try_from(before - offset).unwrap_or(usize::MAX).min(data.len());
        data = &data[known..];
        let own = input.writers.len() - 1;
        let Self { target, writers } = &mut *input;
        target.pass(data, |count| writers[own].1 += count as u64).await?;
        Ok(input.writers[own].1)
    }

    async fn pass(&mut self, data: &[u8], written: impl FnMut(usize)) -> Result<(), InputError> {
        self.target.pass(data, written).await
    }

    /// No more input.
    pub(crate) async fn close(this: &Mutex<Self>) -> Result<(), InputError> {
        let mut input = this.lock().await;
        if let Target::Terminal(fd) = &input.target {
            return Ok(write_all(fd, TERMINAL_EOF, |_| ()).await?);
        }
        input.target = Target::Closed;
        Ok(())
    }
}

impl Target {
    async fn pass(&mut self, data: &[u8], mut written: impl FnMut(usize)) -> Result<(), InputError> {
        let fd = match self {
            Self::Closed => {
                written(data.len());
                return Ok(());
            }
            Self::Pipe(fd) => &*fd,
            Self::Terminal(fd) => &**fd,
        };
        let mut count = 0;
        let result = write_all(fd, data, |more| {
            count += more;
            written(more);
        });
        match result.await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(libc::EIO) => {
                *self = Self::Closed;
                written(data.len() - count);
                Ok(())
            }
            result => Ok(result?),
        }
    }
}

async fn write_all(fd: &AsyncFd<OwnedFd>, mut data: &[u8], mut written: impl FnMut(usize)) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = fd.writable().await?;
        match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
            Ok(Ok(count)) => {
                written(count);
                data = &data[count..];
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}
