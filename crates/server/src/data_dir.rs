//! The data directory: who uses it, of which version it is, and the files in it that hold secrets.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

/// Of the layout of this directory. A server opens this and any smaller one.
const LAYOUT_VERSION: u32 = 1;
/// The owner's alone: it holds keys.
const DIRECTORY_MODE: u32 = 0o700;
const SECRET_MODE: u32 = 0o600;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another server has it.
    #[error(
        "the data directory {path} is in use by a server with process id {pid}: use that one, stop it, or choose another directory with --data-dir"
    )]
    InUse {
        /// Which directory.
        path: PathBuf,
        /// Of the other server.
        pid: String,
    },
    /// A newer program made it.
    #[error(
        "the data directory {path} is of layout version {found}, this program knows up to {LAYOUT_VERSION}: use the newer program, or choose another directory with --data-dir"
    )]
    Newer {
        /// Which directory.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The system refused.
    #[error("failed to {action} {path}: {source}: {}", remedy(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What helps who cannot use it.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space there, or choose another directory with --data-dir"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "make it writable for this user, or choose another directory with --data-dir"
        }
        _ => "choose another directory with --data-dir",
    }
}

/// A data directory that is ours until it is dropped.
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// A server keeps its directory until it has ended: that of a command ends just behind the command.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(3);
const HANDOVER_POLL: Duration = Duration::from_millis(50);

impl DataDir {
    /// Makes it when missing, and takes it.
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| DataDirError::Io { action, path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path).map_err(failed("make", path))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(SECRET_MODE)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        if let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(failed("lock", &lock_path)(error.into()));
            }
            let mut pid = String::new();
            // The number is for people; without it the sentence still holds.
            let _ = lock.read_to_string(&mut pid);
            return Err(DataDirError::InUse { path: path.to_owned(), pid: pid.trim().to_owned() });
        }
        let mut write_pid = || {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write_pid().map_err(failed("write", &lock_path))?;
        let directory = Self { path: path.to_owned(), _lock: lock };
        directory.check_version()?;
        Ok(directory)
    }

    /// The same, and waits a little for a server that is just ending.
    pub(crate) async fn take_over(path: &Path) -> Result<Self, DataDirError> {
        let deadline = tokio::time::Instant::now() + HANDOVER_TIMEOUT;
        loop {
            match Self::open(path) {
                Err(DataDirError::InUse { .. }) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(HANDOVER_POLL).await;
                }
                opened => return opened,
            }
        }
    }

    fn check_version(&self) -> Result<(), DataDirError> {
        let path = self.path.join("version");
        match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse::<u32>() {
                Ok(version) if version <= LAYOUT_VERSION => Ok(()),
                _ => Err(DataDirError::Newer { path: self.path.clone(), found: text.trim().to_owned() }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.write("version", &format!("{LAYOUT_VERSION}\n")).map(drop)
            }
            Err(source) => Err(DataDirError::Io { action: "read", path, source }),
        }
    }

    /// A path inside.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The first line of a file, if it is there.
    pub(crate) fn read(&self, name: &str) -> Result<Option<String>, DataDirError> {
        Ok(self.read_lines(name)?.into_iter().next())
    }

    /// The lines of a file that have something; none when it is not there.
    pub(crate) fn read_lines(&self, name: &str) -> Result<Vec<String>, DataDirError> {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            Err(source) => Err(DataDirError::Io { action: "read", path, source }),
        }
    }

    /// Writes a file whole or not at all, for the owner's eyes.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf, DataDirError> {
        let path = self.path.join(name);
        let part = self.path.join(format!("{name}.part"));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(SECRET_MODE).open(&part)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, &path)
        };
        match write() {
            Ok(()) => Ok(path),
            Err(source) => Err(DataDirError::Io { action: "write", path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("data");
        let first = DataDir::open(&path).expect("free");
        let Err(DataDirError::InUse { pid, .. }) = DataDir::open(&path) else { panic!("taken") };
        assert_eq!(pid, std::process::id().to_string());
        drop(first);
        DataDir::open(&path).expect("free again");
    }

    #[test]
    fn a_newer_layout_is_refused_untouched() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        fs::write(folder.path().join("version"), "999\n").expect("ours");
        assert!(matches!(DataDir::open(folder.path()), Err(DataDirError::Newer { .. })));
        assert_eq!(fs::read_to_string(folder.path().join("version")).expect("there"), "999\n");
    }
}
