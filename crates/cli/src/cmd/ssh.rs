//! `dispense ssh`: the system's own ssh(1), with a certificate for the sandbox and the server's authority, so that it
//! asks nothing. `dispense ssh-key`: registered public keys.
//!
//! ```text
//! ~/.ssh/dispense/id_ed25519          this user's key for sandboxes
//!                NAME-cert.pub        its certificate, of minutes
//!                NAME.known_hosts     the server's authority
//!                config               a block for each saved sandbox; ~/.ssh/config includes it
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dispense_client::{Client, Error, v1};
use serde::Serialize;

use crate::args::ssh::{SshArgs, SshKeyArgs, SshKeyCommand};
use crate::args::{Global, Output};
use crate::config::home;
use crate::endpoint::{connect, server_host};
use crate::failure::{local, usage};
use crate::show::{self, rfc3339, say};

/// Before a sandbox's name in the configuration of ssh.
const HOST_PREFIX: &str = "dispense-";

/// What ssh needs for one sandbox, in files.
struct Files {
    folder: PathBuf,
    key: PathBuf,
    host: String,
    connection: v1::SshConnection,
}

impl Files {
    /// Gets a certificate and writes it.
    async fn prepare(global: &Global, client: &Client, sandbox: &str) -> Result<Self, Error> {
        let folder = home()?.join(".ssh/dispense");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| local(format_args!("make {}", folder.display()), &error))?;
        let key = folder.join("id_ed25519");
        let public = public_key(&key)?;
        let connection = client.connect_ssh(sandbox, &public).await?;
        let files = Self { folder, key, host: server_host(global)?, connection };
        let authority =
            format!("@cert-authority {} {}\n", files.connection.host_alias, files.connection.host_authority.trim());
        write(&files.known_hosts(), &authority)?;
        write(&files.certificate(), &format!("{}\n", files.connection.certificate.trim()))?;
        Ok(files)
    }

    fn known_hosts(&self) -> PathBuf {
        self.folder.join(format!("{}.known_hosts", self.connection.sandbox))
    }

    fn certificate(&self) -> PathBuf {
        self.folder.join(format!("{}-cert.pub", self.connection.sandbox))
    }

    /// The options, as lines of a configuration have them.
    fn options(&self) -> Vec<(&'static str, String)> {
        let quoted = |path: &Path| format!("\"{}\"", path.display());
        vec![
            ("HostName", self.host.clone()),
            ("Port", self.connection.port.to_string()),
            ("User", self.connection.sandbox.clone()),
            ("HostKeyAlias", self.connection.host_alias.clone()),
            ("UserKnownHostsFile", quoted(&self.known_hosts())),
            ("GlobalKnownHostsFile", "/dev/null".to_owned()),
            ("StrictHostKeyChecking", "yes".to_owned()),
            ("IdentityFile", quoted(&self.key)),
            ("CertificateFile", quoted(&self.certificate())),
            ("IdentitiesOnly", "yes".to_owned()),
        ]
    }
}

/// Connects, or writes what others need to connect.
pub(super) async fn ssh(global: &Global, args: SshArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let files = Files::prepare(global, &connected.client, &args.sandbox).await?;
    if args.renew {
        return Ok(0);
    }
    if args.save_config {
        save(global, &files)?;
        say!("ssh {HOST_PREFIX}{}", files.connection.sandbox);
        return Ok(0);
    }
    let mut command = Command::new("ssh");
    for (name, value) in files.options() {
        command.arg("-o").arg(format!("{name}={value}"));
    }
    // ssh takes options before the host, and its command after.
    let flags = args.args.iter().take_while(|arg| arg.starts_with('-')).count();
    let (flags, words) = args.args.split_at(flags);
    command.args(flags).arg(&files.host).args(words);
    Err(local("run ssh (install openssh-client)", &command.exec()))
}

/// The user's public key for sandboxes; made at the first use.
fn public_key(key: &Path) -> Result<String, Error> {
    let public = key.with_extension("pub");
    if !key.exists() {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "dispense", "-f"])
            .arg(key)
            .stdin(Stdio::null())
            .status()
            .map_err(|error| local("run ssh-keygen (install openssh-client)", &error))?;
        if !made.success() {
            return Err(local("make a key", &io::Error::other(format!("ssh-keygen ended with {made}"))));
        }
    }
    fs::read_to_string(&public).map_err(|error| local(format_args!("read {}", public.display()), &error))
}

/// Writes a block for the sandbox, in the place of an older one.
fn save(global: &Global, files: &Files) -> Result<(), Error> {
    let (path, name) = (files.folder.join("config"), &files.connection.sandbox);
    let host = format!("{HOST_PREFIX}{name}");
    let mut block = format!("Match originalhost {host} exec \"{}\"\nHost {host}\n", renewal(global, name)?);
    for (option, value) in files.options() {
        block.push_str(&format!("  {option} {value}\n"));
    }
    let marks = (format!("# {host}: begin\n"), format!("# {host}: end\n"));
    let old = fs::read_to_string(&path).unwrap_or_default();
    let mut text = match (old.find(&marks.0), old.find(&marks.1)) {
        (Some(begin), Some(end)) if begin < end => format!("{}{}", &old[..begin], &old[end + marks.1.len()..]),
        _ => old,
    };
    text.push_str(&format!("{}{block}{}", marks.0, marks.1));
    write(&path, &text)?;
    include(&path)
}

/// The command that gets a fresh certificate, for the server that this one was got from.
fn renewal(global: &Global, name: &str) -> Result<String, Error> {
    let program = std::env::current_exe().map_err(|error| local("find this program", &error))?;
    let mut words = vec![program.display().to_string()];
    if let Some(url) = &global.url {
        words.extend(["--url".to_owned(), url.clone()]);
    }
    if let Some(folder) = &global.data_dir {
        let folder = std::path::absolute(folder).map_err(|error| local("resolve --data-dir", &error))?;
        words.extend(["--data-dir".to_owned(), folder.display().to_string()]);
    }
    words.extend(["ssh", "--renew", name].map(str::to_owned));
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    match words.iter().find(|word| !word.chars().all(safe)) {
        // It stands between two kinds of quotes already.
        Some(word) => Err(usage(format!("`{word}` has characters that cannot stand in ssh's configuration"))),
        None => Ok(words.join(" ")),
    }
}

/// Makes the user's configuration include ours, before everything else: a later block would only add to it.
fn include(path: &Path) -> Result<(), Error> {
    let own = home()?.join(".ssh/config");
    let line = format!("Include \"{}\"\n", path.display());
    let text = fs::read_to_string(&own).unwrap_or_default();
    if text.contains(&line) {
        return Ok(());
    }
    write(&own, &format!("{line}{text}"))
}

/// Writes a file whole or not at all; ssh refuses what others may write.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    let fresh = path.with_extension("new");
    let written = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&fresh, path)
    };
    written().map_err(|error| local(format_args!("write {}", path.display()), &error))
}

#[derive(Serialize)]
struct KeysJson {
    keys: Vec<KeyJson>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyJson {
    fingerprint: String,
    public_key: String,
    created_at: Option<String>,
}

impl From<v1::SshKey> for KeyJson {
    fn from(key: v1::SshKey) -> Self {
        let created_at = key.created_at.as_ref().map(rfc3339);
        Self { fingerprint: key.fingerprint, public_key: key.public_key, created_at }
    }
}

/// Registers, lists and removes public keys.
pub(super) async fn keys(global: &Global, args: SshKeyArgs) -> Result<u8, Error> {
    let client = connect(global).await?;
    let client = &client.client;
    let keys = match args.command {
        SshKeyCommand::Remove { fingerprint } => return client.remove_ssh_key(&fingerprint).await.map(|()| 0),
        SshKeyCommand::List => client.ssh_keys().await?,
        SshKeyCommand::Add { file } => {
            let path = file.map_or_else(|| home().map(|home| home.join(".ssh/id_ed25519.pub")), Ok)?;
            let text =
                fs::read_to_string(&path).map_err(|error| local(format_args!("read {}", path.display()), &error))?;
            if text.contains("PRIVATE KEY") {
                return Err(usage(format!("{} is a private key: give the file that ends in .pub", path.display())));
            }
            vec![client.add_ssh_key(&text).await?]
        }
    };
    match global.output {
        Output::Json => show::json(&KeysJson { keys: keys.into_iter().map(KeyJson::from).collect() }),
        Output::Table => {
            let mut table = show::table(&["FINGERPRINT", "KEY", "AGE"]);
            for key in keys {
                let comment = key.public_key.split_whitespace().nth(2).unwrap_or_default().to_owned();
                let age = key.created_at.as_ref().map(show::age).unwrap_or_default();
                table.add_row([key.fingerprint, comment, age]);
            }
            show::print(&table);
        }
    }
    Ok(0)
}
