//! Where the bytes of one file go on this machine, as cp(1) has it: through a link to what it leads to, into a device or a
//! pipe that is there; any other file is written beside its name and gets that when it is whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// As the kernel has it.
const LINKS_MAX: usize = 40;
/// Links there lead to descriptors, also to files that somebody has open: the file is meant, not a name of it.
const DESCRIPTORS: [&str; 2] = ["/proc", "/dev/fd"];

const STDOUT: [&str; 3] = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// What becomes of a link at the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// Somebody wrote that path, and means what it leads to.
    Followed,
    /// Its name came with the file: a link there may be the sandbox's own, from an earlier copy.
    Replaced,
}

/// A file that is being written. Dropped half-way, one that is beside its name is removed.
pub(super) struct Landing {
    file: File,
    beside: Option<Beside>,
}

struct Beside {
    path: PathBuf,
    target: PathBuf,
}

impl Landing {
    /// Waits for a reader where it is a pipe.
    pub(super) fn open(path: &Path, links: Links) -> io::Result<Self> {
        if links == Links::Replaced && fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
            return Self::beside(path.to_owned());
        }
        // As it is open: appending, in the middle of something, or another user's pipe, which opens for nobody else.
        if STDOUT.iter().any(|name| path == Path::new(name)) {
            return Ok(Self { file: io::stdout().as_fd().try_clone_to_owned()?.into(), beside: None });
        }
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Ok(target) = fs::read_link(path) {
                    let message = format!("it is a link to {}, which is not there: remove it first", target.display());
                    return Err(io::Error::new(io::ErrorKind::NotFound, message));
                }
                return Self::beside(path.to_owned());
            }
            Err(error) => return Err(error),
        };
        if meta.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if meta.is_file() && !is_descriptor(path) {
            return Self::beside(fs::canonicalize(path)?);
        }
        let file = OpenOptions::new().write(true).truncate(meta.is_file()).open(path)?;
        Ok(Self { file, beside: None })
    }

    fn beside(target: PathBuf) -> io::Result<Self> {
        let mut random = [0; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let path = target.with_file_name(format!(".dispense.{:032x}", u128::from_ne_bytes(random)));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, beside: Some(Beside { path, target }) })
    }

    /// Whether half of it can be taken back.
    pub(super) fn is_removable(&self) -> bool {
        self.beside.is_some()
    }

    pub(super) fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)
    }

    /// All is there. What was not made here keeps its mode and has its own time.
    pub(super) fn finish(mut self, mode: u32, modified: Option<SystemTime>) -> io::Result<()> {
        let Some(beside) = &self.beside else { return self.file.flush() };
        self.file.set_permissions(Permissions::from_mode(mode))?;
        if let Some(modified) = modified {
            self.file.set_modified(modified)?;
        }
        fs::rename(&beside.path, &beside.target)?;
        self.beside = None;
        Ok(())
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            let _ = fs::remove_file(&beside.path);
        }
    }
}

/// Whether it is, or leads through, a name of a descriptor.
fn is_descriptor(path: &Path) -> bool {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        if DESCRIPTORS.iter().any(|folder| path.starts_with(folder)) {
            return true;
        }
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    use super::*;

    fn land(path: &Path, text: &str) -> io::Result<()> {
        let mut landing = Landing::open(path, Links::Followed)?;
        landing.write(text.as_bytes())?;
        landing.finish(0o640, Some(SystemTime::UNIX_EPOCH))
    }

    #[test]
    fn a_file_appears_when_it_is_whole_and_not_at_all_when_it_is_not() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("file");
        fs::write(&path, "before").expect("writable");
        let mut landing = Landing::open(&path, Links::Followed).expect("writable");
        landing.write(b"half").expect("writable");
        assert_eq!(fs::read(&path).expect("there"), b"before");
        drop(landing);
        assert_eq!(fs::read_dir(folder.path()).expect("ours").count(), 1);
        land(&path, "whole").expect("writable");
        assert_eq!(fs::read(&path).expect("there"), b"whole");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).expect("ours").count(), 1);
    }

    #[test]
    fn a_link_is_written_through_and_one_that_leads_nowhere_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("target"), "before").expect("writable");
        symlink("target", at("link")).expect("fresh");
        symlink("nowhere", at("dangling")).expect("fresh");
        land(&at("link"), "after").expect("writable");
        assert!(fs::symlink_metadata(at("link")).expect("there").is_symlink());
        assert_eq!(fs::read(at("target")).expect("there"), b"after");
        let error = land(&at("dangling"), "lost").expect_err("it leads nowhere");
        assert!(error.to_string().contains("nowhere"), "{error}");
        land(folder.path(), "x").expect_err("a directory");
        // Whose name is not the user's own is no way out of the directory.
        let mut landing = Landing::open(&at("link"), Links::Replaced).expect("writable");
        landing.write(b"here").expect("writable");
        landing.finish(0o640, None).expect("writable");
        assert!(fs::symlink_metadata(at("link")).expect("there").is_file());
        assert_eq!(fs::read(at("target")).expect("there"), b"after");
    }

    #[test]
    fn a_device_stays_one_and_a_descriptor_is_its_own_file() {
        use std::os::unix::fs::FileTypeExt;
        let folder = tempfile::tempdir().expect("a temporary directory");
        let link = folder.path().join("null");
        symlink("/dev/null", &link).expect("fresh");
        land(&link, "gone").expect("writable");
        assert!(fs::metadata("/dev/null").expect("there").file_type().is_char_device());
        let path = folder.path().join("open");
        let open = File::create(&path).expect("writable");
        land(format!("/proc/self/fd/{}", open.as_raw_fd()).as_ref(), "into").expect("writable");
        assert_eq!(open.metadata().expect("open").len(), 4, "the file that is open was written, and no other");
    }
}
