//! A source directory as the tar stream that fills a workspace. Used where the directory is: by the client on the
//! user's machine, by a runner for a directory of its own.
//!
//! A git repository becomes a clone of its own, on a branch; what is not committed stays behind. Any other directory
//! is copied without what its `.gitignore` and `.dispenseignore` files name.
//!
//! No hook, filter or monitor that the repository's configuration names is run: git never looks at its work tree.
//! git reads the repository as its owner, never with more rights: a repository can point git at other files.

mod git;

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;

use crate::archive::{self, ArchiveError, Packer, Summary};

/// Of projects that say what a sandbox need not have.
const IGNORE_FILE: &str = ".dispenseignore";

/// What to pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where it is.
    pub directory: PathBuf,
    /// In a repository: the branch of the clone. One that the repository has is taken as it is.
    pub branch: String,
    /// Begin the branch anew where the repository's current one is.
    pub reset: bool,
}

/// Why a directory cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The directory itself.
    #[error("failed to {action} {}", path.display())]
    Directory {
        /// What was being done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// git does not run.
    #[error("failed to run git, which a repository needs")]
    NoGit(#[source] io::Error),
    /// git refused.
    #[error("git {action} failed: {message}")]
    Git {
        /// Its subcommand.
        action: String,
        /// The last of what it said.
        message: String,
    },
    /// One file, or the stream.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A file's ignore rules, or a directory that cannot be listed.
    #[error("failed to look through the directory")]
    Walk(#[source] ignore::Error),
}

impl SourceError {
    /// Whether the reader of the stream is gone, which knows why.
    pub fn is_stream(&self) -> bool {
        matches!(self, Self::Archive(ArchiveError::Stream(..)))
    }
}

/// Packs. `scratch` is a directory for a clone, which is removed.
pub fn pack(
    source: &Source,
    scratch: &Path,
    writer: impl Write,
    progress: impl FnMut(Summary),
) -> Result<Summary, SourceError> {
    let directory = &source.directory;
    let failed = |action| move |error| SourceError::Directory { action, path: directory.clone(), source: error };
    let meta = std::fs::metadata(directory).map_err(failed("look at"))?;
    if !meta.is_dir() {
        return Err(failed("use")(io::ErrorKind::NotADirectory.into()));
    }
    if directory.join(".git").symlink_metadata().is_err() {
        return copy(directory, writer, progress);
    }
    let clone = git::Clone::make(source, (meta.uid(), meta.gid()), scratch)?;
    Ok(archive::pack(&clone.path(), Path::new("."), writer, progress)?)
}

/// Packs what is not ignored.
fn copy(directory: &Path, writer: impl Write, mut progress: impl FnMut(Summary)) -> Result<Summary, SourceError> {
    let mut packer = Packer::new(directory, writer)?;
    let walk = WalkBuilder::new(directory)
        .hidden(false)
        .parents(false)
        .git_global(false)
        .require_git(false)
        .follow_links(false)
        .add_custom_ignore_filename(IGNORE_FILE)
        .sort_by_file_name(Ord::cmp)
        .build();
    for entry in walk {
        let entry = match entry {
            Ok(entry) => entry,
            // A file of a live tree may go while it is packed.
            Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => continue,
            Err(error) => return Err(SourceError::Walk(error)),
        };
        let Ok(path) = entry.path().strip_prefix(directory) else { continue };
        packer.add(path, &Path::new(".").join(path))?;
        progress(packer.summary);
    }
    Ok(packer.finish()?)
}

#[cfg(test)]
mod tests;
