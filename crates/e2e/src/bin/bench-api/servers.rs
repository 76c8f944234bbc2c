//! The servers that are measured, each a process of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use dispense_e2e::clients::Clients;
use dispense_e2e::postgres::Postgres;
use tempfile::TempDir;

/// How a server is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    Node,
    /// Keys, limits, logs, metrics, SQLite: what an operator has.
    Whole,
    WithoutLimits,
    WithoutLog,
    WithoutKeys,
    Postgres,
}

impl Setup {
    /// The one that the others are compared with first.
    pub(crate) fn all() -> [Self; 6] {
        [Self::Node, Self::Whole, Self::WithoutLimits, Self::WithoutLog, Self::WithoutKeys, Self::Postgres]
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Node => "node, @grpc/grpc-js, from memory, nothing around it",
            Self::Whole => "dispense: keys, limits, JSON log, metrics, SQLite",
            Self::WithoutLimits => "dispense without limits",
            Self::WithoutLog => "dispense without the access log",
            Self::WithoutKeys => "dispense without API keys",
            Self::Postgres => "dispense on PostgreSQL",
        }
    }

    fn variables(self) -> Vec<(&'static str, &'static str)> {
        // More than anybody calls: the limiter works, and refuses nothing.
        let mut all = vec![
            ("DISPENSE_REQUESTS_PER_MINUTE", "1000000000"),
            ("DISPENSE_RATE_LIMITING_ENABLED", "true"),
            ("DISPENSE_LOG_FORMAT", "json"),
            ("DISPENSE_LOG", "info"),
        ];
        match self {
            Self::Node | Self::Whole | Self::Postgres => {}
            Self::WithoutLimits => all[1].1 = "false",
            Self::WithoutLog => all[3].1 = "warn",
            Self::WithoutKeys => all.push(("DISPENSE_API_KEY_REQUIRED", "false")),
        }
        all
    }
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    pub(crate) key: String,
    _folder: TempDir,
    _postgres: Option<Postgres>,
}

impl Server {
    /// Starts it; `None` where what it needs is not installed.
    pub(crate) fn start(setup: &Setup) -> Result<Option<Self>> {
        let folder = tempfile::Builder::new().prefix("dispense-bench-").tempdir()?;
        if *setup == Setup::Node {
            let Some(clients) = Clients::available() else { return Ok(None) };
            let (child, line) = first_line(&mut clients.node("bench-server.mjs"))?;
            let address = format!("127.0.0.1:{}", line.trim());
            return Ok(Some(Self { child, address, key: "none".into(), _folder: folder, _postgres: None }));
        }
        let mut command = Command::new(binary()?);
        command.args(["server", "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"]);
        command.args(["--ssh-address", "127.0.0.1:0", "--data-dir"]).arg(folder.path());
        command.envs(setup.variables()).stderr(File::create(folder.path().join("server.log"))?);
        let postgres = match setup {
            Setup::Postgres => match Postgres::start() {
                None => return Ok(None),
                postgres => postgres,
            },
            _ => None,
        };
        if let Some(postgres) = &postgres {
            command.env("DISPENSE_DATABASE_URL", postgres.url());
        }
        let (child, line) = first_line(&mut command)?;
        let url = line.split_whitespace().find_map(|word| word.strip_prefix("http://"));
        let address = url.with_context(|| format!("`dispense server` said: {line}"))?.to_owned();
        let key = fs::read_to_string(folder.path().join("admin.key"))?.trim().to_owned();
        Ok(Some(Self { child, address, key, _folder: folder, _postgres: postgres }))
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap_or_default();
        let pages: u64 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        pages * rustix::param::page_size() as u64
    }
}

impl Drop for Server {
    /// Also of a benchmark that failed: nothing of it is left.
    fn drop(&mut self) {
        dispense_e2e::host::terminate_if_there(self.child.id());
        // It is ours, and was just asked to end.
        let _ = self.child.wait();
    }
}

/// Starts a server and waits for the line that says where it serves.
fn first_line(command: &mut Command) -> Result<(Child, String)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("failed to start a server")?;
    let mut output: BufReader<ChildStdout> = BufReader::new(child.stdout.take().context("piped")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    Ok((child, line))
}

/// The release build beside this program.
fn binary() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("dispense");
    anyhow::ensure!(path.exists(), "{} is not there: use `cargo xtask bench api`", path.display());
    Ok(path)
}
