//! A file tree as a tar stream: packing, and unpacking that cannot leave its destination. Used by the agent and
//! by the client on the user's machine, since either side may be hostile to the other.
//!
//! Kept: modes, modification times (whole seconds), symbolic and hard links, any name. Not kept: devices,
//! sockets and pipes, and what cannot be read to an end, which are skipped and counted: a comment in the archive stands
//! for each. A file that is unpacked has its name when it is whole.

mod chunks;
mod pack;
mod unpack;

use std::io;
use std::path::PathBuf;

pub use chunks::{ChunkReader, Chunks};
pub use pack::{Packer, pack};
pub use unpack::{Owner, unpack};

/// What was packed or unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
    /// Devices, sockets and pipes, which do not travel.
    pub skipped: u64,
}

/// Why a tree cannot be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// One file or directory.
    #[error("failed to {action} {}", path.display())]
    Path {
        /// What was being done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The stream itself.
    #[error("failed to {0} the archive")]
    Stream(&'static str, #[source] io::Error),
    /// An entry that would leave the destination, or that no honest peer sends.
    #[error("the archive has {}, which {why}: nothing outside the destination was touched", path.display())]
    Hostile {
        /// As it stands in the archive.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl ArchiveError {
    /// The error of the system, if it was one.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Path { source, .. } | Self::Stream(_, source) => Some(source),
            Self::Hostile { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
