//! Who this runner is, over restarts: `identity.json` in the state directory, readable by its user only.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const FILE: &str = "identity.json";

/// The identity file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The state directory or the file.
    #[error("failed to {action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what this program wrote.
    #[error("{path} is damaged: remove it and join the server again with a token")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Id and credential, as the server gave them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) runner_id: String,
    pub(crate) credential: String,
}

/// The file and what is in it.
#[derive(Debug)]
pub(crate) struct Identity {
    path: PathBuf,
    known: Option<Known>,
}

impl Identity {
    /// Reads the file; a runner that never joined has none.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, IdentityError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Io { action, path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(io("make", state_dir))?;
        let path = state_dir.join(FILE);
        let known = match fs::read(&path) {
            Ok(bytes) => Some(
                serde_json::from_slice(&bytes)
                    .map_err(|source| IdentityError::Damaged { path: path.clone(), source })?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io("read", &path)(error)),
        };
        Ok(Self { path, known })
    }

    /// Who the runner is, once it joined.
    pub(crate) fn known(&self) -> Option<&Known> {
        self.known.as_ref()
    }

    /// Keeps what the server gave. A crash leaves the old file or the new one.
    pub(crate) fn keep(&mut self, known: Known) -> Result<(), IdentityError> {
        let write = || {
            let fresh = self.path.with_extension("new");
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&serde_json::to_vec(&known)?)?;
            file.sync_all()?;
            fs::rename(&fresh, &self.path)
        };
        write().map_err(|source| IdentityError::Io { action: "write", path: self.path.clone(), source })?;
        self.known = Some(known);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_kept_is_read_again_by_its_user_only() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let known = Known { runner_id: "rnr1".into(), credential: "dsr_1".into() };
        let mut identity = Identity::open(folder.path()).expect("empty");
        assert_eq!(identity.known(), None);
        identity.keep(known.clone()).expect("writable");
        assert_eq!(Identity::open(folder.path()).expect("valid").known(), Some(&known));
        let mode = fs::metadata(folder.path().join(FILE)).expect("written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_told_with_the_next_step() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        fs::write(folder.path().join(FILE), "{").expect("writable");
        let error = Identity::open(folder.path()).expect_err("damaged");
        assert!(error.to_string().contains("join the server again"), "{error}");
    }
}
