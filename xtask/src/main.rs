//! The project's only door for checks, tests, benches and releases: `cargo xtask --help`.

mod clients;
mod codegen;
mod command;
mod dist;
mod fuzz;
mod tidy;
mod vm;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand};

use command::{cargo, found};

#[derive(Parser)]
#[command(about = "Checks, tests, benches and releases of Dispense")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Format, lints, generated code, documentation, the rules of the house, licences and advisories
    Check,
    /// Every test; further words go to the test runner
    Test {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Measures: `spine` on this machine, `peers` beside bwrap, crun, runc, podman and docker,
    /// `scale` with thousands of simulated runners
    Bench {
        #[arg(value_enum, default_value = "spine")]
        what: Bench,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Simulates: real server, runners and client, with crashes and partitions that the seeds decide
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Kills and stops real processes under load
    Chaos {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Fuzzes the parsers of what comes from outside (needs `cargo install cargo-fuzz`)
    Fuzz {
        /// For each target
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// All, when none is named
        targets: Vec<String>,
    },
    /// Installs the clients of other makes that tests drive, below the target directory, from PyPI and npm
    Clients,
    /// Tests the native backend in a virtual machine with cgroups of version 2 (needs root, debootstrap and QEMU)
    Vm {
        /// Which Debian
        #[arg(long, default_value = "bookworm")]
        suite: String,
        /// Test programs, or PROGRAM::TEST; without any, those that depend on the machine
        tests: Vec<String>,
    },
    /// The rules of the house that a program can check
    Tidy,
    /// Generates the Rust types of `proto/` into `crates/api/src/generated`
    Codegen {
        /// Fail when what is committed differs, and write nothing
        #[arg(long)]
        check: bool,
    },
    /// Builds what a release page ships, into `dist/`
    Dist,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Bench {
    Spine,
    Peers,
    Scale,
    Api,
    Workspace,
}

fn main() -> Result<()> {
    match Args::parse().task {
        Task::Check => check(),
        Task::Test { words } => test(&words),
        Task::Bench { what, words } => bench(what, &words),
        Task::Sim { words } => tool("sim", &words),
        Task::Chaos { words } => {
            cargo(["build", "--package", "dispense-cli"]).run()?;
            tool("chaos", &words)
        }
        Task::Fuzz { seconds, targets } => fuzz::run(root(), seconds, &targets),
        Task::Clients => clients::install(root()),
        Task::Vm { suite, tests } => vm::run(&suite, &tests),
        Task::Tidy => tidy::run(root()),
        Task::Codegen { check } => codegen::run(root(), check),
        Task::Dist => dist::run(root()),
    }
}

/// The root of the tree.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the root of the tree")
}

fn check() -> Result<()> {
    cargo(["fmt", "--all", "--check"]).run()?;
    codegen::run(root(), true)?;
    tidy::run(root())?;
    cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).run()?;
    cargo(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings").run()?;
    if found("cargo-deny") {
        cargo(["deny", "check", "bans", "licenses", "sources"]).run()?;
    } else {
        println!("skipped: licences and sources (cargo-deny is not installed: `cargo install cargo-deny`)");
    }
    Ok(())
}

/// The tests of the system once more, on the other store.
fn on_postgres() -> Result<()> {
    if !Path::new("/usr/lib/postgresql").is_dir() {
        println!("skipped: the tests on PostgreSQL (it is not installed: `apt-get install postgresql`)");
        return Ok(());
    }
    let tests = ["access", "bad_days", "control", "events", "fleet"];
    let tests = tests.iter().flat_map(|test| ["--test", test]);
    cargo(["nextest", "run", "--package", "dispense-e2e"]).args(tests).env("DISPENSE_TEST_STORE", "postgres").run()
}

fn test(words: &[String]) -> Result<()> {
    // The end-to-end tests drive the binary, which they find beside themselves.
    cargo(["build", "--package", "dispense-cli"]).run()?;
    if found("cargo-nextest") {
        cargo(["nextest", "run", "--workspace"]).args(words).run()?;
        on_postgres()?;
        // nextest leaves out the examples in the documentation.
        return cargo(["test", "--workspace", "--doc", "--quiet"]).run();
    }
    cargo(["test", "--workspace"]).args(words).run()
}

fn bench(what: Bench, words: &[String]) -> Result<()> {
    cargo(["build", "--release", "--package", "dispense-cli"]).run()?;
    match what {
        Bench::Spine => command::Step::new(release_dir().join("dispense")).args(["bench"]).args(words).run(),
        Bench::Scale => {
            cargo(["run", "--release", "--package", "dispense-e2e", "--bin", "bench-scale", "--"]).args(words).run()
        }
        Bench::Api => {
            clients::install(root())?;
            cargo(["run", "--release", "--package", "dispense-e2e", "--bin", "bench-api", "--"]).args(words).run()
        }
        Bench::Workspace => {
            clients::install(root())?;
            cargo(["run", "--release", "--package", "dispense-e2e", "--bin", "bench-workspace", "--"]).args(words).run()
        }
        Bench::Peers => {
            cargo(["run", "--release", "--package", "dispense-e2e", "--bin", "bench-peers", "--"]).args(words).run()
        }
    }
}

/// A program of the end-to-end crate.
fn tool(name: &'static str, words: &[String]) -> Result<()> {
    cargo(["run", "--quiet", "--package", "dispense-e2e", "--bin", name, "--"]).args(words).run()
}

/// Where cargo puts release builds.
fn release_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from).join("release")
}
