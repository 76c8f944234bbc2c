//! The system calls of the spawner that have no safe form.

#![expect(unsafe_code, reason = "clone3, mount_setattr, seccomp and execveat are system calls without a safe form")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use dispense_spawner::Instruction;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `CLONE_INTO_CGROUP` of the kernel, whose constant in libc has too few bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The two sides of a clone.
pub(crate) enum Cloned {
    Parent { pid: i32, pidfd: OwnedFd },
    Child,
}

/// Clones this process into new namespaces, and into a cgroup of version 2 when one is given.
pub(crate) fn clone(namespaces: libc::c_int, cgroup: Option<&OwnedFd>) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all zero is a valid `clone_args`.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (namespaces | libc::CLONE_PIDFD) as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and with no stack clone3 acts as fork; this program has one thread, so the child
    // may allocate. `pidfd` outlives the call.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(Cloned::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Moves this process into new namespaces.
pub(crate) fn unshare(namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: this program has one thread and shares its descriptors with nobody.
    check(unsafe { libc::unshare(namespaces) }.into()).map(drop)
}

/// Ends the child at once, running none of the parent's handlers.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

/// Children reap themselves.
pub(crate) fn ignore_children() {
    // SAFETY: sets a disposition; there is no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Gives every signal its default disposition and blocks none, as a first process expects.
pub(crate) fn reset_signals() {
    // SAFETY: an empty set and the default disposition are valid; unknown signals are refused.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Shows the files of a detached mount with the ids of a user namespace.
pub(crate) fn map_ids(mount: impl AsFd, users: impl AsFd) -> io::Result<()> {
    // SAFETY: all zero is a valid `mount_attr`.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_IDMAP;
    attributes.userns_fd = users.as_fd().as_raw_fd() as u64;
    // SAFETY: live descriptors, an empty NUL-terminated path, and a struct that outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Loads a system call filter.
pub(crate) fn load_filter(program: &[Instruction]) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> =
        program.iter().map(|one| libc::sock_filter { code: one.0, jt: one.1, jf: one.2, k: one.3 }).collect();
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its instructions outlive the call; the kernel checks them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) }).map(drop)
}

/// Brings loopback up in this network namespace.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: all zero is a valid `ifreq`; it outlives the ioctl; the socket is closed on return.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        let socket = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).into())?;
        let socket = OwnedFd::from_raw_fd(socket as i32);
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request).into()).map(drop)
    }
}

/// Switches an option of an IPv4 socket on.
pub(crate) fn switch_on(socket: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one integer, which outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_IP, option, (&raw const on).cast(), size) };
    check(result.into()).map(drop)
}

/// Puts `fd` at `number`, open over exec, and closes everything else from 3 on but `keep`, which is closed by the
/// exec.
pub(crate) fn place(fd: OwnedFd, number: i32, keep: &[&OwnedFd]) -> io::Result<()> {
    // SAFETY: plain operations on numbers of this process; what they close is used no more, since the next
    // step is the exec.
    unsafe {
        check(libc::dup2(fd.as_raw_fd(), number).into())?;
        if fd.as_raw_fd() == number {
            check(libc::fcntl(number, libc::F_SETFD, 0).into())?;
            std::mem::forget(fd);
        }
        check(libc::syscall(libc::SYS_close_range, number + 1, u32::MAX, libc::CLOSE_RANGE_CLOEXEC))?;
        for fd in keep {
            check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC).into())?;
        }
    }
    Ok(())
}

/// Copies a descriptor to a number above those that are placed.
pub(crate) fn raise(fd: OwnedFd) -> io::Result<OwnedFd> {
    /// Above the standard ones and the listening socket.
    const FIRST_FREE: i32 = 64;
    Ok(rustix::io::fcntl_dupfd_cloexec(&fd, FIRST_FREE)?)
}

/// Executes the program of a descriptor; returns only on failure.
pub(crate) fn execute(program: &OwnedFd, args: &[CString], env: &[CString]) -> io::Error {
    let pointers =
        |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: arrays of NUL-terminated strings that end with a null pointer and outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}
