//! Unpacking.
//!
//! INVARIANT: every path is walked from the destination's descriptor, one component at a time, following no
//! symbolic link; `..` and absolute paths are refused. So no entry, alone or after others, leads outside.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::{ArchiveError, Summary};
use crate::limits;

/// Components of one path at most.
const DEPTH_MAX: usize = 1024;
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// Who gets what is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Unpacks a tar stream into the directory `destination`. Set-user-id, set-group-id and sticky bits are dropped.
/// `progress` is told after each entry.
pub fn unpack(
    reader: impl Read,
    destination: impl AsFd,
    owner: Option<Owner>,
    mut progress: impl FnMut(Summary),
) -> Result<Summary, ArchiveError> {
    let mut target = Target { root: destination.as_fd(), owner, near: None, directories: Vec::new() };
    let mut archive = Archive::new(reader);
    let mut summary = Summary::default();
    let read = |error| ArchiveError::Stream("read", error);
    for entry in archive.entries().map_err(read)? {
        let mut entry = entry.map_err(read)?;
        let path = entry.path().map_err(read)?.into_owned();
        let (parents, name) = components(&path)?;
        match target.unpack_one(&mut entry, &path, &parents, name.as_deref())? {
            Some(bytes) => {
                summary.entries += 1;
                summary.bytes += bytes;
            }
            None => summary.skipped += 1,
        }
        progress(summary);
    }
    target.finish_directories()?;
    // What stands behind the end mark is read too, so that the sender does not see a broken pipe.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(read)?;
    Ok(summary)
}

/// The directories of an entry's path, and its own name (absent for the destination itself).
fn components(path: &Path) -> Result<(Vec<OsString>, Option<OsString>), ArchiveError> {
    let hostile = |why| ArchiveError::Hostile { path: path.to_owned(), why };
    if path.as_os_str().len() > limits::PATH_MAX_BYTES {
        return Err(hostile("is too long"));
    }
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::CurDir => {}
            Component::ParentDir => return Err(hostile("leads upwards")),
            Component::RootDir | Component::Prefix(_) => return Err(hostile("is absolute")),
        }
    }
    if names.len() > DEPTH_MAX {
        return Err(hostile("is too deep"));
    }
    let name = names.pop();
    Ok((names, name))
}

struct Target<'a> {
    root: BorrowedFd<'a>,
    owner: Option<Owner>,
    /// The directory of the last entry: the next one is mostly in the same.
    near: Option<(Vec<OsString>, OwnedFd)>,
    /// Mode and time of directories are set last, since what is put into them changes both.
    directories: Vec<(OwnedFd, PathBuf, u32, i64)>,
}

/// Directories whose mode and time wait; more are set at once, deepest first, which only their later
/// children's times can tell.
const DIRECTORIES_WAITING_MAX: usize = 512;

impl Target<'_> {
    /// Unpacks one entry; the bytes of its content, or `None` when its kind does not travel.
    fn unpack_one(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        path: &Path,
        parents: &[OsString],
        name: Option<&OsStr>,
    ) -> Result<Option<u64>, ArchiveError> {
        let failed = |action: &'static str| {
            move |error: Errno| ArchiveError::Path { action, path: path.to_owned(), source: error.into() }
        };
        let header = entry.header();
        let mode = header.mode().unwrap_or(0o644) & 0o777;
        let mtime = header.mtime().map_or(0, |time| i64::try_from(time).unwrap_or(0));
        let kind = header.entry_type();
        let Some(name) = name else {
            // The destination itself is there already.
            return Ok(Some(0));
        };
        let parent = self.parent(parents, path)?;
        match kind {
            EntryType::Directory => {
                make_directory(&parent, name).map_err(failed("make"))?;
                let fd = rustix::fs::openat(&parent, name, DIRECTORY, Mode::empty()).map_err(failed("open"))?;
                self.give(fd.as_fd(), path)?;
                self.directories.push((fd, path.to_owned(), mode, mtime));
                if self.directories.len() > DIRECTORIES_WAITING_MAX {
                    self.finish_directories()?;
                }
                Ok(Some(0))
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut fresh = Fresh::make(&parent).map_err(failed("make"))?;
                let written = copy(entry, &mut fresh.file, path)?;
                self.give(fresh.file.as_fd(), path)?;
                rustix::fs::fchmod(&fresh.file, Mode::from_raw_mode(mode)).map_err(failed("set the mode of"))?;
                rustix::fs::futimens(&fresh.file, &times(mtime)).map_err(failed("set the time of"))?;
                fresh.take_place(name).map_err(failed("replace"))?;
                Ok(Some(written))
            }
            EntryType::Symlink => {
                let target = link_name(entry, path)?;
                clear(&parent, name).map_err(failed("replace"))?;
                rustix::fs::symlinkat(target.as_os_str(), &parent, name).map_err(failed("link"))?;
                if let Some(owner) = self.owner {
                    chown_at(&parent, name, owner).map_err(failed("change the owner of"))?;
                }
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(&parent, name, &times(mtime), flags).map_err(failed("set the time of"))?;
                Ok(Some(0))
            }
            EntryType::Link => {
                let target = link_name(entry, path)?;
                let (folders, target_name) = components(&target)?;
                let target_name = target_name
                    .ok_or_else(|| ArchiveError::Hostile { path: path.to_owned(), why: "links to a directory" })?;
                let folder = self.walk(&folders, &target)?;
                clear(&parent, name).map_err(failed("replace"))?;
                rustix::fs::linkat(&folder, &target_name, &parent, name, AtFlags::empty()).map_err(failed("link"))?;
                Ok(Some(0))
            }
            _ => Ok(None),
        }
    }

    /// Opens the directory of an entry, making what is missing.
    fn parent(&mut self, names: &[OsString], path: &Path) -> Result<OwnedFd, ArchiveError> {
        let failed = |error: io::Error| ArchiveError::Path {
            action: "open the directory of",
            path: path.to_owned(),
            source: error,
        };
        if let Some((near, fd)) = &self.near
            && near == names
        {
            return fd.try_clone().map_err(failed);
        }
        let fd = self.walk(names, path)?;
        self.near = Some((names.to_vec(), fd.try_clone().map_err(failed)?));
        Ok(fd)
    }

    fn walk(&self, names: &[OsString], path: &Path) -> Result<OwnedFd, ArchiveError> {
        let failed = |error: Errno| match error {
            // O_NOFOLLOW of a link tells ELOOP, or ENOTDIR together with O_DIRECTORY.
            Errno::LOOP | Errno::NOTDIR => {
                ArchiveError::Hostile { path: path.to_owned(), why: "leads through a link or a file" }
            }
            error => {
                ArchiveError::Path { action: "open the directory of", path: path.to_owned(), source: error.into() }
            }
        };
        let mut fd = rustix::fs::openat(self.root, ".", DIRECTORY, Mode::empty()).map_err(failed)?;
        for name in names {
            fd = match rustix::fs::openat(&fd, name, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => {
                    make_directory(&fd, name).map_err(failed)?;
                    let made = rustix::fs::openat(&fd, name, DIRECTORY, Mode::empty()).map_err(failed)?;
                    self.give(made.as_fd(), path)?;
                    made
                }
                other => other.map_err(failed)?,
            };
        }
        Ok(fd)
    }

    fn give(&self, fd: BorrowedFd<'_>, path: &Path) -> Result<(), ArchiveError> {
        let Some(owner) = self.owner else { return Ok(()) };
        let result = rustix::fs::fchown(fd, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
        result.map_err(|error| ArchiveError::Path {
            action: "change the owner of",
            path: path.to_owned(),
            source: error.into(),
        })
    }

    fn finish_directories(&mut self) -> Result<(), ArchiveError> {
        while let Some((fd, path, mode, mtime)) = self.directories.pop() {
            let failed = |action: &'static str| {
                let path = path.clone();
                move |error: Errno| ArchiveError::Path { action, path, source: error.into() }
            };
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).map_err(failed("set the mode of"))?;
            rustix::fs::futimens(&fd, &times(mtime)).map_err(failed("set the time of"))?;
        }
        Ok(())
    }
}

/// A file that gets its name when it is whole; removed when it is not. What was there until then stays.
struct Fresh<'a> {
    parent: &'a OwnedFd,
    name: Option<String>,
    file: std::fs::File,
}

impl<'a> Fresh<'a> {
    fn make(parent: &'a OwnedFd) -> Result<Self, Errno> {
        let mut random = [0; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        // Of its own length, since a long name has no room for more.
        let name = format!(".dispense.{:032x}", u128::from_ne_bytes(random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, &name, flags, Mode::from_raw_mode(0o600))?;
        Ok(Self { parent, name: Some(name), file: fd.into() })
    }

    /// Replaces a file or link of that name; a directory stays, and this fails.
    fn take_place(mut self, name: &OsStr) -> Result<(), Errno> {
        if let Some(fresh) = &self.name {
            rustix::fs::renameat(self.parent, fresh, self.parent, name)?;
            self.name = None;
        }
        Ok(())
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = rustix::fs::unlinkat(self.parent, name, AtFlags::empty());
        }
    }
}

fn link_name(entry: &Entry<'_, impl Read>, path: &Path) -> Result<PathBuf, ArchiveError> {
    let name = entry.link_name().map_err(|error| ArchiveError::Stream("read", error))?;
    let name =
        name.ok_or_else(|| ArchiveError::Hostile { path: path.to_owned(), why: "links to nothing" })?.into_owned();
    if name.as_os_str().as_bytes().contains(&0) || name.as_os_str().len() > limits::PATH_MAX_BYTES {
        return Err(ArchiveError::Hostile { path: path.to_owned(), why: "links to what no path can be" });
    }
    Ok(name)
}

fn make_directory(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        // What is there is opened next, which refuses anything but a directory.
        Err(Errno::EXIST) | Ok(()) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a file or link of that name; a directory stays, and what would replace it fails.
fn clear(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn chown_at(parent: &OwnedFd, name: &OsStr, owner: Owner) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn copy(entry: &mut Entry<'_, impl Read>, file: &mut std::fs::File, path: &Path) -> Result<u64, ArchiveError> {
    let mut buffer = vec![0; 128 << 10];
    let mut written = 0;
    loop {
        let count = entry.read(&mut buffer).map_err(|error| ArchiveError::Stream("read", error))?;
        if count == 0 {
            // The library takes the end of the stream for the end of the file.
            let is_cut = written < entry.size();
            let cut = || ArchiveError::Stream("read", io::ErrorKind::UnexpectedEof.into());
            return if is_cut { Err(cut()) } else { Ok(written) };
        }
        let failed = |source| ArchiveError::Path { action: "write", path: path.to_owned(), source };
        file.write_all(&buffer[..count]).map_err(failed)?;
        written += count as u64;
    }
}
