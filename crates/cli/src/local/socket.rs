//! The server's side of the socket: tells where the server is, and counts who holds on to it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dispense_client::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::failure::local;

/// In the data directory, which only its owner can enter.
const NAME: &str = "embedded.sock";

/// A path to the socket that fits into a socket address, however long the directory's is. The file keeps
/// the path valid.
pub(super) fn path(data_dir: &Path) -> std::io::Result<(File, PathBuf)> {
    let folder = File::open(data_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd()));
    Ok((folder, path))
}

/// The listening socket.
pub(super) struct Socket {
    /// Cancelled when nobody holds a lease any more, and nobody can take one.
    unused: CancellationToken,
    file: PathBuf,
    shutdown: CancellationToken,
}

/// An embedded server whose starter is gone before it has taken its lease ends after this long.
const FIRST_LEASE_TIMEOUT: Duration = Duration::from_secs(10);

impl Socket {
    /// Listens. The data directory is ours, so a socket that is there is a dead one. With `while_used` it closes by
    /// itself with the last lease.
    pub(super) fn open(
        data_dir: &Path,
        line: impl Fn() -> String + Send + 'static,
        while_used: bool,
    ) -> Result<Self, Error> {
        let file = data_dir.join(NAME);
        let failed = |error: std::io::Error| local(format_args!("listen on {}", file.display()), &error);
        let (_folder, path) = path(data_dir).map_err(failed)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let (unused, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let leases = Leases { line: Box::new(line), file: file.clone(), while_used, unused: unused.clone() };
        tokio::spawn(leases.serve(listener, shutdown.clone()));
        Ok(Self { unused, file, shutdown })
    }

    /// Returns when nobody holds a lease any more, and nobody can take one.
    pub(super) async fn unused(&self) {
        self.unused.cancelled().await;
    }

    /// Takes no more clients. One that had connected and got no answer starts a server of its own.
    pub(super) fn close(&self) {
        self.shutdown.cancel();
        remove(&self.file);
    }
}

fn remove(file: &Path) {
    if let Err(error) = fs::remove_file(file) {
        tracing::debug!(%error, "socket was not removed");
    }
}

/// Who counts the leases.
struct Leases {
    /// What a client is told.
    line: Box<dyn Fn() -> String + Send>,
    file: PathBuf,
    while_used: bool,
    unused: CancellationToken,
}

impl Leases {
    /// INVARIANT: a client that was answered holds a lease. Accepting and counting are one task, so that none comes
    /// between the end of the last lease and the closing.
    async fn serve(self, listener: UnixListener, shutdown: CancellationToken) {
        let mut holders = JoinSet::new();
        let first = tokio::time::sleep(FIRST_LEASE_TIMEOUT);
        tokio::pin!(first);
        let mut taken = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        taken = true;
                        let line = (self.line)();
                        holders.spawn(async move { hold(stream, &line).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept");
                        tokio::task::yield_now().await;
                    }
                },
                Some(_) = holders.join_next() => {}
                () = &mut first, if self.while_used && !taken => break,
            }
            if self.while_used && taken && holders.is_empty() {
                break;
            }
        }
        // Whoever has connected and was not accepted sees the end, and starts a server of its own.
        remove(&self.file);
        drop(listener);
        self.unused.cancel();
    }
}

/// Answers, then waits for the other side to go; the kernel closes the connection of a killed client.
async fn hold(mut stream: UnixStream, line: &str) {
    if stream.write_all(line.as_bytes()).await.is_err() {
        return;
    }
    let mut buffer = [0; 64];
    while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}
