//! Files of the sandbox: read, written, listed, moved, watched and carried as archives.
//!
//! The agent is inside the sandbox, so a path can lead to nothing but the sandbox's own files. What blocks runs
//! on the blocking pool, joined by bounded channels.

pub(crate) mod beneath;
pub(crate) mod content;
pub(crate) mod transfer;
pub(crate) mod tree;
pub(crate) mod watch;

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dispense_api::archive::{ArchiveError, Owner};
use dispense_api::error::{Code, Error, reason};
use dispense_api::{limits, v1};

use crate::serve::Agent;
use crate::user;

/// Turns a path of a request into one of the sandbox.
pub(crate) fn resolve(agent: &Agent, path: &str) -> Result<PathBuf, Error> {
    let invalid = |message: String| Error::new(Code::InvalidArgument, "path_invalid", message);
    if path.is_empty() {
        return Err(invalid(
            "`path` is empty: give an absolute path, or one relative to the working directory".to_owned(),
        ));
    }
    if path.len() > limits::PATH_MAX_BYTES || path.contains('\0') {
        return Err(invalid(format!("`path` is longer than {} bytes or has a NUL byte", limits::PATH_MAX_BYTES)));
    }
    Ok(agent.config.workdir.join(path))
}

/// The error of one file operation, as the caller sees it.
pub(crate) fn refusal(action: &str, path: &Path, error: &io::Error) -> Error {
    let (code, reason) = match error.raw_os_error() {
        Some(libc::ENOENT) => (Code::NotFound, "file_unknown"),
        Some(libc::EEXIST) => (Code::AlreadyExists, "file_exists"),
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => (Code::PermissionDenied, "file_denied"),
        Some(libc::ENOTDIR) => (Code::FailedPrecondition, "not_a_directory"),
        Some(libc::EISDIR) => (Code::FailedPrecondition, "is_a_directory"),
        Some(libc::ENOTEMPTY) => (Code::FailedPrecondition, "directory_not_empty"),
        Some(libc::ENOSPC | libc::EDQUOT) => (Code::ResourceExhausted, reason::DISK_FULL),
        Some(libc::ELOOP | libc::ENAMETOOLONG | libc::EINVAL | libc::EXDEV) => (Code::InvalidArgument, "path_invalid"),
        _ => (Code::Internal, "file_failed"),
    };
    let why = match error.raw_os_error() {
        Some(errno) => rustix::io::Errno::from_raw_os_error(errno).to_string(),
        None => error.to_string(),
    };
    // The system's text ends with its number, which says nothing to people.
    let why = why.split(" (os error").next().unwrap_or_default().to_lowercase();
    Error::new(code, reason, format!("failed to {action} {}: {why}", path.display()))
}

/// The error of an archive.
pub(crate) fn archive_refusal(action: &str, path: &Path, error: &ArchiveError) -> Error {
    match error {
        ArchiveError::Hostile { .. } => Error::new(Code::InvalidArgument, "archive_hostile", error.to_string()),
        ArchiveError::Stream(..) => Error::new(
            Code::InvalidArgument,
            "archive_damaged",
            format!("the archive for {} is damaged", path.display()),
        ),
        ArchiveError::Path { path, source, .. } => refusal(action, path, source),
    }
}

/// The user who gets what is written: the one named, else the sandbox's.
pub(crate) fn owner(agent: &Agent, text: &str) -> Result<Owner, Error> {
    let user = user::find(if text.is_empty() { &agent.config.user } else { text })?;
    Ok(Owner { uid: user.uid, gid: user.gid })
}

/// Describes a file as clients see it.
pub(crate) fn describe(path: &Path, meta: &Metadata) -> v1::File {
    let kind = if meta.is_file() {
        v1::FileKind::Regular
    } else if meta.is_dir() {
        v1::FileKind::Directory
    } else if meta.is_symlink() {
        v1::FileKind::Symlink
    } else {
        v1::FileKind::Other
    };
    let name = path.file_name().unwrap_or_default();
    let target = if meta.is_symlink() { std::fs::read_link(path).ok() } else { None };
    v1::File {
        path: path.to_string_lossy().into_owned(),
        raw_name: if name.to_str().is_some() {
            bytes::Bytes::new()
        } else {
            bytes::Bytes::copy_from_slice(name.as_bytes())
        },
        kind: kind.into(),
        size: meta.len(),
        mode: meta.permissions().mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        modified_at: meta.modified().ok().map(Into::into),
        target: target.map(|target| target.to_string_lossy().into_owned()).unwrap_or_default(),
    }
}

/// Runs what blocks on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let failed = |_| Error::new(Code::Internal, "file_failed", "the file operation ended unexpectedly");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
