//! Disk limits as root: a sparse file with a file system of the right size, on a loop device that goes with the
//! mount. Where there is no `mkfs.ext4` or no loop device the disk is a tmpfs, as it is for an ordinary user.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::sys;

/// The image in a box's directory.
const FILE: &str = "disk.img";
/// It writes a few hundred KiB, whatever the size of the disk.
const MAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// Others take free loop devices too; after this many the machine has none.
const ATTACH_ATTEMPTS: u32 = 64;

/// A loop device, for as long as this or its mount lives.
pub(super) struct Attached {
    pub(super) device: PathBuf,
    _keep: OwnedFd,
}

/// The way to make images, where there is one.
pub(super) struct Images {
    mkfs: PathBuf,
}

impl Images {
    /// Looks for what it needs; or why there is no way.
    pub(super) fn probe(as_root: bool) -> Result<Self, String> {
        if !as_root {
            return Err("an ordinary user may not mount a file system of its own".to_owned());
        }
        let places = ["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"];
        let mkfs = places.iter().map(PathBuf::from).find(|path| path.exists());
        let mkfs = mkfs.ok_or("there is no `mkfs.ext4`, of the package `e2fsprogs`")?;
        let control = fs::OpenOptions::new().read(true).write(true).open("/dev/loop-control");
        control.map_err(|error| format!("no loop devices: open /dev/loop-control: {error}"))?;
        Ok(Self { mkfs })
    }

    /// Makes the image of a box.
    pub(super) async fn make(&self, folder: &Path, bytes: u64) -> io::Result<()> {
        let path = folder.join(FILE);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.set_len(bytes)?;
        drop(file);
        let mut command = tokio::process::Command::new(&self.mkfs);
        // Nothing is reserved for root, and what need not be written now is not.
        command.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]).arg(&path);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(MAKE_TIMEOUT, output).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(io::Error::other(format!("mkfs.ext4: {text}")))
    }
}

/// Whether a box's disk is an image.
pub(super) fn is_image(folder: &Path) -> bool {
    folder.join(FILE).exists()
}

/// Puts the image of a box on a loop device, which is free again when its mount and this are gone.
pub(super) fn attach(folder: &Path) -> io::Result<Attached> {
    let image = fs::OpenOptions::new().read(true).write(true).open(folder.join(FILE))?;
    let control = fs::OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTACH_ATTEMPTS {
        let device = PathBuf::from(format!("/dev/loop{}", sys::free_loop(&control)?));
        let opened = fs::OpenOptions::new().read(true).write(true).open(&device)?;
        match sys::configure_loop(&opened, &image) {
            Ok(()) => return Ok(Attached { device, _keep: opened.into() }),
            // Somebody else was quicker.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no loop device is free"))
}
