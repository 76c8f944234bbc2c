//! Removing a tree whose files belong to mapped users, which an ordinary user can do only as root of the same
//! mapping.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use dispense_spawner::Users;

use crate::sys::{self, Cloned};
use crate::users::UserNamespaces;

/// Starts a process that removes `path`; how it went is told on the status pipe as a box's start is.
pub(crate) fn start(path: &Path, users: &Users, mut fds: Vec<OwnedFd>) -> Result<(i32, OwnedFd), String> {
    let status = fds.pop().ok_or("remove a tree: the status pipe is missing")?;
    let mut namespaces = UserNamespaces::default();
    let prepared = namespaces.prepare(users).map_err(|error| format!("map the ids of a tree: {error}"))?;
    match sys::clone(prepared.clone_flags(), None).map_err(|error| format!("clone: {error}"))? {
        Cloned::Parent { pid, pidfd } => {
            prepared.map(pid).map_err(|error| format!("map the ids of a tree: {error}"))?;
            Ok((pid, pidfd))
        }
        Cloned::Child => {
            let result = prepared.wait().and_then(|_| open_up(path)).and_then(|()| fs::remove_dir_all(path));
            if let Err(error) = result
                && error.kind() != std::io::ErrorKind::NotFound
            {
                let text = format!("remove {}\0{}\0{error}", path.display(), error.raw_os_error().unwrap_or(0));
                let _ = fs::File::from(status).write_all(text.as_bytes());
            }
            sys::exit(0)
        }
    }
}

/// The overlay's work directory has mode 000, which stops even its owner.
fn open_up(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}
