//! Packing.
//!
//! INVARIANT: every entry is opened beneath the root's descriptor and no symbolic link is followed on the way, so
//! nobody who changes the tree meanwhile can make the packer read what is outside of it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use tar::{Builder, EntryType, Header};

use super::{ArchiveError, Summary};

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
/// A pipe that took a file's place must not hold the packer up.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// Of a file that says that it is empty and is not, which is held in memory.
const UNSIZED_MAX_BYTES: u64 = 16 << 20;
/// What stands for a device, a socket or a pipe: a global header of POSIX with a comment.
const SKIPPED: &[u8] = b"22 comment=not packed\n";
const SKIPPED_NAME: &str = "skipped";
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Packs `root`, a file or a directory, with entries named from `name` on. `progress` is told after each entry.
pub fn pack(
    root: &Path,
    name: &Path,
    writer: impl Write,
    mut progress: impl FnMut(Summary),
) -> Result<Summary, ArchiveError> {
    let failed = |source| ArchiveError::Path { action: "look at", path: root.to_owned(), source };
    let is_directory = fs::symlink_metadata(root).map_err(failed)?.is_dir();
    // A file is packed from its directory.
    let (base, first) = match (is_directory, root.parent(), root.file_name()) {
        (false, Some(parent), Some(file)) => (parent, Path::new(file)),
        _ => (root, Path::new("")),
    };
    let mut packer = Packer::new(base, writer)?;
    let mut stack = vec![(first.to_owned(), name.to_owned())];
    while let Some((path, name)) = stack.pop() {
        let Some(kind) = packer.add(&path, &name)? else {
            // A file of a live tree may go while it is packed; the root may not.
            if path == first {
                return Err(failed(io::ErrorKind::NotFound.into()));
            }
            continue;
        };
        if kind == FileType::Directory {
            let mut children = packer.list(&path)?;
            // Taken from the end: in order of names, so that packing a tree twice gives the same stream.
            children.sort_unstable_by(|a, b| b.cmp(a));
            stack.extend(children.into_iter().map(|child| (path.join(&child), name.join(&child))));
        }
        progress(packer.summary);
    }
    packer.finish()
}

/// Packs entries one by one.
pub struct Packer<W: Write> {
    base: PathBuf,
    root: OwnedFd,
    builder: Builder<W>,
    links: HashMap<(u64, u64), PathBuf>,
    /// So far.
    pub summary: Summary,
}

impl<W: Write> Packer<W> {
    /// Of the directory `base`, or of the current one when that is empty.
    pub fn new(base: &Path, writer: W) -> Result<Self, ArchiveError> {
        let path = if base.as_os_str().is_empty() { Path::new(".") } else { base };
        let failed = |error: rustix::io::Errno| ArchiveError::Path {
            action: "open",
            path: path.to_owned(),
            source: error.into(),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
        Ok(Self {
            base: base.to_owned(),
            root,
            builder: Builder::new(writer),
            links: HashMap::new(),
            summary: Summary::default(),
        })
    }

    /// Packs one entry, not what is in it, under `name`; `None` when it is not there any more.
    pub fn add(&mut self, path: &Path, name: &Path) -> Result<Option<FileType>, ArchiveError> {
        let entry = match self.open(path, LOOK) {
            Ok(entry) => entry,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("look at", path, error)),
        };
        let stat = rustix::fs::fstat(&entry).map_err(|error| self.failed("look at", path, error.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&entry, "", Vec::new())
                    .map_err(|error| self.failed("read the link", path, error.into()))?;
                let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
                let mut header = header(&stat, EntryType::Symlink, 0);
                self.builder.append_link(&mut header, name, target).map_err(write)?;
                self.summary.entries += 1;
            }
            FileType::Directory => {
                let mut header = header(&stat, EntryType::Directory, 0);
                self.builder.append_data(&mut header, name, io::empty()).map_err(write)?;
                self.summary.entries += 1;
            }
            FileType::RegularFile => self.add_file(path, name)?,
            _ => {
                self.skip()?;
                return Ok(Some(kind));
            }
        }
        Ok(Some(kind))
    }

    /// Says in the archive that something was left out, so that who unpacks it counts it too: as a comment, which every tar
    /// program passes over.
    fn skip(&mut self) -> Result<(), ArchiveError> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XGlobalHeader);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(SKIPPED.len() as u64);
        self.builder.append_data(&mut header, SKIPPED_NAME, SKIPPED).map_err(write)?;
        self.summary.skipped += 1;
        Ok(())
    }

    fn add_file(&mut self, path: &Path, name: &Path) -> Result<(), ArchiveError> {
        let file = File::from(self.open(path, READ).map_err(|error| self.failed("open", path, error))?);
        // What was opened counts, not what was looked at before.
        let meta = file.metadata().map_err(|error| self.failed("look at", path, error))?;
        if !meta.is_file() {
            return Err(self.failed("read", path, io::ErrorKind::InvalidInput.into()));
        }
        let stat = rustix::fs::fstat(&file).map_err(|error| self.failed("look at", path, error.into()))?;
        if meta.nlink() > 1 {
            if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
                let mut header = header(&stat, EntryType::Link, 0);
                self.builder.append_link(&mut header, name, first).map_err(write)?;
                self.summary.entries += 1;
                return Ok(());
            }
            self.links.insert((meta.dev(), meta.ino()), name.to_owned());
        }
        if meta.len() == 0 {
            return self.add_unsized(file, &stat, path, name);
        }
        let mut header = header(&stat, EntryType::Regular, meta.len());
        let content = Exactly { inner: file, left: meta.len() };
        let appended = self.builder.append_data(&mut header, name, content);
        appended.map_err(|error| self.failed("read", path, error))?;
        self.summary.entries += 1;
        self.summary.bytes += meta.len();
        Ok(())
    }

    /// A file that says that it is empty: those of /proc are not, so it is read to know. What cannot be read to its end is
    /// no content, as a device is none.
    fn add_unsized(&mut self, file: File, stat: &Stat, path: &Path, name: &Path) -> Result<(), ArchiveError> {
        let mut content = Vec::new();
        match file.take(UNSIZED_MAX_BYTES + 1).read_to_end(&mut content) {
            Ok(count) if count as u64 <= UNSIZED_MAX_BYTES => {}
            Ok(_) | Err(_) => return self.skip(),
        }
        let mut header = header(stat, EntryType::Regular, content.len() as u64);
        let appended = self.builder.append_data(&mut header, name, &content[..]);
        appended.map_err(|error| self.failed("read", path, error))?;
        self.summary.entries += 1;
        self.summary.bytes += content.len() as u64;
        Ok(())
    }

    /// The names in a directory.
    fn list(&self, path: &Path) -> Result<Vec<PathBuf>, ArchiveError> {
        let list = || {
            let directory = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
            let mut names = Vec::new();
            for entry in Dir::read_from(&directory)? {
                let entry = entry?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name != "." && name != ".." {
                    names.push(PathBuf::from(name));
                }
            }
            Ok::<_, io::Error>(names)
        };
        match list() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            listed => listed.map_err(|error| self.failed("list", path, error)),
        }
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<Summary, ArchiveError> {
        let mut writer = self.builder.into_inner().map_err(write)?;
        writer.flush().map_err(write)?;
        Ok(self.summary)
    }

    fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(rustix::fs::openat2(self.root.as_fd(), path, flags, Mode::empty(), BENEATH)?)
    }

    fn failed(&self, action: &'static str, path: &Path, source: io::Error) -> ArchiveError {
        // The stream's own errors come through the same call as the file's.
        match source.kind() {
            io::ErrorKind::BrokenPipe => ArchiveError::Stream("write", source),
            _ => ArchiveError::Path { action, path: self.base.join(path), source },
        }
    }
}

fn write(error: io::Error) -> ArchiveError {
    ArchiveError::Stream("write", error)
}

fn header(stat: &Stat, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header
}

/// Exactly as many bytes as the header says: a file that grows meanwhile is cut, one that shrinks is filled up
/// with zeros, so that the entries behind it stay readable.
struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let max = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut count = self.inner.read(&mut buffer[..max])?;
        if count == 0 && max > 0 {
            buffer[..max].fill(0);
            count = max;
        }
        self.left -= count as u64;
        Ok(count)
    }
}
