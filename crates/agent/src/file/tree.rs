//! Listing, looking, making, moving and removing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dispense_api::error::{Code, Error};
use dispense_api::v1::{
    self, ListDirectoryRequest, ListDirectoryResponse, MakeDirectoryRequest, MoveFileRequest, RemoveFileRequest,
    RemoveFileResponse, StatFileRequest,
};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::beneath::{self, Place};
use super::{blocking, describe, refusal, resolve};
use crate::call::{Requests, Responses, gone};
use crate::serve::Agent;

/// Entries of one message.
const BATCH_ENTRIES: usize = 500;
/// Batches between the disk and the stream.
const BATCHES_IN_FLIGHT: usize = 4;
/// Levels of one listing at most.
const DEPTH_MAX: u32 = 64;

pub(crate) async fn list<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: ListDirectoryRequest = requests.only().await?;
    let place = beneath::existing(agent, &request.path, &request.beneath)?;
    let depth = request.depth.clamp(1, DEPTH_MAX);
    let (sender, mut batches) = mpsc::channel(BATCHES_IN_FLIGHT);
    let walk = blocking(move || walk(&place, depth, &sender));
    let send = async {
        while let Some(files) = batches.recv().await {
            responses.send(&ListDirectoryResponse { files }).await.map_err(gone)?;
        }
        Ok(())
    };
    let (walked, sent) = tokio::join!(walk, send);
    walked.and(sent)
}

fn walk(place: &Place, depth: u32, sender: &mpsc::Sender<Vec<v1::File>>) -> Result<(), Error> {
    let root = &place.path;
    let shown = |path: &Path| path.strip_prefix(root).map_or(place.shown.clone(), |below| place.shown.join(below));
    let mut batch = Vec::new();
    let mut folders = vec![(root.to_owned(), 1)];
    while let Some((folder, level)) = folders.pop() {
        let failed = |error: io::Error| refusal("list", &shown(&folder), &error);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // A folder below may go, or be closed to this user; the one asked for may not.
            Err(_) if folder != *root => continue,
            Err(error) => return Err(failed(error)),
        };
        let mut paths: Vec<PathBuf> =
            entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>().map_err(failed)?;
        paths.sort_unstable();
        let mut below = Vec::new();
        for path in paths {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            batch.push(v1::File { path: shown(&path).to_string_lossy().into_owned(), ..describe(&path, &meta) });
            if batch.len() >= BATCH_ENTRIES && sender.blocking_send(std::mem::take(&mut batch)).is_err() {
                return Ok(());
            }
            if meta.is_dir() && level < depth {
                below.push((path, level + 1));
            }
        }
        folders.extend(below.into_iter().rev());
    }
    // Nobody takes the last batch when the caller has gone.
    let _ = sender.blocking_send(batch);
    Ok(())
}

pub(crate) async fn stat<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: StatFileRequest = requests.only().await?;
    let path = resolve(agent, &request.path)?;
    let look = move || {
        let meta = if request.follow { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        meta.map(|meta| describe(&path, &meta)).map_err(|error| refusal("look at", &path, &error))
    };
    responses.gather(&blocking(look).await?);
    Ok(())
}

pub(crate) async fn make_directory<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: MakeDirectoryRequest = requests.only().await?;
    let path = resolve(agent, &request.path)?;
    let make = move || {
        use std::os::unix::fs::DirBuilderExt;
        let failed = |error: io::Error| refusal("make", &path, &error);
        let mode = if request.mode == 0 { 0o755 } else { request.mode & 0o7777 };
        fs::DirBuilder::new().recursive(request.parents).mode(mode).create(&path).map_err(failed)?;
        let meta = fs::symlink_metadata(&path).map_err(failed)?;
        Ok(describe(&path, &meta))
    };
    responses.gather(&blocking(make).await?);
    Ok(())
}

pub(crate) async fn rename<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: MoveFileRequest = requests.only().await?;
    let (from, to) = (resolve(agent, &request.from)?, resolve(agent, &request.to)?);
    let rename = move || {
        let flags = if request.overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        rustix::fs::renameat_with(CWD, &from, CWD, &to, flags).map_err(|error| {
            // The source is missing far more often than the destination's folder.
            let named = if error == rustix::io::Errno::EXIST || from.symlink_metadata().is_ok() { &to } else { &from };
            refusal("move", named, &error.into())
        })?;
        let meta = fs::symlink_metadata(&to).map_err(|error| refusal("move", &to, &error))?;
        Ok(describe(&to, &meta))
    };
    responses.gather(&blocking(rename).await?);
    Ok(())
}

pub(crate) async fn remove<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: RemoveFileRequest = requests.only().await?;
    let path = resolve(agent, &request.path)?;
    if path.file_name().is_none() {
        return Err(Error::new(Code::InvalidArgument, "path_invalid", format!("{} cannot be removed", path.display())));
    }
    let remove = move || {
        let failed = |error: io::Error| refusal("remove", &path, &error);
        let meta = fs::symlink_metadata(&path).map_err(failed)?;
        if !meta.is_dir() {
            fs::remove_file(&path).map_err(failed)?;
            return Ok(1);
        }
        if !request.recursive {
            fs::remove_dir(&path).map_err(failed)?;
            return Ok(1);
        }
        remove_tree(&path).map_err(failed)
    };
    let removed = blocking(remove).await?;
    responses.gather(&RemoveFileResponse { removed });
    Ok(())
}

/// Removes a tree by descriptors, so that a directory that is swapped for a link meanwhile leads nowhere.
fn remove_tree(path: &Path) -> io::Result<u64> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = rustix::fs::open(parent, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())?;
    remove_at(&parent, name)
}

fn remove_at(parent: &impl std::os::fd::AsFd, name: &std::ffi::OsStr) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let folder = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
            return Ok(1);
        }
        Err(rustix::io::Errno::NOENT) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let mut removed = 1;
    let names: Vec<_> = rustix::fs::Dir::read_from(&folder)?
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .collect::<Result<_, _>>()?;
    for name in names {
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            removed += remove_at(&folder, std::ffi::OsStr::from_bytes(name.to_bytes()))?;
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(removed),
        Err(error) => Err(error.into()),
    }
}
