//! Watching a tree for changes, by inotify.

use notify::event::{ModifyKind, RenameMode};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use dispense_api::error::{Code, Error};
use dispense_api::v1::WatchFilesRequest;
use dispense_api::v1::WatchFilesResponse;
use dispense_api::v1::watch_files_response::Kind;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::{blocking, refusal, resolve};
use crate::call::{Requests, Responses, gone};
use crate::process_calls::watch_for_going;
use crate::serve::Agent;

/// Changes that wait for a slow reader; past it the reader is told to list again.
const CHANGES_MAX: usize = 4096;

pub(crate) async fn watch<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: WatchFilesRequest = requests.only().await?;
    let path = resolve(agent, &request.path)?;
    let (sender, mut changes) = mpsc::channel(CHANGES_MAX);
    // Lives as long as this call; dropping it removes the watches.
    let _watcher = blocking(move || {
        let failed = |error: notify::Error| match error.kind {
            notify::ErrorKind::Io(io) => refusal("watch", &path, &io),
            notify::ErrorKind::PathNotFound => {
                refusal("watch", &path, &std::io::Error::from_raw_os_error(libc::ENOENT))
            }
            notify::ErrorKind::MaxFilesWatch => Error::new(
                Code::ResourceExhausted,
                "watches_exhausted",
                format!("{} has more directories than this machine watches: watch a part of it", path.display()),
            ),
            _ => Error::new(Code::Internal, "file_failed", format!("failed to watch {}", path.display())),
        };
        let overflow = sender.clone();
        let handler = move |event: notify::Result<Event>| {
            let messages = event.map_or_else(|_| vec![message(Kind::Overflow, None, None)], translate);
            for message in messages {
                if sender.try_send(message).is_err() {
                    // Full: what is lost is told by one message as soon as there is room for it.
                    return;
                }
            }
        };
        let mut watcher =
            RecommendedWatcher::new(handler, Config::default().with_follow_symlinks(false)).map_err(failed)?;
        let mode = if request.recursive { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
        watcher.watch(&path, mode).map_err(failed)?;
        Ok((watcher, overflow))
    })
    .await?;
    responses.send(&message(Kind::Ready, None, None)).await.map_err(gone)?;
    let going = watch_for_going(requests);
    tokio::pin!(going);
    loop {
        tokio::select! {
            error = &mut going => return error,
            change = changes.recv() => {
                // Full before this was taken: changes may have been lost behind it.
                let overflowed = changes.len() + 1 >= CHANGES_MAX;
                let Some(change) = change else { return Ok(()) };
                responses.send(&change).await.map_err(gone)?;
                if overflowed {
                    while changes.try_recv().is_ok() {}
                    responses.send(&message(Kind::Overflow, None, None)).await.map_err(gone)?;
                }
            }
        }
    }
}

fn message(kind: Kind, path: Option<&std::path::Path>, from: Option<&std::path::Path>) -> WatchFilesResponse {
    let text =
        |path: Option<&std::path::Path>| path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    WatchFilesResponse { kind: kind.into(), path: text(path), from: text(from) }
}

fn translate(event: Event) -> Vec<WatchFilesResponse> {
    if event.need_rescan() {
        return vec![message(Kind::Overflow, None, None)];
    }
    let first = event.paths.first().map(std::path::PathBuf::as_path);
    let kind = match event.kind {
        EventKind::Create(_) => Kind::Created,
        EventKind::Remove(_) => Kind::Removed,
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => {
            return vec![message(Kind::Moved, event.paths.get(1).map(std::path::PathBuf::as_path), first)];
        }
        // One half of a move: out of what is watched, or into it. Both halves come again as one.
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Kind::Removed,
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Kind::Created,
        EventKind::Modify(_) => Kind::Modified,
        EventKind::Access(_) | EventKind::Any | EventKind::Other => return Vec::new(),
    };
    vec![message(kind, first, None)]
}
