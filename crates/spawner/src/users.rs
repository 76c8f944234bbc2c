//! User namespaces. Root has one prepared for each range of ids, made once and joined by every later box of that
//! range; an ordinary user's box gets its own with its clone, since only there is it privileged.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;

use dispense_spawner::Users;

use crate::sys::{self, Cloned};

/// Namespaces that stay: one for each range that was used.
#[derive(Default)]
pub(crate) struct UserNamespaces {
    ranges: HashMap<Users, OwnedFd>,
}

/// How one box gets its ids.
pub(crate) enum Prepared<'a> {
    /// Joined after the mounts, which need more than the box will have.
    Join(BorrowedFd<'a>),
    /// Made with the clone; the parent maps, the child waits for it.
    Own { users: Users, wait: io::PipeReader, mapped: io::PipeWriter },
}

impl UserNamespaces {
    /// Prepares the ids of a box.
    pub(crate) fn prepare(&mut self, users: &Users) -> io::Result<Prepared<'_>> {
        let Users::Range { .. } = users else {
            let (wait, mapped) = io::pipe()?;
            return Ok(Prepared::Own { users: users.clone(), wait, mapped });
        };
        if !self.ranges.contains_key(users) {
            let made = make(users)?;
            self.ranges.insert(users.clone(), made);
        }
        let fd = self.ranges.get(users).ok_or(io::ErrorKind::NotFound)?;
        Ok(Prepared::Join(fd.as_fd()))
    }
}

impl Prepared<'_> {
    /// What the clone makes.
    pub(crate) fn clone_flags(&self) -> libc::c_int {
        match self {
            Self::Join(_) => 0,
            Self::Own { .. } => libc::CLONE_NEWUSER,
        }
    }

    /// The parent's part, after the clone.
    pub(crate) fn map(self, pid: i32) -> io::Result<()> {
        let Self::Own { users, wait, mut mapped } = self else { return Ok(()) };
        drop(wait);
        map(&users, pid)?;
        mapped.write_all(b"m")
    }

    /// The child's first part: waits until its ids are mapped, and takes uid 0.
    pub(crate) fn wait(self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Join(fd) => fd.try_clone_to_owned().map(Some),
            Self::Own { mut wait, mapped, users } => {
                drop(mapped);
                wait.read_exact(&mut [0])?;
                become_root(users != Users::Single)?;
                Ok(None)
            }
        }
    }
}

/// Takes uid and gid 0 of this user namespace. Groups can be dropped only where a range is mapped.
pub(crate) fn become_root(drop_groups: bool) -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    if drop_groups {
        rustix::thread::set_thread_groups(&[])?;
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Makes a user namespace that outlives its maker by its descriptor.
fn make(users: &Users) -> io::Result<OwnedFd> {
    match sys::clone(libc::CLONE_NEWUSER, None)? {
        Cloned::Child => loop {
            // Killed by the parent, or by its own clock when that has gone.
            std::thread::sleep(std::time::Duration::from_secs(1));
            if rustix::process::getppid().is_none_or(|parent| parent.is_init()) {
                sys::exit(0);
            }
        },
        Cloned::Parent { pid, pidfd } => {
            let made = map(users, pid).and_then(|()| fs::File::open(format!("/proc/{pid}/ns/user")));
            rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL)?;
            made.map(OwnedFd::from)
        }
    }
}

/// Writes the id maps of a process.
pub(crate) fn map(users: &Users, pid: i32) -> io::Result<()> {
    let write = |file: &str, text: String| fs::write(format!("/proc/{pid}/{file}"), text);
    match *users {
        Users::Range { first, count } => {
            write("uid_map", format!("0 {first} {count}\n"))?;
            write("gid_map", format!("0 {first} {count}\n"))
        }
        Users::Single => {
            write("setgroups", "deny".to_owned())?;
            write("uid_map", format!("0 {} 1\n", rustix::process::geteuid().as_raw()))?;
            write("gid_map", format!("0 {} 1\n", rustix::process::getegid().as_raw()))
        }
        Users::Subordinate { uid, gid, count } => {
            let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            helper("newuidmap", pid, own.0, uid, count)?;
            helper("newgidmap", pid, own.1, gid, count)
        }
    }
}

/// The system's own set-user-id programs are the only way to map a range for an ordinary user.
fn helper(program: &str, pid: i32, own: u32, first: u32, count: u32) -> io::Result<()> {
    let args =
        [pid.to_string(), "0".into(), own.to_string(), "1".into(), "1".into(), first.to_string(), count.to_string()];
    // SIGCHLD is ignored here, so the status cannot be waited for: success is seen by what it wrote.
    let mut child = Command::new(program).args(&args).stdin(std::process::Stdio::null()).spawn()?;
    let _ = child.wait();
    let file = if program == "newuidmap" { "uid_map" } else { "gid_map" };
    let map = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    if map.lines().count() < 2 {
        return Err(io::Error::other(format!(
            "{program} refused the range {first}+{count}: see /etc/subuid and /etc/subgid"
        )));
    }
    Ok(())
}
