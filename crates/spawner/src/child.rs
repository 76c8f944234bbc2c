//! The first process of a box, from the clone to the exec of the agent. Each step has a name; the first that
//! fails is told on the status pipe as `name\0errno\0text`.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use dispense_spawner::Spawn;
use rustix::fs::Mode;
use rustix::thread::{CapabilitySet, LinkNameSpaceType};

use crate::mounts;
use crate::sys;
use crate::users::{self, Prepared};

/// Every box has these of its own; its cgroup namespace comes after it has joined its cgroup.
pub(crate) const NAMESPACES: libc::c_int =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// Where the agent finds its listening socket.
const LISTEN_FD: i32 = 3;

/// What root inside may do: what Docker leaves, which lets package managers and servers work.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// What the child inherits on purpose.
pub(crate) struct Descriptors {
    pub(crate) program: OwnedFd,
    pub(crate) listener: OwnedFd,
    pub(crate) status: OwnedFd,
    pub(crate) cgroups: Vec<OwnedFd>,
}

/// Becomes the agent, or tells why not.
pub(crate) fn run(spawn: &Spawn, fds: Descriptors, users: Prepared<'_>) -> ! {
    let Ok(status) = sys::raise(fds.status) else { sys::exit(125) };
    let Ok(program) = sys::raise(fds.program) else { sys::exit(125) };
    let (step, error) = match become_agent(spawn, &program, &status, fds.listener, fds.cgroups, users) {
        Ok(error) => ("execute the agent", error),
        Err((step, error)) => (step, error),
    };
    let text = format!("{step}\0{}\0{error}", error.raw_os_error().unwrap_or(0));
    let _ = fs::File::from(status).write_all(text.as_bytes());
    sys::exit(125)
}

type Step<T> = Result<T, (&'static str, io::Error)>;

fn step<T, E: Into<io::Error>>(name: &'static str, result: Result<T, E>) -> Step<T> {
    result.map_err(|error| (name, error.into()))
}

/// Returns only when the exec failed.
fn become_agent(
    spawn: &Spawn,
    program: &OwnedFd,
    status: &OwnedFd,
    listener: OwnedFd,
    cgroups: Vec<OwnedFd>,
    users: Prepared<'_>,
) -> Step<io::Error> {
    let join = step("take the ids of the box", users.wait())?;
    step("start a session", rustix::process::setsid())?;
    sys::reset_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if matches!(spawn.cgroup, dispense_spawner::Cgroup::V1 { .. }) {
        for tasks in cgroups {
            // The child writes itself in: from the parent it would cost the kernel 10 ms.
            step("join the cgroups", fs::File::from(tasks).write_all(b"0"))?;
        }
    }
    if !matches!(spawn.cgroup, dispense_spawner::Cgroup::None) {
        step("make the cgroup namespace", sys::unshare(libc::CLONE_NEWCGROUP))?;
    }
    step("set the host name", rustix::system::sethostname(spawn.hostname.as_bytes()))?;
    step("bring loopback up", sys::loopback_up())?;
    mounts::put_together(spawn, join.as_ref())?;
    for (path, content) in &spawn.files {
        step("write the box's own files", write_missing(spawn, path, content))?;
    }
    if let Some(namespace) = join {
        let kind = Some(LinkNameSpaceType::User);
        step(
            "join the user namespace",
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind),
        )?;
        step("take the ids of the box", users::become_root(true))?;
    }
    let args = [c"dispense-agent".to_owned()];
    let env = spawn.env.iter().map(|entry| CString::new(entry.as_str())).collect::<Result<Vec<_>, _>>();
    let env = step("pass the environment", env.map_err(|_| io::ErrorKind::InvalidInput))?;
    step("place the listening socket", sys::place(listener, LISTEN_FD, &[program, status]))?;
    step("reduce the capabilities", reduce_capabilities())?;
    if spawn.no_new_privs {
        step("refuse new privileges", rustix::thread::set_no_new_privs(true))?;
    }
    // Last: the filter refuses some of what was needed above. It needs no_new_privs or CAP_SYS_ADMIN, which is
    // still held and goes with the exec, since the bounding set has lost it.
    step("load the system call filter", sys::load_filter(&spawn.seccomp))?;
    Ok(sys::execute(program, &args, &env))
}

fn reduce_capabilities() -> io::Result<()> {
    for bit in 0..64 {
        let Some(one) = CapabilitySet::from_bits(1 << bit) else { continue };
        if !CAPABILITIES.contains(one) {
            match rustix::thread::remove_capability_from_bounding_set(one) {
                // A capability that this kernel does not know.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn write_missing(spawn: &Spawn, path: &PathBuf, content: &str) -> io::Result<()> {
    // An empty file has nothing to say; a link of the template may lead anywhere and stays.
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file() || there.len() > 0) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let is_new = fs::symlink_metadata(path).is_err();
    fs::write(path, content)?;
    if is_new { mounts::give(spawn, path) } else { Ok(()) }
}
