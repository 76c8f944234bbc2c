//! Archives as chunks of a channel or a stream: what is written is cut, what is read is put together.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};

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

/// A reader of the chunks that `take` gives, until it gives none.
pub struct ChunkReader<F> {
    take: F,
    rest: Bytes,
}

impl<F: FnMut() -> io::Result<Option<Bytes>>> ChunkReader<F> {
    /// `take` waits for the next chunk. What is cut has to be an error of it: the end is the end of the archive.
    pub fn new(take: F) -> Self {
        Self { take, rest: Bytes::new() }
    }
}

impl<F: FnMut() -> io::Result<Option<Bytes>>> Read for ChunkReader<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match (self.take)()? {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
