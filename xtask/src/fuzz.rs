//! Fuzzes the parsers of what comes from outside, two targets at a time. `cargo-fuzz` builds them; the stable
//! compiler instruments them, which is what `RUSTC_BOOTSTRAP` asks for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command::cargo;

/// An input that takes longer is a failure.
const TIMEOUT_SECS: u32 = 10;
/// A parser that needs more is a failure.
const MEMORY_MAX_MB: u32 = 2048;
const INPUT_MAX_BYTES: u32 = 4096;
/// At the same time.
const WORKERS: usize = 2;

/// A running target.
struct Running {
    name: String,
    process: Child,
    log: PathBuf,
}

/// Runs every target, or the named ones, for so long. What it finds is left below the target directory.
pub(crate) fn run(root: &Path, seconds: u32, only: &[String]) -> Result<()> {
    let target = crate::release_dir().with_file_name("fuzz");
    cargo(["fuzz", "build", "--fuzz-dir", "fuzz", "--sanitizer", "none"])
        .arg("--target-dir", &target)
        .env("RUSTC_BOOTSTRAP", "1")
        .run()?;
    let mut waiting = targets(root)?;
    waiting.retain(|name| only.is_empty() || only.contains(name));
    let programs = target.join("x86_64-unknown-linux-gnu/release");
    let mut running: Vec<Running> = Vec::new();
    let mut failed = Vec::new();
    while !(waiting.is_empty() && running.is_empty()) {
        while running.len() < WORKERS
            && let Some(name) = waiting.pop()
        {
            running.push(start(root, &target, &programs, name, seconds)?);
        }
        let mut first = running.remove(0);
        let status = first.process.wait().with_context(|| format!("failed to wait for {}", first.name))?;
        let log = fs::read_to_string(&first.log).unwrap_or_default();
        let last = log.lines().rev().find(|line| line.contains("DONE") || line.contains("runs in"));
        println!("fuzz {}: {status}, {}", first.name, last.unwrap_or("no end").trim());
        if !status.success() {
            println!("{log}");
            failed.push(first.name);
        }
    }
    if !failed.is_empty() {
        bail!("the fuzzer found something in {}: see {}", failed.join(", "), target.join("found").display());
    }
    Ok(())
}

/// The names of all targets.
fn targets(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join("fuzz/fuzz_targets")).context("failed to read fuzz/fuzz_targets")? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn start(root: &Path, target: &Path, programs: &Path, name: String, seconds: u32) -> Result<Running> {
    // What is new goes to the first folder; the seeds of the tree stay as they are.
    let (fresh, found) = (target.join("corpus").join(&name), target.join("found"));
    fs::create_dir_all(&fresh)?;
    fs::create_dir_all(&found)?;
    let log = target.join(format!("{name}.log"));
    let process = Command::new(programs.join(&name))
        .arg(&fresh)
        .arg(root.join("fuzz/corpus").join(&name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={TIMEOUT_SECS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MAX_MB}"))
        .arg(format!("-max_len={INPUT_MAX_BYTES}"))
        .arg(format!("-artifact_prefix={}/{name}-", found.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?)
        .spawn()
        .with_context(|| format!("failed to start {name}"))?;
    println!("fuzz {name}: {seconds} s");
    Ok(Running { name, process, log })
}
