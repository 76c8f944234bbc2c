//! Templates: what boxes start from, read-only.
//!
//! `host` is this machine's `/usr` and `/opt` with a made, minimal `/etc`; never `/home`, `/root`, `/var`, `/run`,
//! `/tmp`, credentials or sockets of the host. Others are directories, or tar archives that are unpacked once
//! into a directory named by their content.

mod host;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use dispense_api::error::reason;
use sha2::{Digest, Sha256};

use crate::BackendError;

/// The name of the default.
pub(super) const HOST: &str = "host";
const ARCHIVES: [&str; 3] = [".tar.gz", ".tgz", ".tar"];

/// Of an archive, for its digest.
const READ_BYTES: usize = 256 << 10;
/// A read-only directory and where it appears inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lower {
    /// Below the root; empty for the root itself.
    pub(super) target: PathBuf,
    pub(super) source: PathBuf,
}

/// All templates of a runner.
#[derive(Debug)]
pub(super) struct Templates {
    folder: PathBuf,
    configured: BTreeMap<String, PathBuf>,
    unpacked: PathBuf,
    skeleton: PathBuf,
    as_root: bool,
}

impl Templates {
    /// Templates of `<state>/templates` and the configured ones; makes the skeleton of `host`.
    pub(super) fn open(
        state_dir: &Path,
        configured: BTreeMap<String, PathBuf>,
        as_root: bool,
    ) -> Result<Self, BackendError> {
        let failed = |error: io::Error| BackendError::failed("make the template of this machine", error);
        let (folder, unpacked) = (state_dir.join("templates"), state_dir.join("unpacked"));
        fs::create_dir_all(&folder).map_err(failed)?;
        fs::create_dir_all(&unpacked).map_err(failed)?;
        let skeleton = host::skeleton(&unpacked, as_root).map_err(failed)?;
        Ok(Self { folder, configured, unpacked, skeleton, as_root })
    }

    /// Names, the default first.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.configured.keys().cloned().collect();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let name = ARCHIVES.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name).to_owned();
            names.push(name);
        }
        names.sort_unstable();
        names.dedup();
        names.retain(|name| name != HOST);
        names.insert(0, HOST.to_owned());
        names
    }

    /// The layers of a template; an archive is unpacked first, which takes its time once.
    pub(super) fn layers(&self, name: &str) -> Result<Vec<Lower>, BackendError> {
        if name == HOST {
            return Ok(host::layers(&self.skeleton));
        }
        let path = self.find(name)?;
        let source = if path.is_dir() { path } else { self.unpack(name, &path)? };
        Ok(vec![Lower { target: PathBuf::new(), source }])
    }

    fn find(&self, name: &str) -> Result<PathBuf, BackendError> {
        if let Some(path) = self.configured.get(name) {
            if path.exists() {
                return fs::canonicalize(path)
                    .map_err(|error| BackendError::failed(format!("open template `{name}`"), error));
            }
            let message = format!(
                "template `{name}` has vanished: {} does not exist on the runner any more: put it back, or use another template",
                path.display()
            );
            return Err(BackendError::Refused { reason: reason::TEMPLATE_VANISHED, message });
        }
        let plain = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
        let candidates = [""].into_iter().chain(ARCHIVES).map(|end| self.folder.join(format!("{name}{end}")));
        let found = candidates.into_iter().find(|path| plain && path.exists());
        found.ok_or_else(|| {
            let message = format!("template `{name}` does not exist: use one of {}", self.names().join(", "));
            BackendError::Refused { reason: reason::TEMPLATE_UNKNOWN, message }
        })
    }

    /// Unpacks an archive into a directory named by its content. A crash leaves an unfinished directory of
    /// another name, which is made anew.
    fn unpack(&self, name: &str, archive: &Path) -> Result<PathBuf, BackendError> {
        let failed = |error: io::Error| BackendError::failed(format!("unpack template `{name}`"), error);
        let digest = digest(archive).map_err(failed)?;
        let target = self.unpacked.join(&digest);
        if target.is_dir() {
            return Ok(target);
        }
        let fresh = self.unpacked.join(format!("{digest}.new.{}", std::process::id()));
        let _ = fs::remove_dir_all(&fresh);
        let unpack = || -> io::Result<()> {
            fs::create_dir(&fresh)?;
            let file = io::BufReader::new(fs::File::open(archive)?);
            let reader: Box<dyn Read> = if archive.extension().is_some_and(|end| end == "tar") {
                Box::new(file)
            } else {
                Box::new(flate2::read::GzDecoder::new(file))
            };
            let mut tar = tar::Archive::new(reader);
            tar.set_preserve_permissions(true);
            tar.set_preserve_ownerships(self.as_root);
            tar.set_unpack_xattrs(false);
            tar.unpack(&fresh)?;
            fs::rename(&fresh, &target)
        };
        match unpack() {
            Ok(()) => Ok(target),
            // Another create unpacked the same at the same time.
            Err(_) if target.is_dir() => Ok(target),
            Err(error) => {
                let _ = fs::remove_dir_all(&fresh);
                Err(failed(error))
            }
        }
    }
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = io::BufReader::with_capacity(READ_BYTES, fs::File::open(path)?);
    loop {
        let chunk = io::BufRead::fill_buf(&mut file)?;
        if chunk.is_empty() {
            break;
        }
        hasher.update(chunk);
        let read = chunk.len();
        io::BufRead::consume(&mut file, read);
    }
    Ok(hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_found_by_name_and_unpacked_once() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let elsewhere = state.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("fresh");
        let configured = BTreeMap::from([("given".to_owned(), elsewhere.clone())]);
        let templates = Templates::open(state.path(), configured, false).expect("writable");
        fs::create_dir(state.path().join("templates/folder")).expect("fresh");
        let mut tar = tar::Builder::new(fs::File::create(state.path().join("templates/packed.tar")).expect("fresh"));
        tar.append_data(&mut tar_header(4), "bin/tool", &b"tool"[..]).expect("writable");
        tar.finish().expect("writable");
        assert_eq!(templates.names(), ["host", "folder", "given", "packed"]);
        let first = templates.layers("packed").expect("unpacked");
        assert_eq!(fs::read(first[0].source.join("bin/tool")).expect("unpacked"), b"tool");
        assert_eq!(templates.layers("packed").expect("unpacked"), first);
        fs::remove_dir(&elsewhere).expect("ours");
        let vanished = templates.layers("given").expect_err("vanished");
        assert!(matches!(&vanished, BackendError::Refused { reason: reason::TEMPLATE_VANISHED, .. }), "{vanished}");
        for unknown in ["nothing", "../elsewhere", "", ".hidden"] {
            let error = templates.layers(unknown).expect_err("unknown");
            assert!(error.to_string().contains("host, folder, given, packed"), "{error}");
        }
    }

    fn tar_header(size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o755);
        header
    }
}
