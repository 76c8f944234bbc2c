//! The floor: what the kernel alone costs for a sandbox made by hand, with no product around it.
//!
//! Two levels: a bare fork and exec, and all the namespaces with an overlay, `/dev`, `/proc`, a cgroup and
//! loopback. Everything that can be prepared is prepared before the clock starts.

mod sys;

use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Paths of one sandbox made by hand.
pub(crate) struct Floor {
    lower: PathBuf,
    work: PathBuf,
    cgroups: Vec<PathBuf>,
    count: u32,
}

impl Floor {
    /// Prepares `work` for sandboxes over the root file system `lower`.
    pub(crate) fn new(lower: &Path, work: &Path) -> Result<Self> {
        fs::create_dir_all(work)?;
        let cgroups = ["memory", "cpu", "pids"].map(|name| Path::new("/sys/fs/cgroup").join(name));
        let cgroups = cgroups.into_iter().filter(|path| path.join("tasks").exists()).collect();
        Ok(Self { lower: lower.to_owned(), work: work.to_owned(), cgroups, count: 0 })
    }

    /// Forks and executes `argv` on the host; the time to its first byte of output.
    pub(crate) fn bare(&self, argv: &[&str]) -> Result<Duration> {
        let argv = c_strings(argv)?;
        let (reader, writer) = std::io::pipe()?;
        let start = Instant::now();
        let child = sys::spawn_bare(&argv, writer.as_fd())?;
        drop(writer);
        finish(start, reader, child)
    }

    /// Makes a sandbox by hand, executes `argv` in it; the time to its first byte of output.
    pub(crate) fn sandbox(&mut self, argv: &[&str]) -> Result<Duration> {
        let argv = c_strings(argv)?;
        self.count += 1;
        let folder = self.work.join(format!("box{}", self.count));
        let (reader, writer) = std::io::pipe()?;
        let start = Instant::now();
        let mut tasks = Vec::new();
        let mut groups = Vec::new();
        for root in &self.cgroups {
            let group = root.join(format!("dispense-floor-{}", self.count));
            fs::create_dir(&group)?;
            tasks.push(fs::OpenOptions::new().write(true).open(group.join("tasks"))?);
            groups.push(group);
        }
        let layers = sys::Layers::make(&self.lower, &folder)?;
        let child = sys::spawn_sandbox(&layers, &tasks, &argv, writer.as_fd())?;
        drop(writer);
        let took = finish(start, reader, child);
        // Removal is not part of what is measured.
        for group in groups {
            fs::remove_dir(&group).with_context(|| format!("failed to remove {}", group.display()))?;
        }
        fs::remove_dir_all(&folder)?;
        took
    }
}

fn c_strings(argv: &[&str]) -> Result<Vec<CString>> {
    argv.iter().map(|arg| CString::new(*arg).context("a NUL in an argument")).collect()
}

fn finish(start: Instant, mut reader: impl Read, child: sys::Child) -> Result<Duration> {
    let mut first = [0; 1];
    let count = reader.read(&mut first)?;
    let took = start.elapsed();
    std::io::copy(&mut reader, &mut std::io::sink())?;
    let code = child.wait()?;
    if count == 0 || code != 0 {
        bail!("the sandbox made by hand printed {count} bytes and ended with {code}");
    }
    Ok(took)
}
