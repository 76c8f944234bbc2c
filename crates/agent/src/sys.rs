//! The system calls that have no safe form: fork with exec, reaping, and a few flags of this process.
//!
//! Between fork and exec the child calls only what is async-signal-safe, on memory prepared before.

#![expect(unsafe_code, reason = "fork, exec and wait are system calls without a safe form")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Everything a child needs, prepared before the fork.
pub(crate) struct Prepared<'a> {
    /// Paths to try, in this order.
    pub(crate) candidates: &'a [CString],
    pub(crate) args: &'a [CString],
    pub(crate) env: &'a [CString],
    pub(crate) cwd: &'a CString,
    /// Absent: the child keeps the identity of this process.
    pub(crate) identity: Option<Identity<'a>>,
    pub(crate) stdin: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// stdin is a terminal, which becomes the controlling one.
    pub(crate) terminal: bool,
}

/// Who the child becomes.
pub(crate) struct Identity<'a> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: &'a [u32],
}

/// What a child could not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Setup,
    Identity,
    Cwd,
    Exec,
}

const STAGES: [Stage; 4] = [Stage::Setup, Stage::Identity, Stage::Cwd, Stage::Exec];

/// Forks and executes. An error of the child comes back with the stage it happened in.
pub(crate) fn spawn(prepared: &Prepared<'_>) -> Result<libc::pid_t, (Stage, io::Error)> {
    let here = |error| (Stage::Setup, error);
    let args = pointers(prepared.args);
    let env = pointers(prepared.env);
    let (reader, writer) = pipe().map_err(here)?;
    // SAFETY: the child branch below never returns and allocates nothing.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(here(io::Error::last_os_error()));
    }
    if pid == 0 {
        let (stage, errno) = child(prepared, &args, &env);
        let message = [stage as u8, errno as u8, (errno >> 8) as u8];
        // SAFETY: a live descriptor and a buffer of three bytes; `_exit` runs none of the parent's handlers.
        unsafe {
            libc::write(writer.as_raw_fd(), message.as_ptr().cast(), message.len());
            libc::_exit(127)
        }
    }
    drop(writer);
    let mut message = [0u8; 3];
    loop {
        // SAFETY: a live descriptor and a buffer of three bytes.
        let count = unsafe { libc::read(reader.as_raw_fd(), message.as_mut_ptr().cast(), message.len()) };
        if count < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if count != 3 {
            // The pipe was closed by the exec.
            return Ok(pid);
        }
        break;
    }
    // The child is not registered with the reaper, so it is reaped here.
    let mut status = 0;
    // SAFETY: our own child; `status` outlives the call.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    let errno = i32::from(message[1]) | i32::from(message[2]) << 8;
    let stage = STAGES.get(usize::from(message[0])).copied().unwrap_or(Stage::Setup);
    Err((stage, io::Error::from_raw_os_error(errno)))
}

/// The child's part; returns only on failure.
fn child(prepared: &Prepared<'_>, args: &[*const libc::c_char], env: &[*const libc::c_char]) -> (Stage, i32) {
    let failed = |stage| (stage, io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
    // SAFETY: plain system calls on values and NUL-terminated strings that were prepared before the fork.
    unsafe {
        libc::setsid();
        for (from, to) in [(prepared.stdin, 0), (prepared.stdout, 1), (prepared.stderr, 2)] {
            // dup2 onto itself would keep close-on-exec; the agent's descriptors are all above 2.
            if libc::dup2(from.as_raw_fd(), to) < 0 {
                return failed(Stage::Setup);
            }
        }
        if prepared.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return failed(Stage::Setup);
        }
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        reset_signals();
        let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if score >= 0 {
            libc::write(score, c"0".as_ptr().cast(), 1);
        }
        if let Some(identity) = &prepared.identity {
            let set = libc::setgroups(identity.groups.len(), identity.groups.as_ptr()) == 0
                && libc::setresgid(identity.gid, identity.gid, identity.gid) == 0
                && libc::setresuid(identity.uid, identity.uid, identity.uid) == 0;
            if !set {
                return failed(Stage::Identity);
            }
        }
        if libc::chdir(prepared.cwd.as_ptr()) != 0 {
            return failed(Stage::Cwd);
        }
        let mut worst = libc::ENOENT;
        for candidate in prepared.candidates {
            libc::execve(candidate.as_ptr(), args.as_ptr(), env.as_ptr());
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            // As a shell does: a file that is there but cannot be executed is told only if none later can.
            if errno != libc::ENOENT && errno != libc::ENOTDIR {
                worst = errno;
            }
            if errno != libc::ENOENT && errno != libc::ENOTDIR && errno != libc::EACCES {
                break;
            }
        }
        (Stage::Exec, worst)
    }
}

/// SAFETY: to be called in a child only: it changes the process's signal handling.
unsafe fn reset_signals() {
    // SAFETY: an all-zero set and the default disposition are valid values; unknown signals are refused.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    // SAFETY: an array of two, which the kernel fills with descriptors that nobody else owns.
    unsafe {
        if libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(u8),
    Signal(u8),
}

/// Reaps `pid` if it has ended, or any child with `None`; the pid and how it ended.
pub(crate) fn reap(pid: Option<libc::pid_t>) -> Option<(libc::pid_t, Ended)> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let reaped = unsafe { libc::waitpid(pid.unwrap_or(-1), &raw mut status, libc::WNOHANG) };
    if reaped <= 0 {
        return None;
    }
    let ended = if libc::WIFSIGNALED(status) {
        Ended::Signal(libc::WTERMSIG(status) as u8)
    } else {
        Ended::Code(libc::WEXITSTATUS(status) as u8)
    };
    Some((reaped, ended))
}

/// Takes a descriptor that was inherited from whoever started the agent.
pub(crate) fn inherited(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: asks for flags only, then takes the descriptor once, at the start, before anything else runs.
    unsafe {
        if fd < 3 || libc::fcntl(fd, libc::F_GETFD) < 0 {
            return None;
        }
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        Some(OwnedFd::from_raw_fd(fd))
    }
}

/// Registers a descriptor with the event loop.
pub(crate) fn register(fd: OwnedFd, interest: tokio::io::Interest) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor keeps its number and stays open for as long as it is owned.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
