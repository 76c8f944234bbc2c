//! What a sandbox's workspace is filled with before it counts as running: a directory of this machine, or a tree that a
//! URL names, within what its operator shares. Packed here, unpacked by the agent, once in the life of a box.
//!
//! A mark in the state directory tells how far it is:
//!
//! ```text
//! (none) ──► filling ──► filled
//! ```
//!
//! A crash while it is filling leaves a box that runs with half of its files. The next start of the runner sees the
//! mark and stops the box; its order then starts it and fills it again. After `filled` nothing is filled a second
//! time, whatever the order says: the files are the user's.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dispense_api::archive::Chunks;
use dispense_api::error::reason;
use dispense_api::id::SandboxId;
use dispense_api::limits;
use dispense_api::location::{self, Location};
use dispense_api::source::{self, Source, SourceError};
use dispense_backend::{Backend, BackendError};
use dispense_content::{ContentError, Moved, Scratch};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use tokio::sync::mpsc;

use crate::agent::{self, AgentError};

/// How the names of archives end, packed with gzip or not.
const ARCHIVE_ENDS: [&str; 3] = [".tar", ".tar.gz", ".tgz"];
/// Below the state directory.
const FOLDER: &str = "content";
const SCRATCH: &str = "scratch";
/// BOUND: for somebody who renames without an end.
const OPEN_ATTEMPTS: u32 = 1000;
const OWN_DESCRIPTORS: &str = "/proc/self/fd/";
/// Between the packing thread and the agent.
const CHUNKS_IN_FLIGHT: usize = 8;
/// A create may take an hour in all.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// Between two words about a long fill.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Of a clone for a sandbox that has no limit of disk: it stands on the runner's own, with its history.
const CLONE_DEFAULT_BYTES: u64 = 16 << 30;
/// The sandbox's working directory.
const DESTINATION: &str = ".";

/// What a workspace is filled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Directory(Source),
    Elsewhere(Location),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Filling,
    Filled,
}

impl Mark {
    fn as_str(self) -> &'static str {
        match self {
            Self::Filling => "filling",
            Self::Filled => "filled",
        }
    }
}

/// What is shared, and the marks.
#[derive(Debug)]
pub(crate) struct Contents {
    folder: PathBuf,
    /// Directories, and the beginnings of URLs.
    roots: Vec<PathBuf>,
}

impl Contents {
    /// Of a state directory. What a killed runner left half cloned is removed.
    pub(crate) fn open(state_dir: &Path, roots: Vec<PathBuf>) -> io::Result<Self> {
        let folder = state_dir.join(FOLDER);
        let scratch = folder.join(SCRATCH);
        match fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&scratch)?,
        }
        Ok(Self { folder, roots })
    }

    /// Whether the runner died while it filled this box.
    pub(crate) fn is_filling(&self, sandbox: &SandboxId) -> bool {
        self.mark(sandbox) == Some(Mark::Filling)
    }

    /// Whether the box has its content.
    pub(crate) fn is_filled(&self, sandbox: &SandboxId) -> bool {
        self.mark(sandbox) == Some(Mark::Filled)
    }

    fn mark(&self, sandbox: &SandboxId) -> Option<Mark> {
        let text = fs::read_to_string(self.folder.join(sandbox.as_str())).ok()?;
        // Anything else was cut while it was written, which only `filling` can be.
        Some(if text == Mark::Filled.as_str() { Mark::Filled } else { Mark::Filling })
    }

    fn put(&self, sandbox: &SandboxId, mark: Mark) -> Result<(), BackendError> {
        let path = self.folder.join(sandbox.as_str());
        let written = || {
            let fresh = self.folder.join(format!("{sandbox}.new"));
            fs::write(&fresh, mark.as_str())?;
            fs::rename(&fresh, &path)
        };
        written().map_err(|error| BackendError::failed("note how far the content is", error))
    }

    /// Of a box that is gone.
    pub(crate) fn forget(&self, sandbox: &SandboxId) {
        match fs::remove_file(self.folder.join(sandbox.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%sandbox, %error, "the mark of a removed box's content stays");
            }
            _ => {}
        }
    }

    /// Fills the workspace of a started box, whose limit of disk is `disk_bytes` or none (0); `progress` is told how far it
    /// is, now and then.
    ///
    /// CANCEL SAFETY: dropped half-way, the mark says so.
    pub(crate) async fn fill(
        &self,
        backend: &dyn Backend,
        sandbox: &SandboxId,
        content: &Content,
        disk_bytes: u64,
        progress: impl Fn(String) + Send + Sync,
    ) -> Result<(), BackendError> {
        self.put(sandbox, Mark::Filling)?;
        let send = async {
            match content {
                Content::Directory(source) => self.send(backend, sandbox, source).await,
                Content::Elsewhere(location) => self.fetch(backend, sandbox, location, disk_bytes, progress).await,
            }
        };
        match tokio::time::timeout(TIMEOUT, send).await {
            Ok(filled) => filled?,
            Err(_) => return Err(refused(format!("it took longer than {} s", TIMEOUT.as_secs()))),
        }
        self.put(sandbox, Mark::Filled)
    }

    /// A tree that a URL names.
    async fn fetch(
        &self,
        backend: &dyn Backend,
        sandbox: &SandboxId,
        location: &Location,
        disk_bytes: u64,
        progress: impl Fn(String) + Send + Sync,
    ) -> Result<(), BackendError> {
        let text = location.to_string();
        if !self.roots.iter().any(|root| location::is_within(&text, &root.to_string_lossy())) {
            return Err(self.outside(&text));
        }
        let mut told = Instant::now();
        let tell = |moved: Moved| {
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                progress(format!("it is being filled: {} MiB so far", moved.bytes >> 20));
            }
        };
        let (sender, chunks) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
        let folder = self.folder.join(SCRATCH);
        let bytes_max = if disk_bytes == 0 { CLONE_DEFAULT_BYTES } else { disk_bytes };
        let scratch = Scratch { folder: &folder, bytes_max };
        let fetch = dispense_content::fetch(location, scratch, sender, tell);
        let (fetched, uploaded) = tokio::join!(fetch, agent::upload(backend, sandbox, DESTINATION, chunks));
        match (fetched, uploaded) {
            // The agent stopped taking it, and says why.
            (Err(ContentError::Gone), Err(why)) | (Ok(_), Err(why)) => Err(refused(sentence(&why))),
            (Err(error @ ContentError::TooLarge { .. }), _) => {
                let whose =
                    if disk_bytes == 0 { "the most where a sandbox has no limit of disk" } else { "its limit of disk" };
                Err(refused(format!("{error}, {whose}: create it with a larger `--disk`")))
            }
            (Err(error), _) => Err(refused(error.to_string())),
            (Ok(moved), Ok(())) => {
                tracing::info!(%sandbox, from = %text, bytes = moved.bytes, "filled");
                Ok(())
            }
        }
    }

    fn outside(&self, what: &str) -> BackendError {
        let roots: Vec<String> = self.roots.iter().map(|root| root.display().to_string()).collect();
        refused(format!("{what} is not within what this runner shares ({})", roots.join(", ")))
    }

    async fn send(&self, backend: &dyn Backend, sandbox: &SandboxId, content: &Source) -> Result<(), BackendError> {
        if let Some(archive) = self.open_archive(&content.directory)? {
            return self.send_archive(backend, sandbox, &content.directory, archive).await;
        }
        let directory = self.open_shared(&content.directory)?;
        let scratch = self.folder.join(SCRATCH);
        let (branch, reset) = (content.branch.clone(), content.reset);
        let (sender, chunks) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
        let pack = tokio::task::spawn_blocking(move || {
            // By the descriptor: what the path leads to may change meanwhile.
            let path = format!("{OWN_DESCRIPTORS}{}", directory.as_raw_fd());
            let source = Source { directory: path.into(), branch, reset };
            let give = |chunk| sender.blocking_send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into());
            source::pack(&source, &scratch, Chunks::new(limits::DATA_CHUNK_BYTES, give), |_| {})
        });
        let uploaded = agent::upload(backend, sandbox, DESTINATION, chunks).await;
        let packed = pack.await.map_err(|error| BackendError::failed("pack the content", error))?;
        match (packed, uploaded) {
            // The agent stopped taking it, and says why.
            (Err(error), Err(why)) if error.is_stream() => Err(refused(sentence(&why))),
            (Err(error), _) => Err(refused(told(&error, &content.directory))),
            (Ok(_), Err(why)) => Err(refused(sentence(&why))),
            (Ok(summary), Ok(())) => {
                tracing::info!(%sandbox, files = summary.entries, bytes = summary.bytes, "filled");
                Ok(())
            }
        }
    }

    /// An archive of this machine, as it would come over HTTP.
    async fn send_archive(
        &self,
        backend: &dyn Backend,
        sandbox: &SandboxId,
        path: &Path,
        archive: fs::File,
    ) -> Result<(), BackendError> {
        let (sender, chunks) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
        let read = dispense_content::read_archive(archive, sender);
        match tokio::join!(read, agent::upload(backend, sandbox, DESTINATION, chunks)) {
            // The agent stopped taking it, and says why.
            (Err(ContentError::Gone), Err(why)) | (Ok(()), Err(why)) => Err(refused(sentence(&why))),
            (Err(error), _) => Err(refused(format!("failed to read {}: {error}", path.display()))),
            (Ok(()), Ok(())) => {
                tracing::info!(%sandbox, from = %path.display(), "filled");
                Ok(())
            }
        }
    }

    /// Opens a file that is named like an archive; nothing where a directory has such a name.
    fn open_archive(&self, path: &Path) -> Result<Option<fs::File>, BackendError> {
        let name = path.as_os_str().as_encoded_bytes();
        if !ARCHIVE_ENDS.iter().any(|end| name.ends_with(end.as_bytes())) {
            return Ok(None);
        }
        // A pipe must not hold the runner up.
        let file = fs::File::from(self.open_within(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)?);
        Ok(file.metadata().is_ok_and(|meta| meta.is_file()).then_some(file))
    }

    /// Opens a directory, which must be within one of the roots, whatever links lead to.
    fn open_shared(&self, directory: &Path) -> Result<OwnedFd, BackendError> {
        self.open_within(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    fn open_within(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, BackendError> {
        let outside = || self.outside(&path.display().to_string());
        let root = self.roots.iter().find(|root| path.starts_with(root)).ok_or_else(outside)?;
        let failed = |error: rustix::io::Errno| match error {
            // A link that leads out of the root.
            rustix::io::Errno::XDEV => outside(),
            rustix::io::Errno::NOTDIR => refused(format!(
                "{} is neither a directory nor an archive, whose name ends in {}",
                path.display(),
                ARCHIVE_ENDS.join(" or ")
            )),
            error => refused(format!("failed to open {}: {}", path.display(), io::Error::from(error))),
        };
        let within = path.strip_prefix(root).unwrap_or(path);
        if within.as_os_str().is_empty() {
            return rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(failed);
        }
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root_fd = rustix::fs::openat(CWD, root, folder, Mode::empty()).map_err(failed)?;
        let open = || rustix::fs::openat2(&root_fd, within, flags, Mode::empty(), ResolveFlags::BENEATH);
        // A `..` of a link, while anything on the machine is renamed or mounted: once more.
        let again =
            |opened: &Result<OwnedFd, rustix::io::Errno>| opened.as_ref().err() == Some(&rustix::io::Errno::AGAIN);
        let opened = (1..OPEN_ATTEMPTS).map(|_| open()).find(|opened| !again(opened));
        opened.unwrap_or_else(open).map_err(failed)
    }
}

/// A sentence without the paths of this process, which say nothing to a user.
fn told(error: &SourceError, directory: &Path) -> String {
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        text = format!("{text}: {source}");
    }
    let mut words: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match word.find(OWN_DESCRIPTORS) {
            Some(at) => {
                let rest = word[at + OWN_DESCRIPTORS.len()..].trim_start_matches(|c: char| c.is_ascii_digit());
                words.push(format!("{}{}{rest}", &word[..at], directory.display()));
            }
            None => words.push(word.to_owned()),
        }
    }
    words.join(" ")
}

fn sentence(why: &AgentError) -> String {
    match std::error::Error::source(why) {
        Some(source) => format!("{why}: {source}"),
        None => why.to_string(),
    }
}

fn refused(why: String) -> BackendError {
    BackendError::Refused { reason: reason::CONTENT, message: format!("the sandbox could not be filled: {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_of_the_shared_directories_is_opened() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        fs::create_dir_all(root.join("project")).expect("fresh");
        fs::create_dir(&outside).expect("fresh");
        std::os::unix::fs::symlink(&outside, root.join("absolute")).expect("fresh");
        std::os::unix::fs::symlink("../outside", root.join("relative")).expect("fresh");
        std::os::unix::fs::symlink("project", root.join("inside")).expect("fresh");
        let contents = Contents::open(&folder.path().join("state"), vec![root.clone()]).expect("writable");
        for directory in [outside.clone(), root.join("absolute"), root.join("relative"), root.join("../outside")] {
            let error = contents.open_shared(&directory).expect_err("it is outside");
            assert!(error.to_string().contains("is not within"), "{}: {error}", directory.display());
        }
        for directory in [root.clone(), root.join("project"), root.join("inside")] {
            contents.open_shared(&directory).expect("it is within");
        }
        let error = contents.open_shared(&root.join("missing")).expect_err("it is not there");
        assert!(error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn a_mark_survives_and_is_forgotten() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let sandbox = SandboxId::random();
        let contents = Contents::open(folder.path(), vec![]).expect("writable");
        assert!(!contents.is_filling(&sandbox) && !contents.is_filled(&sandbox));
        contents.put(&sandbox, Mark::Filling).expect("writable");
        let contents = Contents::open(folder.path(), vec![]).expect("writable");
        assert!(contents.is_filling(&sandbox) && !contents.is_filled(&sandbox));
        contents.put(&sandbox, Mark::Filled).expect("writable");
        assert!(!contents.is_filling(&sandbox) && contents.is_filled(&sandbox));
        contents.forget(&sandbox);
        contents.forget(&sandbox);
        assert!(!contents.is_filled(&sandbox));
    }
}
