//! The system calls that have no safe form: clone with exec, reaping, and a few flags of this process.
//!
//! Between clone and exec the child calls only what is async-signal-safe, on memory prepared before.

#![expect(unsafe_code, reason = "clone, exec and wait are system calls without a safe form")]

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

/// Stack of a child until its exec; it calls nothing deep.
const CHILD_STACK_BYTES: usize = 64 << 10;

/// What parent and child share until the exec: they share all memory.
struct Launch<'a> {
    prepared: &'a Prepared<'a>,
    args: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    /// Set by a child that could not execute.
    failure: Option<(Stage, i32)>,
}

/// Starts a process. An error of the child comes back with the stage it happened in.
///
/// As `posix_spawn` does it: the child borrows this process's memory and this thread waits until it has
/// executed or ended, so that no page table is copied.
pub(crate) fn spawn(prepared: &Prepared<'_>) -> Result<libc::pid_t, (Stage, io::Error)> {
    let mut launch = Launch { prepared, args: pointers(prepared.args), env: pointers(prepared.env), failure: None };
    let mut stack = vec![0u128; CHILD_STACK_BYTES / size_of::<u128>()];
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the stack and `launch` outlive the child's use of them, since CLONE_VFORK holds this thread until the
    // exec or exit. Signals are blocked meanwhile, so that no handler of ours runs in the child on shared memory.
    let pid = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, before.as_mut_ptr());
        let top = stack.as_mut_ptr_range().end.cast();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let pid = libc::clone(run_child, top, flags, (&raw mut launch).cast());
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        if pid < 0 {
            return Err((Stage::Setup, error));
        }
        pid
    };
    // SAFETY: written by the child before it ended, which happened before `clone` returned; read as the kernel, and
    // not the compiler, ordered it.
    let failure = unsafe { std::ptr::read_volatile(&raw const launch.failure) };
    let Some((stage, errno)) = failure else { return Ok(pid) };
    // The child is not registered with the reaper, so it is reaped here.
    let mut status = 0;
    // SAFETY: our own child; `status` outlives the call.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    Err((stage, io::Error::from_raw_os_error(errno)))
}

extern "C" fn run_child(launch: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the pointer that `spawn` passed, which nobody else uses while this runs.
    unsafe {
        let launch = &mut *launch.cast::<Launch<'_>>();
        let failure = child(launch.prepared, &launch.args, &launch.env);
        std::ptr::write_volatile(&raw mut launch.failure, Some(failure));
        // Runs none of the parent's exit handlers.
        libc::_exit(127)
    }
}

/// The child's part; returns only on failure.
fn child(prepared: &Prepared<'_>, args: &[*const libc::c_char], env: &[*const libc::c_char]) -> (Stage, i32) {
    let failed = |stage| (stage, io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
    // SAFETY: plain system calls on values and NUL-terminated strings that were prepared before the clone.
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
            // The library's functions would change every thread of the memory that is shared with the parent.
            let (uid, gid) = (identity.uid, identity.gid);
            let set = libc::syscall(libc::SYS_setgroups, identity.groups.len(), identity.groups.as_ptr()) == 0
                && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
                && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0;
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
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        // Only now: before, a signal would have run a handler of the parent.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
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

/// Overwrites the value of a variable where the kernel shows it (`/proc/PID/environ`). Only while there is one thread.
pub(crate) fn blot_out(name: &str) {
    // SAFETY: the environment is an array of C strings that ends with a null pointer. Each is ours to write up to its
    // end, and nobody else reads or changes it: no other thread runs yet.
    unsafe {
        let mut entry = libc::environ;
        while !entry.is_null() && !(*entry).is_null() {
            let text = std::ffi::CStr::from_ptr(*entry).to_bytes();
            let value = text.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
            if let Some(len) = value.map(<[u8]>::len) {
                let start = (*entry).add(name.len() + 1);
                start.write_bytes(0, len);
            }
            entry = entry.add(1);
        }
    }
}

/// Registers a descriptor with the event loop.
pub(crate) fn register(fd: OwnedFd, interest: tokio::io::Interest) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor keeps its number and stays open for as long as it is owned.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
