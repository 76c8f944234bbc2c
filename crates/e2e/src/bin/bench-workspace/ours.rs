//! `dispense up` with one sandbox that has no network, in a directory of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dispense_e2e::{host, wait};
use tempfile::TempDir;

/// Of the sandbox.
pub(crate) const NAME: &str = "bench";

pub(crate) struct Ours {
    child: Child,
    folder: TempDir,
    pub(crate) address: String,
    pub(crate) key: String,
}

impl Ours {
    pub(crate) fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("dispense-bench-").tempdir()?;
        let any = "127.0.0.1:0";
        let log = File::create(folder.path().join("up.log"))?;
        let mut up = command(folder.path())?;
        up.args(["up", "--address", any, "--runner-address", any, "--ssh-address", any]);
        up.env("DISPENSE_REQUESTS_PER_MINUTE", "1000000000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = up.spawn().context("failed to start `dispense up`")?;
        let mut ours = Self { child, folder, address: String::new(), key: String::new() };
        let shown = || ours.dispense(&["config", "show", "--output", "json"]).unwrap_or_default();
        wait::until("a runner is available", Duration::from_secs(30), shown, |text| text.contains("runnerUrl"));
        let shown: serde_json::Value = serde_json::from_str(&ours.dispense(&["config", "show", "--output", "json"])?)?;
        let address = shown["url"].as_str().with_context(|| format!("no url in {shown}"))?;
        ours.address = address.trim_start_matches("http://").to_owned();
        let key = fs::read_to_string(ours.folder.path().join("dispense/admin.key"))?;
        ours.key = key.trim().to_owned();
        ours.dispense(&["create", "--name", NAME, "--network", "none"])?;
        Ok(ours)
    }

    /// Where its files and its `.ssh` are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn port(&self) -> &str {
        self.address.rsplit_once(':').map_or("", |(_, port)| port)
    }

    /// Runs a command; its output.
    pub(crate) fn dispense(&self, args: &[&str]) -> Result<String> {
        let output = command(self.folder.path())?.args(args).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "dispense {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Resident memory of server and runner in MB.
    pub(crate) fn memory_mb(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap_or_default();
        let pages: f64 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0.0);
        pages * rustix::param::page_size() as f64 / f64::from(1 << 20)
    }
}

impl Drop for Ours {
    /// Also of a benchmark that failed: nothing of it is left.
    fn drop(&mut self) {
        // What fails here is told by what is left.
        let _ = self.dispense(&["delete", NAME]);
        host::terminate_if_there(self.child.id());
        let _ = self.child.wait();
    }
}

fn command(folder: &Path) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", folder).env("XDG_DATA_HOME", folder).env("XDG_CONFIG_HOME", folder);
    Ok(command)
}

/// The release build beside this program.
fn binary() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("dispense");
    ensure!(path.exists(), "{} is not there: use `cargo xtask bench workspace`", path.display());
    Ok(path)
}
