//! A git repository over HTTP: cloned by the `git` program with its history, and packed.
//!
//! A repository is a stranger's: git has no configuration but this, no hook of a template, no way to ask for a password, and
//! no protocol but HTTP.

use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use dispense_api::archive::{self, Chunks};
use tokio::process::Command;
use tokio::sync::mpsc;

use super::{CHUNK_BYTES, ContentError, Moved};

/// Of what git says when it fails, this much of the end is told.
const SAID_MAX_BYTES: usize = 400;

pub(super) async fn fetch(
    url: &str,
    branch: Option<&str>,
    scratch: &Path,
    chunks: mpsc::Sender<Bytes>,
    mut progress: impl FnMut(Moved) + Send,
) -> Result<Moved, ContentError> {
    let failed = |error| ContentError::storage("make a directory for a clone", error);
    let folder = tempfile::Builder::new().prefix("clone-").tempdir_in(scratch).map_err(failed)?;
    let tree = folder.path().join("tree");
    let mut command = Command::new("git");
    command.args(["-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false", "clone", "--quiet"]);
    command.args(["--template=", "--no-recurse-submodules"]);
    if let Some(branch) = branch {
        command.args(["--branch", branch]);
    }
    command.arg("--").arg(url).arg(&tree);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", folder.path());
    for name in ["https_proxy", "http_proxy", "no_proxy"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.envs([("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_TERMINAL_PROMPT", "0")]);
    command.envs([("GIT_ALLOW_PROTOCOL", "https:http"), ("GIT_ASKPASS", "/bin/false"), ("LC_ALL", "C")]);
    command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = command.kill_on_drop(true).output().await;
    let output = output.map_err(|error| ContentError::storage("run git, which a repository needs", error))?;
    if !output.status.success() {
        let said = &output.stderr[output.stderr.len().saturating_sub(SAID_MAX_BYTES)..];
        let message = String::from_utf8_lossy(said).trim().replace('\n', "; ");
        return Err(ContentError::Storage { action: format!("clone {url}"), message });
    }
    let pack = tokio::task::spawn_blocking(move || {
        let give = |chunk| chunks.blocking_send(chunk).map_err(|_| std::io::ErrorKind::BrokenPipe.into());
        let packed = archive::pack(&tree, Path::new("."), Chunks::new(CHUNK_BYTES, give), |_| {});
        drop(folder);
        packed
    });
    let packed = pack.await.map_err(|error| ContentError::storage("pack a clone", error))?;
    let summary = packed.map_err(|error| match error {
        archive::ArchiveError::Stream(..) => ContentError::Gone,
        error => ContentError::storage("pack a clone", error),
    })?;
    let moved = Moved { entries: summary.entries, bytes: summary.bytes };
    progress(moved);
    Ok(moved)
}
