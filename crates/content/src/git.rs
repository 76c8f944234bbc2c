//! A git repository over HTTP: cloned by the `git` program with its history, and packed.
//!
//! A repository is a stranger's: git has no configuration but this, no hook of a template, no way to ask for a password, and
//! no protocol but HTTP. What it writes is bounded while it grows.

mod confined;

use std::path::Path;

use bytes::Bytes;
use dispense_api::archive::{self, Chunks};
use tokio::process::Command;
use tokio::sync::mpsc;

use self::confined::Ended;
use super::{CHUNK_BYTES, ContentError, Moved, Scratch};

/// Of what git says when it fails, this much of the end is told.
const SAID_MAX_BYTES: usize = 400;

pub(super) async fn fetch(
    url: &str,
    branch: Option<&str>,
    scratch: Scratch<'_>,
    chunks: mpsc::Sender<Bytes>,
    mut progress: impl FnMut(Moved) + Send,
) -> Result<Moved, ContentError> {
    let failed = |error| ContentError::storage("make a directory for a clone", &error);
    let folder = tempfile::Builder::new().prefix("clone-").tempdir_in(scratch.folder).map_err(failed)?;
    let tree = folder.path().join("tree");
    let command = clone(url, branch, folder.path(), &tree);
    let ended = confined::run(command, folder.path(), scratch.bytes_max, SAID_MAX_BYTES).await;
    match ended.map_err(|error| ContentError::storage("run git, which a repository needs", &error))? {
        Ended::Itself(status, _) if status.success() => {}
        Ended::Itself(_, message) => {
            return Err(ContentError::Storage { action: format!("clone {url}"), message });
        }
        Ended::Grown => return Err(ContentError::TooLarge { what: url.to_owned(), bytes_max: scratch.bytes_max }),
    }
    let pack = tokio::task::spawn_blocking(move || {
        let give = |chunk| chunks.blocking_send(chunk).map_err(|_| std::io::ErrorKind::BrokenPipe.into());
        let packed = archive::pack(&tree, Path::new("."), Chunks::new(CHUNK_BYTES, give), |_| {});
        drop(folder);
        packed
    });
    let packed = pack.await.map_err(|error| ContentError::storage("pack a clone", &error))?;
    let summary = packed.map_err(|error| match error {
        archive::ArchiveError::Stream(..) => ContentError::Gone,
        error => ContentError::storage("pack a clone", &error),
    })?;
    let moved = Moved { entries: summary.entries, bytes: summary.bytes };
    progress(moved);
    Ok(moved)
}

/// The program, which sees nothing of its user's.
fn clone(url: &str, branch: Option<&str>, home: &Path, tree: &Path) -> Command {
    let mut command = Command::new("git");
    command.args(["-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false", "clone", "--quiet"]);
    command.args(["--template=", "--no-recurse-submodules"]);
    if let Some(branch) = branch {
        command.args(["--branch", branch]);
    }
    command.arg("--").arg(url).arg(tree);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home);
    for name in ["https_proxy", "http_proxy", "no_proxy"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.envs([("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_TERMINAL_PROMPT", "0")]);
    command.envs([("GIT_ALLOW_PROTOCOL", "https:http"), ("GIT_ASKPASS", "/bin/false"), ("LC_ALL", "C")]);
    command.current_dir(home);
    command
}
