//! What is written, cut into chunks for a channel or a stream.

use std::io::{self, Write};

use bytes::Bytes;

/// A writer that gives chunks of at most `max` bytes away.
pub struct Chunks<F> {
    max: usize,
    give: F,
    current: Vec<u8>,
}

impl<F: FnMut(Bytes) -> io::Result<()>> Chunks<F> {
    /// `give` says that its receiver is gone by [`io::ErrorKind::BrokenPipe`].
    pub fn new(max: usize, give: F) -> Self {
        Self { max, give, current: Vec::new() }
    }
}

impl<F: FnMut(Bytes) -> io::Result<()>> Write for Chunks<F> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.current.len() + data.len() > self.max {
            self.flush()?;
        }
        if self.current.capacity() == 0 {
            self.current.reserve(self.max);
        }
        let count = data.len().min(self.max);
        self.current.extend_from_slice(&data[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        (self.give)(std::mem::take(&mut self.current).into())
    }
}
