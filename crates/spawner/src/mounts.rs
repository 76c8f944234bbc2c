//! The file systems of a box: layers, `/proc`, `/sys`, `/dev`; and the pivot into them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dispense_spawner::{Cgroup, DiskKind, Spawn, Users};
use rustix::fs::{CWD, Mode};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_bind_recursive, mount_change, mount_remount, move_mount, open_tree, unmount,
};

use crate::sys;

type Step<T> = Result<T, (&'static str, io::Error)>;

fn step<T, E: Into<io::Error>>(name: &'static str, result: Result<T, E>) -> Step<T> {
    result.map_err(|error| (name, error.into()))
}

/// Nodes of `/dev`, bound from the host's: an ordinary user cannot make them.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// What tells of, or reaches, the whole machine: files and directories as Docker masks them.
const MASKED: [&str; 13] = [
    "proc/acpi",
    "proc/asound",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/interrupts",
    "proc/kmsg",
    "sys/firmware",
    "sys/devices/virtual/powercap",
];
/// Read-only, as Docker has them.
const READ_ONLY: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Puts everything together below `spawn.root` and makes it the root.
pub(crate) fn put_together(spawn: &Spawn, ids: Option<&OwnedFd>) -> Step<()> {
    // Nothing that is mounted here is seen by the host, and the other way round.
    step("leave the host's mounts", mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE))?;
    if let Some(disk) = &spawn.disk {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let mounted = match &disk.kind {
            DiskKind::Memory { bytes } => {
                mount_with("tmpfs", &disk.target, "tmpfs", flags, &format!("size={bytes},mode=0700"))
            }
            DiskKind::Device(device) => mount_with(&device.display().to_string(), &disk.target, "ext4", flags, ""),
        };
        step("mount the size-limited disk", mounted)?;
    }
    for layer in &spawn.layers {
        step("make the layers", fs::create_dir_all(&layer.upper).and_then(|()| fs::create_dir_all(&layer.work)))?;
        give(spawn, &layer.upper).and_then(|()| give(spawn, &layer.work)).map_err(|error| ("own the layers", error))?;
        let lower = match (&layer.mapped, ids) {
            (Some(mapped), Some(ids)) => {
                step("map the ids of the template", map_ids(&layer.lower, mapped, ids))?;
                mapped
            }
            _ => &layer.lower,
        };
        let privileged = ids.is_some();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}{}",
            escape(lower),
            escape(&layer.upper),
            escape(&layer.work),
            if privileged { "" } else { ",userxattr" }
        );
        let target = spawn.root.join(&layer.target);
        step("mount the layers", mount_with("overlay", &target, "overlay", MountFlags::NODEV, &options))?;
    }
    let root = &spawn.root;
    step("make the mount points", make_points(spawn))?;
    step("mount /proc", mount_with("proc", &root.join("proc"), "proc", PLAIN, ""))?;
    // Only root's own network namespace matters inside; the first ports are as free as the others.
    let _ = fs::write(root.join("proc/sys/net/ipv4/ip_unprivileged_port_start"), "0");
    let _ = fs::write(root.join("proc/sys/net/ipv4/ping_group_range"), "0 65535");
    step("mount /sys", mount_with("sysfs", &root.join("sys"), "sysfs", PLAIN | MountFlags::RDONLY, ""))?;
    step("show the cgroups", show_cgroups(root, &spawn.cgroup))?;
    step("mount /dev", make_dev(spawn))?;
    for name in MASKED {
        step("mask what tells of the machine", mask(&root.join(name)))?;
    }
    for name in READ_ONLY {
        step("protect /proc", protect(&root.join(name)))?;
    }
    pivot(root)?;
    // In the box's own root: a link that the box left in the place of one leads nowhere else.
    step("own the mount points", own_points(spawn))
}

/// To the box's root, by its id outside; an ordinary user's box owns what it makes.
pub(crate) fn give(spawn: &Spawn, path: &Path) -> io::Result<()> {
    match spawn.users {
        Users::Range { first, .. } => std::os::unix::fs::chown(path, Some(first), Some(first)),
        Users::Subordinate { .. } | Users::Single => Ok(()),
    }
}

fn escape(path: &Path) -> String {
    path.display().to_string().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn map_ids(lower: &Path, mapped: &Path, ids: &OwnedFd) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, lower, flags)?;
    sys::map_ids(&tree, ids)?;
    move_mount(tree.as_fd(), "", CWD, mapped, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn mount_with(source: &str, target: &Path, kind: &str, flags: MountFlags, options: &str) -> rustix::io::Result<()> {
    let options = std::ffi::CString::new(options).map_err(|_| rustix::io::Errno::INVAL)?;
    mount(source, target, kind, flags, Some(options.as_c_str()))
}

fn make_points(spawn: &Spawn) -> io::Result<()> {
    let root = &spawn.root;
    for name in ["proc", "sys", "dev", "tmp", "run", "workspace", "etc"] {
        let path = root.join(name);
        if fs::symlink_metadata(&path).is_err() {
            fs::create_dir(&path)?;
            give(spawn, &path)?;
        }
    }
    Ok(())
}

/// Directories that a box's root makes entries in.
const OWNED: [&str; 10] = ["", "etc", "home", "opt", "root", "run", "srv", "tmp", "var", "workspace"];

/// Gives the box what it works in. On a file system without id-mapped mounts the template's files have owners that
/// have no id inside; all of them would have to be copied, the directories alone cost nothing. By the spawner,
/// since the box's root may not change what has no owner for it.
fn own_points(spawn: &Spawn) -> io::Result<()> {
    const USER: u32 = 1000;
    let base = match spawn.users {
        Users::Range { first, .. } => first,
        Users::Subordinate { .. } => 0,
        Users::Single => return own_tmp(),
    };
    let is_mapped = base == 0 || spawn.layers.first().is_some_and(|layer| layer.mapped.is_some());
    let points = OWNED.iter().filter(|_| !is_mapped).map(|name| (*name, base));
    for (name, owner) in points.chain([("home/user", base + USER)]) {
        let path = Path::new("/").join(name);
        let is_foreign = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir() && meta.uid() != owner);
        if is_foreign {
            std::os::unix::fs::lchown(&path, Some(owner), Some(owner))?;
        }
    }
    own_tmp()
}

/// Everybody's; a link stays what the box made it.
fn own_tmp() -> io::Result<()> {
    let is_folder = fs::symlink_metadata("/tmp").is_ok_and(|meta| meta.is_dir());
    if is_folder { Ok(rustix::fs::chmod("/tmp", Mode::from_raw_mode(0o1777))?) } else { Ok(()) }
}

fn show_cgroups(root: &Path, cgroup: &Cgroup) -> io::Result<()> {
    let target = root.join("sys/fs/cgroup");
    let read_only = PLAIN | MountFlags::RDONLY | MountFlags::BIND;
    match cgroup {
        Cgroup::None => {}
        Cgroup::V2 { show } => {
            mount_bind(show, &target)?;
            mount_remount(&target, read_only, "")?;
        }
        Cgroup::V1 { show, .. } => {
            mount_with("tmpfs", &target, "tmpfs", PLAIN, "size=64k,mode=755")?;
            for (name, path) in show {
                let point = target.join(name);
                fs::create_dir(&point)?;
                mount_bind(path, &point)?;
                mount_remount(&point, read_only, "")?;
            }
            mount_remount(&target, PLAIN | MountFlags::RDONLY, "size=64k,mode=755")?;
        }
    }
    Ok(())
}

fn make_dev(spawn: &Spawn) -> io::Result<()> {
    let dev = spawn.root.join("dev");
    mount_with("tmpfs", &dev, "tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, "size=64k,mode=755")?;
    let (owner, tty_group) = match spawn.users {
        Users::Range { first, .. } => (Some(first), Some(first + 5)),
        Users::Subordinate { .. } => (None, Some(5)),
        Users::Single => (None, None),
    };
    let own = |path: &Path| owner.map_or(Ok(()), |owner| std::os::unix::fs::chown(path, Some(owner), Some(owner)));
    own(&dev)?;
    for name in DEVICES {
        let path = dev.join(name);
        fs::File::create(&path)?;
        mount_bind(Path::new("/dev").join(name), &path)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        fs::create_dir(dev.join(name))?;
    }
    let group = tty_group.map(|group| format!(",gid={group}")).unwrap_or_default();
    let options = format!("newinstance,ptmxmode=0666,mode=0620{group}");
    mount_with("devpts", &dev.join("pts"), "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, &options)?;
    let shm = MountFlags::NOSUID | MountFlags::NODEV;
    mount_with("tmpfs", &dev.join("shm"), "tmpfs", shm, "size=64m,mode=1777")?;
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        std::os::unix::fs::symlink(target, dev.join(name))?;
    }
    Ok(())
}

fn mask(path: &Path) -> io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if meta.is_dir() {
        mount_with("tmpfs", path, "tmpfs", PLAIN | MountFlags::RDONLY, "size=0,mode=755")?;
    } else {
        mount_bind("/dev/null", path)?;
    }
    Ok(())
}

fn protect(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    mount_bind_recursive(path, path)?;
    mount_remount(path, PLAIN | MountFlags::RDONLY | MountFlags::BIND, "")?;
    Ok(())
}

/// Makes `root` the root and lets go of the host's.
fn pivot(root: &Path) -> Step<()> {
    step("enter the box's root", rustix::process::chdir(root))?;
    step("pivot into the box's root", rustix::process::pivot_root(".", "."))?;
    step("leave the host's root", unmount(".", UnmountFlags::DETACH))?;
    step("enter the box's root", rustix::process::chdir("/"))
}
