//! The server's side of the socket: tells where the server is, and counts who holds on to it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use dispense_client::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::LocalInfo;
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
    leases: watch::Receiver<usize>,
    file: PathBuf,
    shutdown: CancellationToken,
}

impl Socket {
    /// Listens. The data directory is ours, so a socket that is there is a dead one.
    pub(super) fn open(data_dir: &Path, info: &LocalInfo) -> Result<Self, Error> {
        let file = data_dir.join(NAME);
        let failed = |error: std::io::Error| local(format_args!("listen on {}", file.display()), &error);
        let (_folder, path) = path(data_dir).map_err(failed)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let (counter, leases) = watch::channel(0);
        let shutdown = CancellationToken::new();
        let line = format!("{}\n", serde_json::to_string(info).unwrap_or_default());
        tokio::spawn(serve(listener, line, counter, shutdown.clone()));
        Ok(Self { leases, file, shutdown })
    }

    pub(super) fn leases(&self) -> watch::Receiver<usize> {
        self.leases.clone()
    }

    /// Takes no more clients. One that had connected and got no answer starts a server of its own.
    pub(super) fn close(&self) {
        self.shutdown.cancel();
        if let Err(error) = fs::remove_file(&self.file) {
            tracing::debug!(%error, "socket was not removed");
        }
    }
}

async fn serve(listener: UnixListener, line: String, leases: watch::Sender<usize>, shutdown: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (line, leases, shutdown) = (line.clone(), leases.clone(), shutdown.clone());
                leases.send_modify(|count| *count += 1);
                tokio::spawn(async move {
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = hold(stream, &line) => {}
                    }
                    leases.send_modify(|count| *count -= 1);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::task::yield_now().await;
            }
        }
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
