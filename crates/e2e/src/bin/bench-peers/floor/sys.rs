//! The system calls of the floor. Only this file of xtask has unsafe code: a child between fork and exec.

#![expect(unsafe_code, reason = "fork, clone3 and exec are system calls without a safe form")]

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A process that was started here.
pub(crate) struct Child(libc::pid_t);

impl Child {
    /// Waits for its end: its exit code, or 128 and the signal.
    pub(crate) fn wait(self) -> io::Result<i32> {
        let mut status = 0;
        // SAFETY: the pid is that of our own child, which nobody else reaps; `status` outlives the call.
        check(unsafe { libc::waitpid(self.0, &raw mut status, 0) }.into())?;
        Ok(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) })
    }
}

/// The prepared paths of one sandbox, as the child needs them: no allocation after the fork.
pub(crate) struct Layers {
    root: CString,
    overlay_options: CString,
    proc: CString,
    dev: CString,
    nodes: Vec<(CString, CString)>,
}

impl Layers {
    /// Makes the directories of a sandbox over `lower` in `folder`.
    pub(crate) fn make(lower: &Path, folder: &Path) -> io::Result<Self> {
        let root = folder.join("root");
        for name in ["upper", "work", "root"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            folder.join("upper").display(),
            folder.join("work").display()
        );
        let nodes = ["null", "zero", "full", "random", "urandom", "tty"]
            .map(|name| Ok((c_path(&Path::new("/dev").join(name))?, c_path(&root.join("dev").join(name))?)))
            .into_iter()
            .collect::<io::Result<_>>()?;
        Ok(Self {
            root: c_path(&root)?,
            overlay_options: CString::new(options)?,
            proc: c_path(&root.join("proc"))?,
            dev: c_path(&root.join("dev"))?,
            nodes,
        })
    }
}

/// Forks and executes `argv` with its stdout at `out`.
pub(crate) fn spawn_bare(argv: &[CString], out: BorrowedFd<'_>) -> io::Result<Child> {
    let pointers = pointers(argv);
    // SAFETY: the child calls only dup2, execve and _exit, on memory prepared before.
    let pid = check(unsafe { libc::fork() }.into())?;
    if pid == 0 {
        exec(&pointers, out.as_raw_fd());
    }
    Ok(Child(pid as libc::pid_t))
}

/// Makes a sandbox of namespaces, overlay, `/dev`, `/proc`, cgroups and loopback, and executes `argv` in it.
pub(crate) fn spawn_sandbox(
    layers: &Layers,
    tasks: &[File],
    argv: &[CString],
    out: BorrowedFd<'_>,
) -> io::Result<Child> {
    let pointers = pointers(argv);
    let tasks: Vec<i32> = tasks.iter().map(AsRawFd::as_raw_fd).collect();
    let flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    // SAFETY: clone without CLONE_VM and with a null stack acts as fork; the arguments are the kernel's.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) })?;
    if pid == 0 {
        if set_up(layers, &tasks).is_err() {
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(125) };
        }
        exec(&pointers, out.as_raw_fd());
    }
    Ok(Child(pid as libc::pid_t))
}

fn set_up(layers: &Layers, tasks: &[i32]) -> io::Result<()> {
    for fd in tasks {
        // SAFETY: a live descriptor and a static buffer of one byte.
        check(unsafe { libc::write(*fd, c"0".as_ptr().cast(), 1) } as i64)?;
    }
    mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, None)?;
    mount(c"overlay", &layers.root, c"overlay", 0, Some(&layers.overlay_options))?;
    mount(c"proc", &layers.proc, c"proc", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, None)?;
    mount(c"tmpfs", &layers.dev, c"tmpfs", libc::MS_NOSUID, None)?;
    for (from, to) in &layers.nodes {
        // SAFETY: a NUL-terminated path.
        let fd = check(unsafe { libc::open(to.as_ptr(), libc::O_CREAT | libc::O_CLOEXEC, 0o666) }.into())?;
        // SAFETY: a descriptor opened on the line above.
        unsafe { libc::close(fd as i32) };
        mount(from, to, c"", libc::MS_BIND, None)?;
    }
    // SAFETY: NUL-terminated paths; the calls change only this child's own mount namespace and directory.
    unsafe {
        check(libc::chdir(layers.root.as_ptr()).into())?;
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into())?;
    }
    loopback_up()
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    // SAFETY: the request outlives the ioctl; the socket is closed at exec.
    unsafe {
        let socket = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).into())?;
        check(libc::ioctl(socket as i32, libc::SIOCSIFFLAGS, &raw const request).into())?;
    }
    Ok(())
}

fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong, options: Option<&CStr>) -> io::Result<()> {
    let options = options.map_or(std::ptr::null(), |text| text.as_ptr().cast());
    // SAFETY: NUL-terminated strings that outlive the call.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options) }.into())?;
    Ok(())
}

fn exec(argv: &[*const libc::c_char], out: i32) -> ! {
    let environment = [std::ptr::null()];
    // SAFETY: `argv` ends with a null pointer and its strings outlive the call; on failure the child ends.
    unsafe {
        libc::dup2(out, 1);
        libc::execve(argv[0], argv.as_ptr(), environment.as_ptr());
        libc::_exit(127)
    }
}

fn pointers(argv: &[CString]) -> Vec<*const libc::c_char> {
    argv.iter().map(|arg| arg.as_ptr()).chain([std::ptr::null()]).collect()
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
