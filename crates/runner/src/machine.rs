//! What this machine has: capacity, free disk, load, boot id.

use std::fs;
use std::path::Path;

use dispense_api::v1;

/// What a runner offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Disk in bytes.
    pub disk_bytes: u64,
    /// Sandboxes at the same time.
    pub sandboxes: u32,
}

/// Sandboxes that a machine takes whatever its size: an idle one costs about 2 MB, and the pids and network
/// namespaces of the kernel end far above.
const SANDBOXES_MAX: u32 = 4096;
/// Limits are ceilings and not reservations: most sandboxes idle, so the machine is promised several times.
const MEMORY_OVERCOMMIT: u64 = 8;
/// Too little of it makes sandboxes slow, not dead, so it is promised more often than memory.
const CPU_OVERCOMMIT: u32 = 1024;

impl Capacity {
    /// The whole machine, with `state_dir`'s file system as disk.
    pub fn of_machine(state_dir: &Path) -> Self {
        let cores =
            std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
        let memory = meminfo_bytes("MemTotal:").unwrap_or(1 << 30);
        let disk = rustix::fs::statvfs(state_dir).map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
        Self {
            cpu_millis: cores.saturating_mul(1000).saturating_mul(CPU_OVERCOMMIT),
            memory_bytes: memory.saturating_mul(MEMORY_OVERCOMMIT),
            disk_bytes: disk,
            sandboxes: SANDBOXES_MAX,
        }
    }
}

/// What of its machine's capacity a runner offers, where not all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offer {
    /// Thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Disk in bytes.
    pub disk_bytes: Option<u64>,
    /// Sandboxes at the same time.
    pub sandboxes: Option<u32>,
}

impl Offer {
    /// With the machine's own where nothing is said.
    pub(crate) fn capacity(&self, state_dir: &Path) -> Capacity {
        let machine = Capacity::of_machine(state_dir);
        Capacity {
            cpu_millis: self.cpu_millis.unwrap_or(machine.cpu_millis),
            memory_bytes: self.memory_bytes.unwrap_or(machine.memory_bytes),
            disk_bytes: self.disk_bytes.unwrap_or(machine.disk_bytes),
            sandboxes: self.sandboxes.unwrap_or(machine.sandboxes),
        }
    }
}

impl From<Capacity> for Offer {
    fn from(capacity: Capacity) -> Self {
        let Capacity { cpu_millis, memory_bytes, disk_bytes, sandboxes } = capacity;
        Self {
            cpu_millis: Some(cpu_millis),
            memory_bytes: Some(memory_bytes),
            disk_bytes: Some(disk_bytes),
            sandboxes: Some(sandboxes),
        }
    }
}

impl From<Capacity> for v1::Capacity {
    fn from(capacity: Capacity) -> Self {
        let Capacity { cpu_millis, memory_bytes, disk_bytes, sandboxes } = capacity;
        Self { cpu_millis, memory_bytes, disk_bytes, sandboxes }
    }
}

/// Free bytes of the file system of `path`.
pub(crate) fn disk_free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Load average of one minute, times 1000.
pub(crate) fn load_millis() -> u32 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    (load * 1000.0) as u32
}

/// Changes with each start of the machine.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The machine's host name.
pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn meminfo_bytes(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}
