//! The spawner: makes the first process of each box. It reads requests from its stdin, which is a socket of
//! whole packets, and ends when the other side goes; the boxes go on.
//!
//! One thread, no runtime, nothing but what a clone needs.

mod child;
mod mounts;
mod network;
mod remove;
mod sys;
mod users;

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use dispense_spawner::{Answer, Cgroup, PacketError, Request, Spawn, receive, send};

use sys::Cloned;
use users::UserNamespaces;

fn main() -> ExitCode {
    sys::ignore_children();
    let socket = match rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3) {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("spawner: no socket on stdin: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut users = UserNamespaces::default();
    loop {
        let (request, fds) = match receive::<Request>(&socket) {
            Ok(received) => received,
            Err(PacketError::Gone) => return ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("spawner: {error}");
                return ExitCode::FAILURE;
            }
        };
        let result = match request {
            Request::Spawn(spawn) => start(&spawn, fds, &mut users),
            Request::Remove { path, users } => remove::start(&path, &users, fds),
            Request::Network => network::start(fds),
        };
        let sent = match result {
            Ok((pid, pidfd)) => send(&socket, &Answer::Spawned { pid }, &[pidfd.as_fd()]),
            Err(message) => send(&socket, &Answer::Failed { message }, &[]),
        };
        if sent.is_err() {
            return ExitCode::FAILURE;
        }
    }
}

/// Clones the first process of a box.
fn start(spawn: &Spawn, mut fds: Vec<OwnedFd>, users: &mut UserNamespaces) -> Result<(i32, OwnedFd), String> {
    let wanted = 3 + match &spawn.cgroup {
        Cgroup::None => 0,
        Cgroup::V1 { tasks, .. } => *tasks,
        Cgroup::V2 { .. } => 1,
    };
    if fds.len() != wanted {
        return Err(format!("start a box: {} descriptors came instead of {wanted}", fds.len()));
    }
    let cgroups = fds.split_off(3);
    let mut fds = fds.into_iter();
    let (Some(program), Some(listener), Some(status)) = (fds.next(), fds.next(), fds.next()) else {
        return Err("start a box: descriptors are missing".to_owned());
    };
    let users = users.prepare(&spawn.users).map_err(|error| format!("map the ids of a box: {error}"))?;
    let into = matches!(spawn.cgroup, Cgroup::V2 { .. }).then(|| &cgroups[0]);
    let cloned =
        sys::clone(users.clone_flags() | child::NAMESPACES, into).map_err(|error| format!("clone: {error}"))?;
    match cloned {
        Cloned::Parent { pid, pidfd } => {
            if let Err(error) = users.map(pid) {
                // The child waits for its ids and goes with the pipe; it is killed so that it goes now.
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                return Err(format!("map the ids of a box: {error}"));
            }
            Ok((pid, pidfd))
        }
        Cloned::Child => child::run(spawn, child::Descriptors { program, listener, status, cgroups }, users),
    }
}
