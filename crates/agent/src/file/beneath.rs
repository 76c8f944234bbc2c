//! Paths that may not leave a directory, whatever links and `..` lead to: for callers that show one tree, such as a
//! workspace in a browser.
//!
//! INVARIANT: a path is resolved by the kernel, beneath the directory's descriptor, and used through the descriptor that
//! came of it. A link that is swapped meanwhile changes nothing.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use dispense_api::error::{Code, Error};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{refusal, resolve};
use crate::serve::Agent;

const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
const WITHIN: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// A resolved path; good as long as this lives.
#[derive(Debug)]
pub(crate) struct Place {
    /// For this process.
    pub(crate) path: PathBuf,
    /// For the caller.
    pub(crate) shown: PathBuf,
    _held: Option<OwnedFd>,
}

/// A path of something that is there. An empty `beneath` does not confine it.
pub(crate) fn existing(agent: &Agent, path: &str, beneath: &str) -> Result<Place, Error> {
    let plain = resolve(agent, path)?;
    if beneath.is_empty() {
        return Ok(Place { path: plain.clone(), shown: plain, _held: None });
    }
    let root = open_root(beneath)?;
    let found = open(&root, relative(path)?, LOOK).map_err(|error| denied(path, error))?;
    let path_here = descriptor(&found);
    Ok(Place { path: path_here, shown: path.into(), _held: Some(found) })
}

/// A path of something that may be there or is to be made. Of a link its target is meant.
pub(crate) fn replaced(agent: &Agent, path: &str, beneath: &str) -> Result<Place, Error> {
    let plain = resolve(agent, path)?;
    if beneath.is_empty() {
        return Ok(Place { path: plain.clone(), shown: plain, _held: None });
    }
    let root = open_root(beneath)?;
    let wanted = match open(&root, relative(path)?, LOOK) {
        Ok(found) => {
            let (real, top) = (target(&found), target(&root));
            let within = real.and_then(|real| Ok(real.strip_prefix(top?).map_err(io::Error::other)?.to_owned()));
            within.map_err(|error| refusal("resolve", Path::new(path), &error))?
        }
        Err(Errno::NOENT) => relative(path)?.to_owned(),
        Err(error) => return Err(denied(path, error)),
    };
    let is_directory = || refusal("write", Path::new(path), &io::Error::from_raw_os_error(libc::EISDIR));
    let name: OsString = wanted.file_name().ok_or_else(is_directory)?.to_owned();
    let folder = wanted.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = open(&root, folder, LOOK | OFlags::DIRECTORY).map_err(|error| denied(path, error))?;
    let path_here = descriptor(&folder).join(name);
    Ok(Place { path: path_here, shown: path.into(), _held: Some(folder) })
}

fn open_root(beneath: &str) -> Result<OwnedFd, Error> {
    let root = rustix::fs::openat(CWD, beneath, LOOK | OFlags::DIRECTORY, Mode::empty());
    root.map_err(|error| refusal("open", Path::new(beneath), &error.into()))
}

/// The kernel says `EAGAIN` of a `..` while anything on the machine is renamed or mounted, and means: once more. BOUND:
/// somebody who renames without an end is told so.
const OPEN_ATTEMPTS: u32 = 1000;

fn open(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    for _ in 1..OPEN_ATTEMPTS {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), WITHIN) {
            Err(Errno::AGAIN) => std::hint::spin_loop(),
            opened => return opened,
        }
    }
    rustix::fs::openat2(root, path, flags, Mode::empty(), WITHIN)
}

/// Refuses what needs no look.
fn relative(text: &str) -> Result<&Path, Error> {
    let path = Path::new(text);
    match path.components().any(|part| matches!(part, Component::RootDir | Component::Prefix(_))) {
        true => Err(leaves(text)),
        false => Ok(path),
    }
}

fn denied(path: &str, error: Errno) -> Error {
    match error {
        Errno::XDEV | Errno::LOOP => leaves(path),
        error => refusal("open", Path::new(path), &error.into()),
    }
}

fn leaves(path: &str) -> Error {
    let shown: String = path.chars().take(200).collect();
    Error::new(Code::PermissionDenied, "path_leaves", format!("`{shown}` leads out of the workspace"))
}

fn descriptor(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// Where a descriptor is.
fn target(fd: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(descriptor(fd))
}
