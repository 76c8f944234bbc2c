//! Starting, ending, repairing and discarding boxes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dispense_api::id::SandboxId;
use dispense_spawner::{Disk, DiskKind, Layer, Request, Spawn, Users};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use super::disk::{self, Attached};
use super::nat::{Nat, Place};
use super::record::{Process, Record, Stage};
use super::template::Lower;
use super::{Known, Native, machine, sys};
use crate::BackendError;

/// The kernel ends a killed pid namespace in milliseconds; more means that a process hangs in it.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
const SOCKET: &str = "agent.sock";

/// The first process of a box that was started.
pub(super) struct Live {
    pidfd: AsyncFd<OwnedFd>,
}

impl Live {
    fn new(pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { pidfd: sys::register(pidfd)? })
    }

    /// Returns when it has ended.
    pub(super) async fn ended(&self) {
        // The only error is that of a closed event loop, which has no more to wait for.
        let _ = self.pidfd.readable().await.map(drop);
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
    }
}

/// The socket in an open box directory: a path through the descriptor, since a socket's own path ends at 108
/// bytes.
pub(super) fn socket_path(folder: i32) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{folder}/{SOCKET}"))
}

impl Native {
    /// Starts a box that does not run.
    pub(super) async fn start_box(&self, sandbox: &SandboxId, mut record: Record) -> Result<(), BackendError> {
        let spec = record.spec(sandbox.clone());
        let folder = self.box_dir(sandbox);
        let on_image = disk::is_image(&folder);
        if spec.limits.disk_bytes > 0 && record.was_started && !on_image {
            return Err(BackendError::Refused {
                reason: "disk_in_memory",
                message: format!(
                    "sandbox {sandbox} had its size-limited disk in memory, and it is lost: create a new one"
                ),
            });
        }
        let nat = self.nat_of(&record)?;
        let failed = |error| BackendError::failed(format!("attach the disk of {sandbox}"), error);
        // Held until the box has mounted it, or has not.
        let attached = if on_image { Some(disk::attach(&folder).map_err(failed)?) } else { None };
        let layers = self.templates.layers(&spec.template)?;
        let listener = listen(&folder).map_err(|error| BackendError::failed(format!("listen for {sandbox}"), error))?;
        record.stage = Stage::Starting;
        record.was_started = true;
        self.keep(sandbox, record.clone(), None)?;
        let started = async {
            let cgroups = self.cgroups.make(sandbox, &spec.limits)?;
            let spawn = self.spawn_request(&folder, &record, &spec, layers, cgroups.join, attached.as_ref())?;
            let before = [self.spawner.agent(), listener.as_fd()];
            let after: Vec<_> = cgroups.fds.iter().map(AsFd::as_fd).collect();
            self.spawner.ask(Request::Spawn(Box::new(spawn)), &before, &after).await
        }
        .await;
        let spawned = match started {
            Ok(spawned) => spawned,
            Err(error) => {
                // Its child has ended by now, or ends at once; nothing may be left of it.
                let _ = self.cgroups.remove(sandbox).await;
                record.stage = Stage::Stopped;
                record.was_started = false;
                self.keep(sandbox, record, None)?;
                return Err(error);
            }
        };
        let live = Live::new(spawned.pidfd)
            .map_err(|error| BackendError::failed(format!("watch the box of {sandbox}"), error))?;
        let live = Arc::new(live);
        let place = Place { sandbox, slot: record.slot, pid: spawned.pid, live: &live };
        if let Some(nat) = nat
            && let Err(error) = nat.attach(&place, &self.spawner).await
        {
            // Its agent waits for a call and has run nothing.
            let _ = pidfd_send_signal(live.pidfd.get_ref(), Signal::KILL);
            live.ended().await;
            let _ = self.cgroups.remove(sandbox).await;
            record.stage = Stage::Stopped;
            record.was_started = false;
            self.keep(sandbox, record, None)?;
            return Err(error);
        }
        // A process that has ended already is found so by its descriptor.
        let process = Process::of(spawned.pid).unwrap_or(Process { pid: spawned.pid, started_ticks: 0 });
        record.stage = Stage::Started(process);
        self.keep(sandbox, record, Some(live))
    }

    fn spawn_request(
        &self,
        folder: &Path,
        record: &Record,
        spec: &crate::BoxSpec,
        lowers: Vec<Lower>,
        cgroup: dispense_spawner::Cgroup,
        attached: Option<&Attached>,
    ) -> Result<Spawn, BackendError> {
        let failed = |error: io::Error| BackendError::failed("make the layers of a box", error);
        let kind = match (attached, spec.limits.disk_bytes) {
            (Some(attached), _) => Some(DiskKind::Device(attached.device.clone())),
            (None, 0) => None,
            (None, bytes) => Some(DiskKind::Memory { bytes }),
        };
        let data = folder.join("data");
        fs::create_dir_all(&data).map_err(failed)?;
        let as_range = matches!(record.users, Users::Range { .. });
        let mut layers = Vec::new();
        for (index, lower) in lowers.into_iter().enumerate() {
            let mapped = folder.join(format!("lower{index}"));
            let maps = as_range && machine::maps_ids(&lower.source);
            if maps {
                fs::create_dir_all(&mapped).map_err(failed)?;
            }
            layers.push(Layer {
                upper: data.join(format!("upper{index}")),
                work: data.join(format!("work{index}")),
                mapped: maps.then_some(mapped),
                target: lower.target,
                lower: lower.source,
            });
        }
        let mut env: Vec<String> = spec.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
        env.push("AGENT_LISTEN_FD=3".to_owned());
        let resolv_conf = match (spec.network, &self.nat) {
            (crate::Network::Nat, Ok(nat)) => nat.resolv_conf(),
            (crate::Network::Nat, Err(_)) | (crate::Network::None, _) => String::new(),
        };
        let hosts = format!("127.0.0.1 localhost {0}\n::1 localhost ip6-localhost ip6-loopback\n", spec.hostname);
        Ok(Spawn {
            root: folder.join("root"),
            layers,
            disk: kind.map(|kind| Disk { target: data, kind }),
            users: record.users.clone(),
            hostname: spec.hostname.clone(),
            env,
            cgroup,
            seccomp: self.filter.clone(),
            // `sudo` is of use only where there are other users; it gives nothing outside the box.
            no_new_privs: record.users == Users::Single,
            files: vec![
                ("/etc/hosts".into(), hosts),
                ("/etc/hostname".into(), format!("{}\n", spec.hostname)),
                ("/etc/resolv.conf".into(), resolv_conf),
            ],
        })
    }

    /// What makes the network that a box was promised, if it was promised one.
    fn nat_of(&self, record: &Record) -> Result<Option<&Nat>, BackendError> {
        match (record.nat, &self.nat) {
            (false, _) => Ok(None),
            (true, Ok(nat)) => Ok(Some(nat)),
            // It could be made when the box was: better no start than one without a word.
            (true, Err(why)) => Err(BackendError::Refused { reason: "network_unavailable", message: why.clone() }),
        }
    }

    /// Takes the network of a box away.
    pub(super) async fn detach(&self, sandbox: &SandboxId, record: &Record) {
        if let (true, Ok(nat)) = (record.nat, &self.nat) {
            nat.detach(sandbox, record.slot).await;
        }
    }

    /// Ends every process of a box.
    pub(super) async fn kill(&self, sandbox: &SandboxId) -> Result<(), BackendError> {
        let Some(live) = self.live(sandbox) else { return Ok(()) };
        if !live.has_ended() {
            match pidfd_send_signal(live.pidfd.get_ref(), Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(BackendError::failed(format!("kill the box of {sandbox}"), error)),
            }
        }
        let ended = tokio::time::timeout(KILL_TIMEOUT, live.ended()).await;
        ended.map_err(|_| BackendError::failed(format!("kill the box of {sandbox}"), "a process of it does not end"))
    }

    /// Renames a box's directory into the trash and empties that in the background.
    pub(super) fn discard(&self, sandbox: &SandboxId, users: Users) -> Result<(), BackendError> {
        let failed = |error: io::Error| BackendError::failed(format!("discard the files of {sandbox}"), error);
        let folder = self.box_dir(sandbox);
        let mut target = self.folder.join("trash").join(sandbox.as_str());
        for attempt in 1.. {
            match fs::rename(&folder, &target) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                // An earlier box of this sandbox is still being removed.
                Err(_) if target.exists() && attempt < 1000 => target.set_file_name(format!("{sandbox}.{attempt}")),
                Err(error) => return Err(failed(error)),
            }
        }
        self.remove_later(target, users);
        Ok(())
    }

    fn remove_later(&self, path: PathBuf, users: Users) {
        let spawner = self.spawner.clone();
        self.background.spawn(async move {
            let removed = if let Users::Subordinate { .. } = users {
                // Files of mapped users can be removed only as root of the same mapping.
                let request = Request::Remove { path: path.clone(), users };
                spawner.ask(request, &[], &[]).await.map(drop).map_err(io::Error::other)
            } else {
                let path = path.clone();
                tokio::task::spawn_blocking(move || remove_tree(&path)).await.unwrap_or_else(|error| Err(io::Error::other(error)))
            };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "files of a sandbox could not be removed: they are tried again at the next start");
            }
        });
    }

    /// Removes what an earlier run discarded and did not come to remove.
    pub(super) fn empty_trash(&self) {
        let users = machine::ordinary_users();
        for entry in fs::read_dir(self.folder.join("trash")).into_iter().flatten().flatten() {
            let users = if self.as_root { machine::root_users(0) } else { users.clone() };
            self.remove_later(entry.path(), users);
        }
    }

    /// Reads every record, repairs what a crash left, and takes over what lives.
    pub(super) async fn load(&self) -> Result<(), BackendError> {
        let folder = self.folder.join("boxes");
        let entries =
            fs::read_dir(&folder).map_err(|error| BackendError::failed(format!("list {}", folder.display()), error))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(sandbox) = name.to_str().and_then(|name| name.parse::<SandboxId>().ok()) else { continue };
            let known = match Record::read(&entry.path()) {
                Ok(record) => self.take_over(&sandbox, record, &entry.path()).await?,
                Err(error) => {
                    kill_by_mounts(&entry.path());
                    Known::Broken(format!("its record cannot be read: {error}"))
                }
            };
            self.boxes().insert(sandbox, known);
        }
        Ok(())
    }

    async fn take_over(&self, sandbox: &SandboxId, mut record: Record, folder: &Path) -> Result<Known, BackendError> {
        match &record.stage {
            Stage::Stopped => return Ok(Known::Box(record, None)),
            Stage::Started(process) if process.lives() => {
                let opened = Pid::from_raw(process.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
                // Between the look and the open the pid may have been used again: looked at once more.
                if let Some(pidfd) = opened.filter(|_| process.lives()) {
                    let live = Live::new(pidfd)
                        .map_err(|error| BackendError::failed(format!("watch the box of {sandbox}"), error))?;
                    let live = Arc::new(live);
                    let place = Place { sandbox, slot: record.slot, pid: process.pid, live: &live };
                    if let (true, Ok(nat)) = (record.nat, &self.nat)
                        && let Err(error) = nat.adopt(&place, &self.spawner).await
                    {
                        // What runs in it is worth more than its network, which comes back with the next start.
                        tracing::warn!(%sandbox, %error, "a box that was taken over has no network");
                    }
                    return Ok(Known::Box(record, Some(live)));
                }
            }
            // The crash came between the clone and the record of its pid.
            Stage::Starting => kill_by_mounts(folder),
            Stage::Started(_) => {}
        }
        record.stage = Stage::Stopped;
        record.write(folder).map_err(|error| BackendError::failed(format!("write the record of {sandbox}"), error))?;
        if let Err(error) = self.cgroups.remove(sandbox).await {
            tracing::warn!(%sandbox, %error, "cgroups of a box that ended are left");
        }
        Ok(Known::Box(record, None))
    }
}

/// Kills every process that has the box's directory among its mounts: slow, and only for repair.
fn kill_by_mounts(folder: &Path) {
    let needle = format!("{}/", folder.display());
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if mounts.contains(&needle)
            && let Some(pid) = Pid::from_raw(pid)
        {
            // One that ended meanwhile needs no signal.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

fn listen(folder: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(folder.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = fs::File::open(folder)?;
    UnixListener::bind(socket_path(folder.as_raw_fd()))
}

/// The overlay's work directory has mode 000, which stops an ordinary user.
fn remove_tree(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let data = fs::read_dir(path.join("data")).into_iter().flatten().flatten();
    for work in data.filter(|entry| entry.file_name().to_string_lossy().starts_with("work")) {
        let inner = work.path().join("work");
        let _ = fs::set_permissions(&inner, fs::Permissions::from_mode(0o700));
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
