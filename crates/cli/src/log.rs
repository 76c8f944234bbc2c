//! The log: lines on stderr, without secrets; those of a server as its settings say.

mod json;
mod redact;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

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
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Redacted(stderr()?)).with_ansi(false);
    // Nobody may read the log any more: saying so would panic, and whoever wrote the line would not go on.
    let log = log.log_internal_errors(false);
    if json {
        log.event_format(JsonLine).init()
    } else {
        log.init()
    }
    Ok(())
}

/// Without the standard library's lock: threads that log at the same time would wait for each other's system call, and a
/// line goes out by one call, which the kernel does not mix with another.
fn stderr() -> Result<Arc<File>, Error> {
    let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(|error| local("open the log", &error))?;
    Ok(Arc::new(File::from(stderr)))
}
