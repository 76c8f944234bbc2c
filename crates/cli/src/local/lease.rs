//! The client's side: finds the local server, starts an embedded one when there is none, and holds on to it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use dispense_client::{Code, Error};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

use super::{LocalInfo, socket};
use crate::failure::local;

/// The reason of a data directory that another server has, as the embedded server tells it.
pub(super) const IN_USE: &str = "data_dir_in_use";
/// A server that is there answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// From the start of an embedded server to its being ready; unpacking its parts takes well under a second.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// While another server starts or ends.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// Where the embedded server logs to.
const LOG_FILE: &str = "embedded.log";

/// A hold on a local server.
pub(crate) struct Lease {
    pub(crate) info: LocalInfo,
    _stream: BufReader<UnixStream>,
}

/// Takes a lease on the server of `data_dir`; starts an embedded one when none runs.
pub(crate) async fn take(data_dir: &Path) -> Result<Lease, Error> {
    let deadline = tokio::time::Instant::now() + START_TIMEOUT;
    loop {
        if let Some(lease) = find(data_dir).await? {
            return Ok(lease);
        }
        match start(data_dir).await {
            Ok(()) => {}
            // Another one is starting, or is about to end.
            Err(error) if error.reason == IN_USE && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(RETRY_DELAY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A lease on a server that runs; `None` when none does.
pub(crate) async fn find(data_dir: &Path) -> Result<Option<Lease>, Error> {
    let failed = |error: &io::Error| local(format_args!("reach the local server of {}", data_dir.display()), error);
    let away = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
    let (_folder, path) = match socket::path(data_dir) {
        Ok(found) => found,
        Err(error) if away(&error) => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) if away(&error) => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    match tokio::time::timeout(ANSWER_TIMEOUT, stream.read_line(&mut line)).await {
        // It was about to end.
        Ok(Ok(0)) => Ok(None),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Ok(Err(error)) => Err(failed(&error)),
        Ok(Ok(_)) => match serde_json::from_str(&line) {
            Ok(info) => Ok(Some(Lease { info, _stream: stream })),
            Err(error) => Err(local("understand the local server: is it of another version?", &error)),
        },
        Err(_) => Err(Error::new(
            Code::DeadlineExceeded,
            "local_server_silent",
            format!(
                "the local server of {} does not answer: see {LOG_FILE} there, or end its process",
                data_dir.display()
            ),
        )),
    }
}

/// Starts an embedded server and waits until it is ready.
async fn start(data_dir: &Path) -> Result<(), Error> {
    let failed = |action: &'static str| move |error: io::Error| local(action, &error);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(|error| {
        local(format_args!("make the data directory {} (choose another with --data-dir)", data_dir.display()), &error)
    })?;
    let log = data_dir.join(LOG_FILE);
    let log_file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
    let log_file = log_file.map_err(|error| {
        local(format_args!("open {} (choose another directory with --data-dir)", log.display()), &error)
    })?;
    let program = std::env::current_exe().map_err(failed("find this program"))?;
    let mut child = Command::new(program)
        .arg("__embedded")
        .arg("--data-dir")
        .arg(data_dir)
        .env_remove("DISPENSE_URL")
        .env_remove("DISPENSE_API_KEY")
        // It must not keep the user's directory busy.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .spawn()
        .map_err(failed("start the local server"))?;
    let stdout = child.stdout.take().ok_or_else(|| Error::new(Code::Internal, "pipe", "a piped child has a pipe"))?;
    let mut line = String::new();
    let mut stdout = BufReader::new(stdout);
    let ready = tokio::time::timeout(START_TIMEOUT, stdout.read_line(&mut line)).await;
    match ready {
        Ok(Ok(count)) if count > 0 => told(&line),
        Ok(_) => Err(Error::new(
            Code::Internal,
            "local_server",
            format!("the local server ended while it started: see {}", log.display()),
        )),
        Err(_) => {
            // It is ours and of no use.
            if let Err(error) = child.start_kill() {
                tracing::debug!(%error, "kill");
            }
            let secs = START_TIMEOUT.as_secs();
            let message = format!("the local server was not ready within {secs} s: see {}", log.display());
            Err(Error::new(Code::DeadlineExceeded, "local_server", message))
        }
    }
}

/// What an embedded server says when it has started, or cannot.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Announcement {
    /// Clients may come.
    Ready,
    /// They will be told this.
    Failed { reason: String, message: String },
}

impl Announcement {
    /// Tells the client that waits on the other end of stdout.
    pub(crate) fn tell(&self) {
        use std::io::Write;
        let line = serde_json::to_string(self).unwrap_or_default();
        // A client that is gone needs no answer.
        let _ = writeln!(io::stdout(), "{line}");
    }
}

fn told(line: &str) -> Result<(), Error> {
    match serde_json::from_str(line) {
        Ok(Announcement::Ready) => Ok(()),
        Ok(Announcement::Failed { reason, message }) => Err(Error::new(Code::FailedPrecondition, reason, message)),
        Err(error) => Err(local("understand the local server", &error)),
    }
}
