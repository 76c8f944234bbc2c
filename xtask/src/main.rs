//! The project's only door for checks, tests, benches and releases: `cargo xtask --help`.

mod codegen;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Checks, tests, benches and releases of Dispense")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generates the Rust types of `proto/` into `crates/api/src/generated`
    Codegen {
        /// Fail when what is committed differs, and write nothing
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Codegen { check } => codegen::run(check),
    }
}
