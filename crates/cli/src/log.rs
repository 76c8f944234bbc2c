//! The log: lines on stderr, without secrets; those of a server as its settings say.

mod json;
mod redact;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, RwLock};

use dispense_client::Error;
use tracing_subscriber::EnvFilter;

use crate::args::Command;
use crate::failure::local;
use json::JsonLine;
use redact::Redacted;

/// What a command logs that is no server, e.g. `debug`.
const VARIABLE: &str = "DISPENSE_LOG";

/// Everything that is logged from here on goes there.
pub(crate) fn start(command: &Command) -> Result<(), Error> {
    let (filter, json) = match command.settings()? {
        Some(settings) => (settings.log_filter()?, settings.log_is_json()?),
        None => {
            let default = if command.is_service() { "info" } else { "error" };
            (EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(default)), false)
        }
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Redacted(Stderr::open()?)).with_ansi(false);
    // Nobody may read the log any more: saying so would panic, and whoever wrote the line would not go on.
    let log = log.log_internal_errors(false);
    if json {
        log.event_format(JsonLine).init()
    } else {
        log.init()
    }
    Ok(())
}

/// Longer lines may be cut by others on their way into a pipe (`PIPE_BUF`).
const WHOLE_MAX_BYTES: usize = 4096;

/// Standard error without the standard library's lock, by which threads that log at the same time wait for each other's
/// system call: a line goes out by one, which the kernel does not mix with another. Only long lines go alone.
struct Stderr {
    file: File,
    alone: RwLock<()>,
}

impl Stderr {
    fn open() -> Result<Arc<Self>, Error> {
        let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(|error| local("open the log", &error))?;
        Ok(Arc::new(Self { file: File::from(stderr), alone: RwLock::new(()) }))
    }
}

impl Write for &Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (_together, _alone);
        if line.len() <= WHOLE_MAX_BYTES {
            _together = self.alone.read();
        } else {
            _alone = self.alone.write();
        }
        (&self.file).write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
