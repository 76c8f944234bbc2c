//! Limits by cgroups, of version 1 or 2, below the runner's own cgroup: `dispense-<instance>/<sandbox>`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dispense_api::id::SandboxId;
use dispense_spawner::Cgroup;

use crate::{BackendError, Limits};

/// Of the CPU quota: 100 ms, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// A cgroup is busy until the kernel has let go of its last process; that is milliseconds.
const REMOVE_ATTEMPTS: u32 = 200;
const REMOVE_PAUSE: Duration = Duration::from_millis(5);
/// Controllers of version 1 that are used, and the limit that each enforces.
const CONTROLLERS: [(&str, Option<&str>); 4] =
    [("memory", Some("memory")), ("cpu", Some("cpu")), ("pids", Some("pids")), ("cpuacct", None)];

/// What this machine lets the runner do.
#[derive(Debug)]
pub(super) enum Cgroups {
    V1 { bases: BTreeMap<&'static str, PathBuf> },
    V2 { base: PathBuf },
    None,
}

/// The cgroups of one box, made.
pub(super) struct Made {
    pub(super) join: Cgroup,
    pub(super) fds: Vec<OwnedFd>,
}

impl Cgroups {
    /// Finds what works; with it, each limit that cannot be enforced and the reason.
    pub(super) fn probe(instance: &str) -> (Self, BTreeMap<String, String>) {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if let Some(base) = probe_v2(&own, &mounts, instance) {
            return (Self::V2 { base }, BTreeMap::new());
        }
        let (mut bases, mut unenforced) = (BTreeMap::new(), BTreeMap::new());
        for (controller, limit) in CONTROLLERS {
            match probe_v1(controller, &own, &mounts, instance) {
                Ok(base) => {
                    bases.insert(controller, base);
                }
                Err(why) => {
                    if let Some(limit) = limit {
                        unenforced.insert(limit.to_owned(), why);
                    }
                }
            }
        }
        let groups = if bases.is_empty() { Self::None } else { Self::V1 { bases } };
        (groups, unenforced)
    }

    /// Makes the cgroups of a box with its limits.
    pub(super) fn make(&self, sandbox: &SandboxId, limits: &Limits) -> Result<Made, BackendError> {
        let made = self.try_make(sandbox, limits);
        made.map_err(|error| {
            // What was half made goes again; a leftover would be found at the next start.
            let _ = self.try_remove(sandbox);
            BackendError::failed(format!("make the cgroups of {sandbox}"), error)
        })
    }

    fn try_make(&self, sandbox: &SandboxId, limits: &Limits) -> io::Result<Made> {
        let quota = u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000;
        match self {
            Self::None => Ok(Made { join: Cgroup::None, fds: Vec::new() }),
            Self::V2 { base } => {
                let path = base.join(sandbox.as_str());
                make_dir(&path)?;
                fs::write(path.join("memory.max"), limits.memory_bytes.to_string())?;
                // Without swap accounting the file is missing, and there is no swap to limit.
                let _ = fs::write(path.join("memory.swap.max"), "0");
                fs::write(path.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"))?;
                fs::write(path.join("pids.max"), limits.pids.to_string())?;
                Ok(Made { fds: vec![fs::File::open(&path)?.into()], join: Cgroup::V2 { show: path } })
            }
            Self::V1 { bases } => {
                let (mut fds, mut show) = (Vec::new(), Vec::new());
                for (controller, base) in bases {
                    let path = base.join(sandbox.as_str());
                    make_dir(&path)?;
                    match *controller {
                        "memory" => {
                            fs::write(path.join("memory.limit_in_bytes"), limits.memory_bytes.to_string())?;
                            // As above.
                            let _ =
                                fs::write(path.join("memory.memsw.limit_in_bytes"), limits.memory_bytes.to_string());
                        }
                        "cpu" => {
                            fs::write(path.join("cpu.cfs_period_us"), CPU_PERIOD_US.to_string())?;
                            fs::write(path.join("cpu.cfs_quota_us"), quota.to_string())?;
                        }
                        "pids" => fs::write(path.join("pids.max"), limits.pids.to_string())?,
                        _ => {}
                    }
                    fds.push(fs::OpenOptions::new().write(true).open(path.join("tasks"))?.into());
                    show.push(((*controller).to_owned(), path));
                }
                Ok(Made { join: Cgroup::V1 { tasks: fds.len(), show }, fds })
            }
        }
    }

    fn paths(&self, sandbox: &SandboxId) -> Vec<PathBuf> {
        match self {
            Self::None => Vec::new(),
            Self::V2 { base } => vec![base.join(sandbox.as_str())],
            Self::V1 { bases } => bases.values().map(|base| base.join(sandbox.as_str())).collect(),
        }
    }

    /// Whether the kernel killed processes of a box for want of memory.
    pub(super) fn out_of_memory(&self, sandbox: &SandboxId) -> bool {
        let counts = self.paths(sandbox).into_iter().flat_map(|path| {
            ["memory.events", "memory.oom_control"].map(|file| fs::read_to_string(path.join(file)).unwrap_or_default())
        });
        counts.into_iter().any(|text| {
            text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
        })
    }

    /// Removes the cgroups of a box whose processes have ended.
    pub(super) async fn remove(&self, sandbox: &SandboxId) -> Result<(), BackendError> {
        for attempt in 1.. {
            match self.try_remove(sandbox) {
                Ok(()) => return Ok(()),
                Err(error) if attempt >= REMOVE_ATTEMPTS => {
                    return Err(BackendError::failed(format!("remove the cgroups of {sandbox}"), error));
                }
                Err(_) => tokio::time::sleep(REMOVE_PAUSE).await,
            }
        }
        Ok(())
    }

    fn try_remove(&self, sandbox: &SandboxId) -> io::Result<()> {
        let mut result = Ok(());
        for path in self.paths(sandbox) {
            match fs::remove_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Removes the runner's own directories when no box is left in them.
    pub(super) fn close(&self) {
        let bases: Vec<&PathBuf> = match self {
            Self::None => Vec::new(),
            Self::V2 { base } => vec![base],
            Self::V1 { bases } => bases.values().collect(),
        };
        for base in bases {
            // Busy while boxes live, which is as it should be.
            let _ = fs::remove_dir(base);
        }
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Where a hierarchy is mounted: fields of mountinfo are `… root point options… - kind source super`.
fn mount_point<'a>(mounts: &'a str, kind: &str, controller: Option<&str>) -> Option<(&'a str, &'a str)> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let matches = right.next()? == kind
            && controller
                .is_none_or(|name| right.nth(1).is_some_and(|options| options.split(',').any(|option| option == name)));
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        matches.then_some((root, point))
    })
}

fn probe_v1(controller: &str, own: &str, mounts: &str, instance: &str) -> Result<PathBuf, String> {
    let (root, point) = mount_point(mounts, "cgroup", Some(controller))
        .ok_or_else(|| format!("this machine mounts no cgroup with the {controller} controller"))?;
    let path = own
        .lines()
        .find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            names.split(',').any(|name| name == controller).then_some(path)
        })
        .unwrap_or("/");
    let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(path);
    let base = Path::new(point).join(below.trim_start_matches('/')).join(format!("dispense-{instance}"));
    make_dir(&base).map_err(|error| {
        format!(
            "{} cannot be made ({}): run as root, or let an administrator delegate a cgroup to you",
            base.display(),
            error.kind()
        )
    })?;
    Ok(base)
}

/// Version 2 counts only with all three controllers: a machine with version 1 mounts an empty version 2 too.
fn probe_v2(own: &str, mounts: &str, instance: &str) -> Option<PathBuf> {
    let (_, point) = mount_point(mounts, "cgroup2", None)?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let lists_all = |file: PathBuf| {
        let listed = fs::read_to_string(file).unwrap_or_default();
        ["memory", "cpu", "pids"].iter().all(|name| listed.split_whitespace().any(|word| word == *name))
    };
    let has_all = |folder: &Path| lists_all(folder.join("cgroup.subtree_control"));
    let enable = |folder: &Path| fs::write(folder.join("cgroup.subtree_control"), "+memory +cpu +pids");
    let point = Path::new(point);
    // Root takes the top, where the rule against processes beside children does not apply.
    let parent =
        if rustix::process::geteuid().is_root() { point.to_owned() } else { point.join(path.trim_start_matches('/')) };
    // Looked at before anything is made: what version 1 has taken cannot be enabled here.
    if !lists_all(parent.join("cgroup.controllers")) {
        return None;
    }
    if !has_all(&parent) && enable(&parent).is_err() {
        // Processes beside children: move the own one into a leaf first.
        let leaf = parent.join(format!("dispense-{instance}-runner"));
        make_dir(&leaf).ok()?;
        fs::write(leaf.join("cgroup.procs"), "0").ok()?;
        enable(&parent).ok()?;
    }
    let base = parent.join(format!("dispense-{instance}"));
    make_dir(&base).ok()?;
    if !has_all(&base) && enable(&base).is_err() {
        let _ = fs::remove_dir(&base);
        return None;
    }
    Some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "30 25 0:27 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                          31 25 0:28 /inner /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                          32 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn mount_points_are_found_by_controller() {
        assert_eq!(mount_point(MOUNTS, "cgroup", Some("memory")), Some(("/", "/sys/fs/cgroup/memory")));
        assert_eq!(mount_point(MOUNTS, "cgroup", Some("cpuacct")), Some(("/inner", "/sys/fs/cgroup/cpu")));
        assert_eq!(mount_point(MOUNTS, "cgroup", Some("pids")), None);
        assert_eq!(mount_point(MOUNTS, "cgroup2", None), Some(("/", "/sys/fs/cgroup/unified")));
    }
}
