//! What finished processes wrote, on the sandbox's disk: it is there again when the sandbox is started again, however
//! its agent ended. The machine's own crash may take the last of it.
//!
//! BOUND: two files of at most so many bytes. A full one takes the place of the one before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use dispense_api::v1::ProcessLog;
use prost::Message;

/// Where the agent of a sandbox has it: the one directory that every sandbox has in a layer of its own. To make others costs more than
/// a short command.
pub(crate) const FOLDER: &str = "/";
/// The file that is written to, and the one before it.
const CURRENT: &str = ".dispense-output";
const FORMER: &str = ".dispense-output.former";
/// Of the sandbox's administrator only: a user's processes may have been told secrets.
const FILE_MODE: u32 = 0o600;

/// A sequence of logs, each behind its length. What stands in the files is the sandbox's own and is parsed as such.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: PathBuf,
    max_bytes: usize,
    /// Open since the first log.
    current: Mutex<Option<File>>,
}

impl Spool {
    /// Touches nothing yet.
    pub(crate) fn new(folder: &Path, max_bytes: usize) -> Self {
        Self { folder: folder.to_owned(), max_bytes, current: Mutex::default() }
    }

    /// What an agent before this one has kept, oldest first.
    pub(crate) fn read(&self) -> Vec<ProcessLog> {
        let mut logs = Vec::new();
        for name in [FORMER, CURRENT] {
            let path = self.folder.join(name);
            match self.read_file(&path) {
                Ok(bytes) => self.take(&path, &bytes, &mut logs),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "kept output cannot be read"),
            }
        }
        logs
    }

    fn take(&self, path: &Path, bytes: &[u8], logs: &mut Vec<ProcessLog>) {
        let whole = parse(bytes, logs);
        if whole == bytes.len() {
            return;
        }
        tracing::warn!(path = %path.display(), from = whole, "the rest of the kept output is not what was written");
        // What is written from now on has to be found again.
        if let Err(error) = open(OpenOptions::new().write(true), path).and_then(|file| file.set_len(whole as u64)) {
            tracing::warn!(path = %path.display(), %error, "the rest of the kept output cannot be cut");
        }
    }

    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = open(OpenOptions::new().read(true), path)?;
        let mut bytes = Vec::new();
        file.take(self.max_bytes as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Keeps a log.
    pub(crate) fn append(&self, log: &ProcessLog) -> io::Result<()> {
        let bytes = log.encode_length_delimited_to_vec();
        if bytes.len() > self.max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() {
            *current = Some(self.open_current()?);
        }
        let Some(file) = current.as_mut() else { return Ok(()) };
        let mut before = file.metadata()?.len();
        if before + bytes.len() as u64 > self.max_bytes as u64 {
            fs::rename(self.folder.join(CURRENT), self.folder.join(FORMER))?;
            (*file, before) = (self.open_current()?, 0);
        }
        file.write_all(&bytes).inspect_err(|_| {
            // Half a log would hide those behind it. What cannot be cut is told by the first error.
            let _ = file.set_len(before);
        })
    }

    fn open_current(&self) -> io::Result<File> {
        open(OpenOptions::new().append(true).create(true).mode(FILE_MODE), &self.folder.join(CURRENT))
    }
}

/// A plain file, and nothing that an open would wait for or be led elsewhere by.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Up to the first that is none; tells where that is.
fn parse(bytes: &[u8], logs: &mut Vec<ProcessLog>) -> usize {
    let mut rest = bytes;
    let mut whole = 0;
    while let Ok(log) = ProcessLog::decode_length_delimited(&mut rest)
        && whole < bytes.len()
    {
        logs.push(log);
        whole = bytes.len() - rest.len();
    }
    whole
}

#[cfg(test)]
mod tests {
    use dispense_api::v1;

    use super::*;

    fn log(pid: u32, bytes: usize) -> ProcessLog {
        let process = Some(v1::Process { pid, ..v1::Process::default() });
        let tail = v1::ProcessOutput { stream: 1, offset: 7, data: vec![b'x'; bytes].into() };
        ProcessLog { process, tails: vec![tail] }
    }

    fn pids(spool: &Spool) -> Vec<u32> {
        spool.read().iter().map(|log| log.process.as_ref().unwrap().pid).collect()
    }

    #[test]
    fn what_one_agent_keeps_the_next_one_reads_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path(), 1 << 20);
        assert!(spool.read().is_empty());
        for pid in 1..=3 {
            spool.append(&log(pid, 100)).unwrap();
        }
        let next = Spool::new(folder.path(), 1 << 20);
        assert_eq!(pids(&next), [1, 2, 3]);
        next.append(&log(4, 100)).unwrap();
        assert_eq!(pids(&next), [1, 2, 3, 4]);
        assert_eq!(next.read()[0], log(1, 100));
    }

    #[test]
    fn the_oldest_go_and_the_files_stay_small() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path(), 10_000);
        for pid in 1..=100 {
            spool.append(&log(pid, 900)).unwrap();
        }
        let kept = pids(&spool);
        assert_eq!(kept.last(), Some(&100));
        assert!((10..=22).contains(&kept.len()), "{kept:?}");
        assert!(kept.is_sorted());
        for name in [CURRENT, FORMER] {
            assert!(fs::metadata(folder.path().join(name)).unwrap().len() <= 10_000);
        }
        assert!(spool.append(&log(101, 10_000)).is_err());
    }

    #[test]
    fn half_a_log_and_garbage_end_the_reading_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path(), 1 << 20);
        spool.append(&log(1, 100)).unwrap();
        let path = folder.path().join(CURRENT);
        let mut whole = fs::read(&path).unwrap();
        whole.extend_from_within(..50);
        fs::write(&path, &whole).unwrap();
        assert_eq!(pids(&spool), [1]);
        spool.append(&log(2, 100)).unwrap();
        assert_eq!(pids(&spool), [1, 2]);
        fs::write(&path, [0xff; 64]).unwrap();
        assert!(pids(&spool).is_empty());
    }

    #[test]
    fn neither_a_link_nor_a_pipe_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path(), 1 << 20);
        let path = folder.path().join(CURRENT);
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(spool.read().is_empty());
        assert!(spool.append(&log(1, 1)).is_err());
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(spool.read().is_empty());
        assert!(spool.append(&log(1, 1)).is_err());
    }
}
