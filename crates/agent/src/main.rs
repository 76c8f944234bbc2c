//! The agent as a program: flags are variables of the environment, see [`dispense_agent::Config`].

use std::process::ExitCode;

use dispense_agent::{listener, run, take_config};
use tracing_subscriber::EnvFilter;

/// Blocking work is files only; each thread costs a stack while it lives.
const BLOCKING_THREADS_MAX: usize = 16;
/// An idle sandbox has no threads but one.
const THREAD_KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(2);

fn main() -> ExitCode {
    if let Some(ended) = dispense_agent::serve_sftp(std::env::args_os()) {
        return ended;
    }
    let filter = EnvFilter::try_from_env("AGENT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    // Before anything opens a descriptor, so that the inherited one is what it says.
    let listener = listener();
    let config = take_config();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build();
    let result = runtime.and_then(|runtime| runtime.block_on(run(config, listener?)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the agent ends");
            ExitCode::FAILURE
        }
    }
}
