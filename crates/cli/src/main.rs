//! The `dispense` binary: flags, logs, and the way to each command.

mod args;
mod cmd;
mod config;
mod endpoint;
mod failure;
mod local;
mod session;
mod show;
mod units;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};

/// What is logged, e.g. `info` or `dispense_server=debug`.
const LOG_VARIABLE: &str = "DISPENSE_LOG";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let default = if cli.command.is_service() { "info" } else { "error" };
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("dispense: failed to start: {error}");
            return ExitCode::from(failure::OURS);
        }
    };
    let output = cli.global.output;
    let runs_commands =
        matches!(cli.command, Command::Run(_) | Command::Exec(_) | Command::Shell(_) | Command::Attach(_));
    let result = runtime.block_on(cmd::run(cli));
    // A thread that reads a terminal cannot be stopped; the process ends without it.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => failure::report(&error, output, runs_commands),
    }
}
