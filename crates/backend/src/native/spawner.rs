//! The spawner as the backend sees it: started from memory, asked over a socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dispense_spawner::{Answer, Network, PacketError, Request, receive, send};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::BackendError;

static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dispense-agent"));
static SPAWNER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dispense-spawner"));

/// From the request to the exec, or to the first step that failed.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);
/// A failed step is told in one line.
const STATUS_MAX_BYTES: u64 = 4096;

/// A started process.
pub(super) struct Spawned {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

/// The program and its socket.
pub(super) struct Spawner {
    socket: Mutex<OwnedFd>,
    agent: OwnedFd,
    child: Mutex<Child>,
}

impl Drop for Spawner {
    fn drop(&mut self) {
        // The closed socket ends it; it is waited for so that nothing of it is left.
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Spawner {
    /// Starts the program. `state_dir` is its argument, so that a process list tells whose it is.
    pub(super) fn start(state_dir: &Path) -> Result<Self, BackendError> {
        let failed = |error: io::Error| BackendError::failed("start the spawner", error);
        let program = sealed("dispense-spawner", SPAWNER).map_err(failed)?;
        let agent = sealed("dispense-agent", AGENT).map_err(failed)?;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| failed(error.into()))?;
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        let mut command = Command::new(path);
        use std::os::unix::process::CommandExt;
        let command =
            command.arg0("dispense-spawner").arg(state_dir).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let child = command.stdin(Stdio::from(far)).stdout(Stdio::null()).process_group(0).spawn().map_err(failed)?;
        Ok(Self { socket: Mutex::new(near), agent, child: Mutex::new(child) })
    }

    /// The agent's program.
    pub(super) fn agent(&self) -> BorrowedFd<'_> {
        self.agent.as_fd()
    }

    /// Asks for a process and waits until it has done its part: executed its program, or ended well.
    pub(super) async fn ask(
        &self,
        request: Request,
        before: &[BorrowedFd<'_>],
        after: &[BorrowedFd<'_>],
    ) -> Result<Spawned, BackendError> {
        let failed = |error: io::Error| BackendError::failed("ask the spawner", error);
        let (status, writer) = pipe::pipe().map(|(writer, reader)| (reader, writer)).map_err(failed)?;
        let writer = writer.into_blocking_fd().map_err(failed)?;
        let spawned = self.exchange(&request, &[before, &[writer.as_fd()], after].concat())?;
        drop(writer);
        let mut text = String::new();
        let mut status = status.take(STATUS_MAX_BYTES);
        match tokio::time::timeout(EXEC_TIMEOUT, status.read_to_string(&mut text)).await {
            Ok(Ok(0)) => Ok(spawned),
            Ok(Ok(_)) => {
                let mut parts = text.split('\0');
                let action = parts.next().unwrap_or_default().to_owned();
                let errno: i32 = parts.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                let source =
                    if errno > 0 { io::Error::from_raw_os_error(errno) } else { io::Error::other(text.clone()) };
                Err(BackendError::failed(action, source))
            }
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => {
                let _ = rustix::process::pidfd_send_signal(&spawned.pidfd, rustix::process::Signal::KILL);
                Err(BackendError::failed(
                    "start the box",
                    format!("it was not ready within {} s", EXEC_TIMEOUT.as_secs()),
                ))
            }
        }
    }

    /// Has the sockets of a network made in the namespaces of a box.
    pub(super) async fn network(&self, user: BorrowedFd<'_>, net: BorrowedFd<'_>) -> Result<Network, BackendError> {
        let failed = |error| BackendError::failed("take the sockets of a box's network", error);
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| failed(error.into()))?;
        self.ask(Request::Network, &[user, net], &[far.as_fd()]).await?;
        // They are there by now; without our end a process that was killed before has closed the last one.
        drop(far);
        let ((), fds) = receive(&near).map_err(failed)?;
        let [tcp, udp, raw] = <[OwnedFd; 3]>::try_from(fds).map_err(|_| failed(PacketError::Gone))?;
        Ok(Network { tcp, udp, raw })
    }

    /// One request and its answer. Short: the spawner answers as soon as it has cloned.
    fn exchange(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Spawned, BackendError> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |error| BackendError::failed("ask the spawner", error);
        send(&*socket, request, fds).map_err(failed)?;
        let (answer, mut fds) = receive::<Answer>(&*socket).map_err(failed)?;
        match (answer, fds.pop()) {
            (Answer::Spawned { pid }, Some(pidfd)) => Ok(Spawned { pid, pidfd }),
            (Answer::Spawned { .. }, None) => {
                Err(BackendError::failed("ask the spawner", "its answer has no descriptor"))
            }
            (Answer::Failed { message }, _) => Err(BackendError::failed("start the box", message)),
        }
    }
}

/// A program in memory that nobody can change.
fn sealed(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Write;
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content)?;
    // Not WRITE, which fails with EBUSY for as long as the kernel itself holds a page, e.g. to move it. Nobody has a
    // writable mapping of what was just made, so refusing future writes refuses all.
    let seals = SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_sealed_program_can_be_read_and_never_changed() {
        let fd = sealed("test", b"content").expect("the kernel has memory files");
        let mut file = std::fs::File::from(fd);
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err() && file.set_len(100).is_err());
        let mut content = [0; 7];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut content, 0).expect("it is readable");
        assert_eq!(&content, b"content");
    }
}
