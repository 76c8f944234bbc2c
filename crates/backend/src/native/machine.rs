//! What this machine allows: found once, told by `dispense doctor`.

use std::fs;
use std::path::Path;

use dispense_spawner::Users;

/// Ids of one box as root.
pub(super) const RANGE_IDS: u32 = 65_536;
/// Ranges begin here, above those of containers and of systemd's own, and end below the reserved last ids.
const FIRST_ID: u32 = 0x6000_0000;
/// Ranges there are: boxes that a root runner can have.
pub(super) const SLOTS: u32 = 4096;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, with less.
    Weak,
    /// No sandbox can be made.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How good it is.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to change; empty when nothing has to.
    pub advice: String,
}

fn finding(name: &'static str, verdict: Verdict, detail: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { name, verdict, detail: detail.into(), advice: advice.into() }
}

fn sysctl(path: &str) -> Option<u64> {
    fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?.trim().parse().ok()
}

/// Whether the runner is root of the whole machine, and not of a user namespace.
pub(super) fn is_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root() && whole
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid.to_string()))?;
    line.split(':').next().map(str::to_owned)
}

/// Ids of the boxes of an ordinary user.
pub(super) fn ordinary_users() -> Users {
    let range = |file: &str| {
        let uid = rustix::process::geteuid().as_raw();
        let name = user_name(uid);
        let text = fs::read_to_string(file).ok()?;
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let owner = fields.next()?;
            let mine = Some(owner) == name.as_deref() || owner == uid.to_string();
            let (first, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            (mine && count >= RANGE_IDS - 1).then_some((first, count.min(RANGE_IDS - 1)))
        })
    };
    let installed = ["newuidmap", "newgidmap"]
        .iter()
        .all(|tool| ["/usr/bin", "/bin", "/usr/sbin"].iter().any(|folder| Path::new(folder).join(tool).exists()));
    match (range("/etc/subuid"), range("/etc/subgid")) {
        (Some((uid, uids)), Some((gid, gids))) if installed => Users::Subordinate { uid, gid, count: uids.min(gids) },
        _ => Users::Single,
    }
}

/// Ids of the box in `slot`.
pub(super) fn root_users(slot: u32) -> Users {
    Users::Range { first: FIRST_ID + slot * RANGE_IDS, count: RANGE_IDS }
}

/// Why no box can be made here at all.
pub(super) fn unusable() -> Option<String> {
    if sysctl("user/max_user_namespaces") == Some(0) {
        return Some(
            "user namespaces are switched off: run `sysctl user.max_user_namespaces=15000` as root".to_owned(),
        );
    }
    if is_root() {
        return None;
    }
    if sysctl("kernel/unprivileged_userns_clone") == Some(0) {
        return Some("user namespaces are switched off for ordinary users: run `sysctl kernel.unprivileged_userns_clone=1` as root, or run this as root".to_owned());
    }
    if sysctl("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return Some("AppArmor keeps ordinary users from making user namespaces: run `sysctl kernel.apparmor_restrict_unprivileged_userns=0` as root, or run this as root".to_owned());
    }
    None
}

/// File systems that can be mounted with other ids, and the kernel from which on; overlay accepts such layers since 5.19.
const ID_MAPPED: [(u64, (u32, u32)); 5] = [
    (0xef53, (5, 19)),      // ext4
    (0x5846_5342, (5, 19)), // xfs
    (0x9123_683e, (5, 19)), // btrfs
    (0xf2f5_2010, (5, 19)), // f2fs
    (0x0102_1994, (6, 3)),  // tmpfs
];

/// Whether the files of `path` can be shown with other ids.
pub(super) fn maps_ids(path: &Path) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u32>().ok());
    let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let kind = rustix::fs::statfs(path).map(|found| found.f_type as u64).unwrap_or(0);
    ID_MAPPED.iter().any(|(known, since)| *known == kind && kernel >= *since)
}

/// Looks at everything that matters to the native backend.
pub async fn diagnose(state_dir: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(match unusable() {
        Some(why) => {
            let (detail, advice) = why.split_once(": ").unwrap_or((&why, ""));
            finding("user namespaces", Verdict::Bad, detail, advice)
        }
        None => finding("user namespaces", Verdict::Good, "allowed", ""),
    });
    findings.push(match (is_root(), ordinary_users()) {
        (true, _) => finding("ids", Verdict::Good, "root: each sandbox gets 65536 ids of its own", ""),
        (false, Users::Subordinate { count, .. }) => {
            finding("ids", Verdict::Good, format!("{count} subordinate ids, shared by this user's sandboxes"), "")
        }
        (false, _) => finding(
            "ids",
            Verdict::Weak,
            "only uid 0 inside: other users do not exist in sandboxes",
            "install the package `uidmap` and give this user ranges in /etc/subuid and /etc/subgid",
        ),
    });
    let (groups, unenforced) = super::cgroup::Cgroups::probe("doctor");
    groups.close();
    for limit in ["cpu", "memory", "pids"] {
        findings.push(match unenforced.get(limit) {
            None => finding(limit, Verdict::Good, "the limit is enforced by a cgroup", ""),
            Some(why) => finding(limit, Verdict::Weak, "the limit is not enforced", why.clone()),
        });
    }
    if is_root() {
        findings.push(if maps_ids(Path::new("/usr")) && maps_ids(existing(state_dir)) {
            finding("id-mapped mounts", Verdict::Good, "root inside owns the template's files", "")
        } else {
            finding(
                "id-mapped mounts",
                Verdict::Weak,
                "the template's files belong to `nobody` inside",
                "use a kernel from 5.19 on, and ext4, xfs or btrfs for /usr and the data directory",
            )
        });
    }
    findings.push(match super::nat::Nat::probe("doctor", is_root()).await {
        Ok(super::nat::Nat::Veth(_)) => {
            finding("network nat", Verdict::Good, "sandboxes can be given outbound connections", "")
        }
        Ok(super::nat::Nat::Proxy(_)) => {
            let detail = "sandboxes can be given outbound TCP, UDP and names, by a proxy: no ICMP";
            finding("network nat", Verdict::Good, detail, "")
        }
        Err(why) => finding("network nat", Verdict::Weak, "only network `none` is available", why),
    });
    findings.push(match super::disk::Images::probe(is_root()) {
        Ok(_) => finding("disk limits", Verdict::Good, "enforced by a file system of its own for each sandbox", ""),
        Err(why) => finding(
            "disk limits",
            Verdict::Weak,
            format!("enforced in memory: such a sandbox loses its files when it is stopped ({why})"),
            "run this as root, with the package `e2fsprogs` and loop devices",
        ),
    });
    findings.push(disk(state_dir));
    findings.extend(ends_at_logout());
    findings
}

/// The user's systemd ends everything of a user who has logged out, unless the user lingers.
fn ends_at_logout() -> Option<Finding> {
    let uid = rustix::process::geteuid().as_raw();
    let manager = Path::new("/run/user").join(uid.to_string()).join("systemd");
    let user = user_name(uid)?;
    let ends = !is_root() && manager.exists() && !Path::new("/var/lib/systemd/linger").join(user).exists();
    let (detail, advice) = ("sandboxes end with this user's last session", "`loginctl enable-linger` has them go on");
    ends.then(|| finding("logout", Verdict::Weak, detail, advice))
}

/// Where the state directory is, or will be made.
fn existing(state_dir: &Path) -> &Path {
    state_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Free space there.
fn disk(state_dir: &Path) -> Finding {
    let existing = existing(state_dir);
    let free = rustix::fs::statvfs(existing).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    let detail = format!("{} MiB free in {}", free >> 20, existing.display());
    if free < super::DISK_RESERVE_BYTES {
        return finding("disk", Verdict::Bad, detail, "free some space");
    }
    finding("disk", Verdict::Good, detail, "")
}
