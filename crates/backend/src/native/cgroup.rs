//! Limits by cgroups, of version 1 or 2, below the runner's own cgroup: `dispense-<instance>/<sandbox>`.

mod scope;

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
/// Controllers of version 2, each of which enforces the limit of its name.
const CONTROLLERS_V2: [&str; 3] = ["memory", "cpu", "pids"];

/// What this machine lets the runner do.
#[derive(Debug)]
pub(super) enum Cgroups {
    V1 { bases: BTreeMap<&'static str, PathBuf> },
    V2 { base: PathBuf, controllers: Vec<&'static str> },
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
        if let Some(point) = unified(&mounts) {
            let (groups, controllers, why) = match probe_v2(point, instance) {
                Ok((base, controllers)) => {
                    let why = format!(
                        "the controller is not delegated to {}: an administrator adds `Delegate=cpu memory pids` to \
                         user@.service, or run this as root",
                        base.display()
                    );
                    (Self::V2 { base, controllers: controllers.clone() }, controllers, why)
                }
                Err(why) => (Self::None, Vec::new(), why),
            };
            let missing = CONTROLLERS_V2.into_iter().filter(|name| !controllers.contains(name));
            return (groups, missing.map(|name| (name.to_owned(), why.clone())).collect());
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
            Self::V2 { base, controllers } => {
                let path = base.join(sandbox.as_str());
                make_dir(&path)?;
                for controller in controllers {
                    match *controller {
                        "memory" => {
                            fs::write(path.join("memory.max"), limits.memory_bytes.to_string())?;
                            // Without swap accounting the file is missing, and there is no swap to limit.
                            let _ = fs::write(path.join("memory.swap.max"), "0");
                        }
                        "cpu" => fs::write(path.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"))?,
                        _ => fs::write(path.join("pids.max"), limits.pids.to_string())?,
                    }
                }
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
            Self::V2 { base, .. } => vec![base.join(sandbox.as_str())],
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
            Self::V2 { base, .. } => vec![base],
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

/// Where version 2 is mounted with its controllers: a machine with version 1 mounts an empty version 2 too.
fn unified(mounts: &str) -> Option<&Path> {
    let (_, point) = mount_point(mounts, "cgroup2", None)?;
    (controllers(Path::new(point), "cgroup.controllers").len() == CONTROLLERS_V2.len()).then_some(Path::new(point))
}

/// Those of ours that a file of a cgroup lists.
fn controllers(folder: &Path, file: &str) -> Vec<&'static str> {
    let listed = fs::read_to_string(folder.join(file)).unwrap_or_default();
    CONTROLLERS_V2.into_iter().filter(|name| listed.split_whitespace().any(|word| word == *name)).collect()
}

/// The own directory, with the controllers that work in it.
fn probe_v2(point: &Path, instance: &str) -> Result<(PathBuf, Vec<&'static str>), String> {
    // Root takes the top, where the rule against processes beside children does not apply.
    if rustix::process::geteuid().is_root() {
        return divide(point, instance);
    }
    let own = || -> Result<PathBuf, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        Ok(point.join(path))
    };
    divide(&own()?, instance).or_else(|_| {
        scope::enter(instance, &leaf_name(instance)).map_err(|why| {
            format!(
                "no cgroup is delegated to this user, and {why}: log in as this user, have an administrator run \
                 `loginctl enable-linger` for it, or run this as root"
            )
        })?;
        divide(&own()?, instance)
    })
}

/// Of the runner's own process, which may not be beside its children.
fn leaf_name(instance: &str) -> String {
    format!("dispense-{instance}-runner")
}

/// Makes the own directory below `here`, which may be the leaf of an earlier division.
fn divide(here: &Path, instance: &str) -> Result<(PathBuf, Vec<&'static str>), String> {
    let leaf_name = leaf_name(instance);
    let parent = if here.ends_with(&leaf_name) { here.parent().unwrap_or(here) } else { here };
    let failed = |action: &str, error: io::Error| format!("{action} {}: {error}", parent.display());
    let usable = controllers(parent, "cgroup.controllers");
    if usable.is_empty() {
        return Err(format!("{} has no controllers", parent.display()));
    }
    let base = parent.join(format!("dispense-{instance}"));
    let enable = |folder: &Path| {
        let missing = usable.iter().filter(|name| !controllers(folder, "cgroup.subtree_control").contains(name));
        let words: Vec<String> = missing.map(|name| format!("+{name}")).collect();
        if words.is_empty() { Ok(()) } else { fs::write(folder.join("cgroup.subtree_control"), words.join(" ")) }
    };
    make_dir(&base).map_err(|error| failed("make a cgroup in", error))?;
    let divided = enable(parent).or_else(|_| {
        // Processes beside children: the own one moves into a leaf first.
        let leaf = parent.join(&leaf_name);
        make_dir(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), "0")?;
        enable(parent).inspect_err(|_| {
            // Others are there too. It goes back, so that nothing is left of the attempt.
            let _ = fs::write(parent.join("cgroup.procs"), "0");
            let _ = fs::remove_dir(&leaf);
        })
    });
    divided.and_then(|()| enable(&base)).map_err(|error| {
        let _ = fs::remove_dir(&base);
        failed("divide the cgroup", error)
    })?;
    Ok((base, usable))
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
