//! The template `host`: this machine's programs with a made root around them.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Lower;

/// Directories of the made root, with their modes.
const DIRECTORIES: [(&str, u32); 20] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("home/user", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("run/lock", 0o1777),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
    ("workspace", 0o755),
];
/// What of the host's `/etc` programs need and what names no person, machine, network or secret.
const FROM_ETC: [&str; 28] = [
    "alternatives",
    "bash.bashrc",
    "ca-certificates",
    "ca-certificates.conf",
    "debian_version",
    "environment",
    "fonts",
    "inputrc",
    "java-17-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "login.defs",
    "magic",
    "mime.types",
    "os-release",
    "pam.conf",
    "pam.d",
    "perl",
    "profile",
    "protocols",
    "python3",
    "python3.11",
    "services",
    "shells",
    "ssl",
    "terminfo",
];
/// Never copied, wherever they stand in the above.
const SECRET_NAMES: [&str; 2] = ["private", "shadow"];
const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\nuser:x:1000:1000:user:/home/user:/bin/bash\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nsudo:x:27:user\nnogroup:x:65534:\nuser:x:1000:\n";
const SUDOERS: &str = "Defaults env_reset\nroot ALL=(ALL:ALL) ALL\nuser ALL=(ALL:ALL) NOPASSWD: ALL\n";
const PROFILE_BASHRC: &str = "PS1='\\u@\\h:\\w\\$ '\n";
/// Raise when the made files change, so that a new skeleton is made.
const VERSION: &str = "1";

/// Makes the root around the host's programs, in a directory named by what went into it, so that boxes of an
/// older one keep it. A crash leaves an unfinished directory of another name.
pub(super) fn skeleton(folder: &Path, as_root: bool) -> io::Result<PathBuf> {
    let target = folder.join(format!("host-{}", fingerprint(as_root)));
    if target.is_dir() {
        return Ok(target);
    }
    let fresh = folder.join(format!("host.new.{}", std::process::id()));
    let _ = fs::remove_dir_all(&fresh);
    for (name, _) in DIRECTORIES {
        fs::create_dir_all(fresh.join(name))?;
    }
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        // On a machine where these are directories of their own they become layers.
        if let Ok(link) = fs::read_link(Path::new("/").join(name)) {
            symlink(link, fresh.join(name))?;
        } else if Path::new("/").join(name).is_dir() {
            fs::create_dir(fresh.join(name))?;
        }
    }
    for name in FROM_ETC {
        copy(&Path::new("/etc").join(name), &fresh.join("etc").join(name))?;
    }
    let files = [
        ("etc/passwd", PASSWD, 0o644),
        ("etc/group", GROUP, 0o644),
        ("etc/sudoers", SUDOERS, 0o440),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n", 0o644),
        ("etc/resolv.conf", "", 0o644),
        ("root/.bashrc", PROFILE_BASHRC, 0o644),
        ("home/user/.bashrc", PROFILE_BASHRC, 0o644),
    ];
    for (name, content, mode) in files {
        let path = fresh.join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    if as_root {
        for name in ["home/user", "home/user/.bashrc"] {
            std::os::unix::fs::chown(fresh.join(name), Some(1000), Some(1000))?;
        }
    }
    for (name, mode) in DIRECTORIES {
        fs::set_permissions(fresh.join(name), fs::Permissions::from_mode(mode))?;
    }
    match fs::rename(&fresh, &target) {
        Err(_) if target.is_dir() => fs::remove_dir_all(&fresh).map(|()| target),
        result => result.map(|()| target),
    }
}

/// The root and the host's programs on it.
pub(super) fn layers(skeleton: &Path) -> Vec<Lower> {
    let mut layers = vec![Lower { target: PathBuf::new(), source: skeleton.to_owned() }];
    for name in ["usr", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let source = Path::new("/").join(name);
        let is_own_directory = fs::symlink_metadata(&source).is_ok_and(|meta| meta.is_dir());
        let is_empty = fs::read_dir(&source).is_ok_and(|mut entries| entries.next().is_none());
        if is_own_directory && !is_empty {
            layers.push(Lower { target: name.into(), source });
        }
    }
    layers
}

/// Names and times of what is copied.
fn fingerprint(as_root: bool) -> String {
    let mut hasher = Sha256::new();
    hasher.update(VERSION);
    hasher.update([u8::from(as_root)]);
    for name in FROM_ETC {
        let modified = fs::metadata(Path::new("/etc").join(name)).and_then(|meta| meta.modified()).ok();
        hasher.update(format!("{name}{modified:?}"));
    }
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Copies what everybody may read; the rest is not for boxes.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(from) else { return Ok(()) };
    if from.file_name().is_some_and(|name| SECRET_NAMES.iter().any(|secret| name == *secret)) {
        return Ok(());
    }
    if meta.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    let readable_by_all = meta.permissions().mode() & 0o004 != 0;
    if meta.is_dir() {
        fs::create_dir(to)?;
        if readable_by_all {
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                copy(&entry.path(), &to.join(entry.file_name()))?;
            }
        }
        return fs::set_permissions(to, fs::Permissions::from_mode(meta.permissions().mode() & 0o7777));
    }
    if meta.is_file() && readable_by_all {
        fs::copy(from, to)?;
    }
    Ok(())
}
