//! One module a command, or a few that belong together.

mod bench;
mod config;
mod copy;
mod create;
mod doctor;
mod environment;
mod exec;
mod jobs;
mod keys;
mod logs;
mod operations;
mod ports;
mod processes;
mod run;
mod runner;
mod sandboxes;
mod save;
mod serve;
mod source;
mod ssh;
mod usage;

use clap::CommandFactory;
use dispense_client::Error;

use crate::args::{Cli, Command};

/// Runs the command; the exit code, or why there is none.
pub(crate) async fn run(cli: Cli) -> Result<u8, Error> {
    let global = &cli.global;
    match cli.command {
        Command::Run(args) => run::run(global, args).await,
        Command::Create(args) => create::create(global, args).await,
        Command::List(args) => sandboxes::list(global, args).await,
        Command::Get(args) => sandboxes::get(global, args).await,
        Command::Start(args) => sandboxes::start(global, args).await,
        Command::Stop(args) => sandboxes::stop(global, args).await,
        Command::Delete(args) => sandboxes::delete(global, args).await,
        Command::Exec(args) => exec::exec(global, args).await,
        Command::Attach(args) => exec::attach(global, args).await,
        Command::Logs(args) => logs::logs(global, args).await,
        Command::Usage(args) => usage::usage(global, args).await,
        Command::Env(args) => environment::env(global, args).await,
        Command::Ps(args) => processes::list(global, args).await,
        Command::Shell(args) => exec::shell(global, args).await,
        Command::Cp(args) => copy::copy(global, args).await,
        Command::Save(args) => save::save(global, args).await,
        Command::Preview(args) => ports::preview(global, args).await,
        Command::Port(args) => ports::port(global, args).await,
        Command::Ssh(args) => ssh::ssh(global, args).await,
        Command::SshKey(args) => ssh::keys(global, args).await,
        Command::Jobs(args) => jobs::jobs(global, args).await,
        Command::Up(args) => serve::up(global, args).await,
        Command::Server(args) => serve::server(global, args).await,
        Command::Runner(args) => runner::runner(global, args).await,
        Command::Key(args) => keys::key(global, args).await,
        Command::Events(args) => operations::events(global, args).await,
        Command::Audit(args) => operations::audit(global, args).await,
        Command::Config(args) => config::config(global, args).await,
        Command::Openapi => {
            crate::show::json(&dispense_server::openapi());
            Ok(0)
        }
        Command::Doctor => doctor::doctor(global).await,
        Command::Bench(args) => bench::bench(global, args).await,
        Command::Embedded => serve::embedded(global).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "dispense", &mut std::io::stdout());
            Ok(0)
        }
    }
}
