//! What of a data directory's sandboxes is left on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use crate::native::instance;

/// Finds processes, mounts, cgroups and directories; empty when nothing is left. `data_dir` is the directory of
/// a server, or the state directory of a runner, or any directory above.
pub fn find(data_dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let needle = data_dir.display().to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let read = |file: &str| {
            String::from_utf8_lossy(&fs::read(entry.path().join(file)).unwrap_or_default()).replace('\0', " ")
        };
        let command = read("cmdline");
        if command.contains(&needle) || read("mountinfo").contains(&needle) {
            left.push(format!("process {pid}: {command}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| line.contains(&needle)).map(|line| format!("mount: {line}")));
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if file.contains(&needle) {
            left.push(format!("loop device: {} of {}", entry.file_name().display(), file.trim()));
        }
    }
    for folder in native_folders(data_dir) {
        let instance = fs::canonicalize(&folder).map(|folder| instance(&folder)).unwrap_or_default();
        find_networks(&instance, &mut left);
        find_cgroups(Path::new("/sys/fs/cgroup"), &format!("dispense-{instance}"), 0, &mut left);
        for name in ["boxes", "trash"] {
            let entries = fs::read_dir(folder.join(name)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("directory: {}", entry.path().display())));
        }
    }
    left
}

/// Directories of native backends, at most three levels down.
fn native_folders(data_dir: &Path) -> Vec<PathBuf> {
    let mut level = vec![data_dir.to_owned()];
    let mut found = Vec::new();
    for _ in 0..3 {
        let children = level.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
        level = children.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        found.extend(level.iter().filter(|path| path.ends_with("native")).cloned());
    }
    found
}

/// Depth of a cgroup hierarchy that is searched.
const CGROUP_DEPTH_MAX: usize = 8;

fn find_cgroups(folder: &Path, name: &str, depth: usize, left: &mut Vec<String>) {
    if depth > CGROUP_DEPTH_MAX {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if !path.is_dir() || path.is_symlink() {
            continue;
        }
        // One that this process itself is in, as a runner of its own, goes when the process ends.
        if entry.file_name().to_string_lossy().starts_with(name) && !holds_us(&path) {
            left.push(format!("cgroup: {}", path.display()));
        } else {
            find_cgroups(&path, name, depth + 1, left);
        }
    }
}

fn holds_us(cgroup: &Path) -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    Path::new("/sys/fs/cgroup").join(own).starts_with(cgroup)
}

/// Interfaces and rules of network `nat`.
fn find_networks(instance: &str, left: &mut Vec<String>) {
    let Some(short) = instance.get(..4) else { return };
    let names = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    left.extend(names.filter(|name| name.starts_with(&format!("dsp{short}"))).map(|name| format!("interface: {name}")));
    // Where there is no nft there are no rules of ours.
    if let Ok(output) = std::process::Command::new("nft").args(["list", "tables"]).output() {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        left.extend(text.lines().filter(|line| line.contains(instance)).map(|line| format!("rules: {line}")));
    }
}
