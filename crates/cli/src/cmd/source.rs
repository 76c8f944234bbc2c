//! `--source DIR`: a directory of this machine as what a new sandbox starts with.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dispense_api::source::{self, Source};
use dispense_client::{Client, Error, v1};

use super::copy::{Progress, stream_up};
use crate::args::SourceArgs;
use crate::failure::{local, usage};

impl SourceArgs {
    /// A mistyped directory does not need a server.
    pub(super) fn check(&self) -> Result<(), Error> {
        let Some(directory) = &self.source else { return Ok(()) };
        let meta = std::fs::metadata(directory);
        match meta.map_err(|error| local(format_args!("read --source {}", directory.display()), &error))?.is_dir() {
            true => Ok(()),
            false => Err(usage(format!("--source {} is not a directory", directory.display()))),
        }
    }
}

/// What the sandbox's runner fetches, if a URL was given.
pub(super) fn content(args: SourceArgs) -> Option<v1::Content> {
    let url = args.content?;
    let directory = url.strip_prefix("file://").map_or_else(|| url.clone(), str::to_owned);
    Some(v1::Content { directory, branch: args.branch.unwrap_or_default(), reset_branch: args.reset_branch })
}

/// Copies the directory into the sandbox's working directory, if one was given.
pub(super) async fn fill(client: &Client, sandbox: &v1::Sandbox, args: SourceArgs) -> Result<(), Error> {
    let Some(directory) = args.source else { return Ok(()) };
    tell_uncommitted(&directory);
    let branch = args.branch.unwrap_or_else(|| sandbox.name.clone());
    let source = Source { directory, branch, reset: args.reset_branch };
    let progress = Progress::new(false);
    let packed = stream_up(client, &sandbox.id, ".".to_owned(), progress.clone(), move |writer, bar| {
        source::pack(&source, &scratch(), writer, |summary| bar.tell(summary))
    });
    progress.done(packed.await?);
    Ok(())
}

fn scratch() -> PathBuf {
    std::env::temp_dir()
}

/// A clone has what is committed.
fn tell_uncommitted(directory: &Path) {
    if directory.join(".git").symlink_metadata().is_err() {
        return;
    }
    let status =
        Command::new("git").arg("-C").arg(directory).args(["status", "--porcelain"]).stderr(Stdio::null()).output();
    // Without git the clone fails, and says so.
    if status.is_ok_and(|status| !status.stdout.is_empty()) {
        eprintln!("dispense: {} has changes that are not committed: they stay behind", directory.display());
    }
}
