//! What the sandbox uses: CPU, memory, disk, and whether memory ran out. From its own cgroup where the backend
//! shows it at `/sys/fs/cgroup`, else from `/proc`, which has the sandbox's processes only.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// A disk with less left is full: below this most programs fail to write.
const DISK_FULL_BYTES: u64 = 64 << 10;

/// Processes that the kernel killed for want of memory since the sandbox was made.
pub(crate) fn oom_kills() -> u64 {
    let field = |path: &str| {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
        line.trim().parse().ok()
    };
    field("/sys/fs/cgroup/memory.events").or_else(|| field("/sys/fs/cgroup/memory/memory.oom_control")).unwrap_or(0)
}

/// Whether the file system of `path` is full.
pub(crate) fn disk_is_full(path: impl AsRef<Path>) -> bool {
    rustix::fs::statvfs(path.as_ref()).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < DISK_FULL_BYTES)
}

/// The limit of the sandbox's memory, where one is enforced.
pub(crate) fn memory_limit_bytes() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    number("/sys/fs/cgroup/memory.max").or_else(|| number("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
}

/// Memory in MiB.
pub(crate) fn memory_mb() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let bytes =
        number("/sys/fs/cgroup/memory.current").or_else(|| number("/sys/fs/cgroup/memory/memory.usage_in_bytes"));
    Some(bytes.or_else(resident_bytes)? >> 20)
}

/// Sum of the resident memory of all processes.
fn resident_bytes() -> Option<u64> {
    let page = rustix::param::page_size() as u64;
    let pages = processes()?.filter_map(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        text.split(' ').nth(1)?.parse::<u64>().ok()
    });
    Some(pages.sum::<u64>() * page)
}

fn processes() -> Option<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc").ok()?;
    Some(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// CPU time of the sandbox so far.
fn cpu_time() -> Option<Duration> {
    if let Ok(text) = fs::read_to_string("/sys/fs/cgroup/cpu.stat") {
        let usec = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        return Some(Duration::from_micros(usec.trim().parse().ok()?));
    }
    if let Ok(text) = fs::read_to_string("/sys/fs/cgroup/cpuacct/cpuacct.usage") {
        return Some(Duration::from_nanos(text.trim().parse().ok()?));
    }
    let ticks: u64 = processes()?.filter_map(cpu_ticks).sum();
    Some(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1)))
}

/// Ticks of one process; of the first one also those of the children it reaped, which is all that ended.
fn cpu_ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may have spaces; fields are counted behind it.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let own = field(11) + field(12);
    Some(if pid == 1 { own + field(13) + field(14) } else { own })
}

/// Measures CPU between calls.
#[derive(Debug, Default)]
pub(crate) struct CpuMeter {
    last: Option<(Instant, Duration)>,
}

impl CpuMeter {
    /// Percent of one core since the last call; absent in the first.
    pub(crate) fn percent(&mut self) -> Option<f64> {
        let now = (Instant::now(), cpu_time()?);
        let last = self.last.replace(now)?;
        let wall = now.0.duration_since(last.0).as_secs_f64();
        let busy = now.1.saturating_sub(last.1).as_secs_f64();
        (wall > 0.0).then_some(100.0 * busy / wall)
    }
}
