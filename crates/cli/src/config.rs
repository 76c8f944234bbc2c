//! The configuration of this command: which server, with which key. Flag beats variable beats file.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use dispense_client::Error;
use serde::{Deserialize, Serialize};

use crate::failure::{local, usage};

/// The owner's alone: it has a key.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_pin: Option<String>,
}

/// `$XDG_CONFIG_HOME/dispense/config.json`.
pub(crate) fn path() -> Result<PathBuf, Error> {
    Ok(base("XDG_CONFIG_HOME", ".config")?.join("dispense/config.json"))
}

/// `$XDG_CONFIG_HOME/dispense/server.yaml`, the settings of a server.
pub(crate) fn server_file() -> Result<PathBuf, Error> {
    Ok(base("XDG_CONFIG_HOME", ".config")?.join("dispense/server.yaml"))
}

/// `$XDG_DATA_HOME/dispense`.
pub(crate) fn default_data_dir() -> Result<PathBuf, Error> {
    Ok(base("XDG_DATA_HOME", ".local/share")?.join("dispense"))
}

/// Where this user's files are.
pub(crate) fn home() -> Result<PathBuf, Error> {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    home.ok_or_else(|| usage("HOME is not set: it says where ~/.ssh is"))
}

fn base(variable: &str, below_home: &str) -> Result<PathBuf, Error> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set(variable)
        .or_else(|| set("HOME").map(|home| home.join(below_home)))
        .ok_or_else(|| usage(format!("neither HOME nor {variable} is set: set one, or use --data-dir and --url")))
}

impl Config {
    /// Reads the file; an absent one is empty.
    pub(crate) fn load() -> Result<Self, Error> {
        let path = match path() {
            Ok(path) => path,
            // Without a home there is no file; flags and variables still hold.
            Err(_) => return Ok(Self::default()),
        };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(local(format_args!("read {}", path.display()), &error)),
        };
        serde_json::from_str(&text).map_err(|error| local(format_args!("read {}", path.display()), &error))
    }

    /// Writes the file, whole or not at all.
    pub(crate) fn save(&self) -> Result<PathBuf, Error> {
        let path = path()?;
        let failed = |error: &io::Error| local(format_args!("write {}", path.display()), error);
        let folder = path.parent().unwrap_or(&path);
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(folder).map_err(|error| failed(&error))?;
        let part = path.with_extension("part");
        let write = || {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&part)?;
            file.write_all(serde_json::to_string_pretty(self).unwrap_or_default().as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, &path)
        };
        write().map_err(|error| failed(&error))?;
        Ok(path)
    }
}
