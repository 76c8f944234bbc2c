//! The `dispense` binary: flags, logs, and the way to each command.

mod args;
mod cmd;
mod config;
mod endpoint;
mod failure;
mod local;
mod log;
mod session;
mod settings;
mod show;
mod telemetry;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Command};
use telemetry::Telemetry;

/// A server under load spends a seventh of its time in the allocator of the C library (ADR 0025).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let parsed = without_empty_variables(Cli::command()).try_get_matches().and_then(|matches| {
        let name = matches.subcommand_name().unwrap_or_default().to_owned();
        Ok((name, Cli::from_arg_matches(&matches)?))
    });
    let (name, cli) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return failure::misused(&error),
    };
    if let Err(error) = log::start(&cli.command) {
        return failure::report(&error, cli.global.output, false);
    }
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
    let telemetry = {
        let _inside = runtime.enter();
        match Telemetry::start(&cli.command, &name) {
            Ok(telemetry) => telemetry,
            Err(error) => return failure::report(&error, output, runs_commands),
        }
    };
    let result = runtime.block_on(cmd::run(cli));
    telemetry.end(result.is_err());
    // A thread that reads a terminal cannot be stopped; the process ends without it.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => failure::report(&error, output, runs_commands),
    }
}

/// A variable that is empty is as good as none, as everywhere.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if is_empty(name) => arg.env(None::<&'static str>),
        _ => arg,
    });
    command.mut_subcommands(without_empty_variables)
}
