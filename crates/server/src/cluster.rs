//! Several servers on one PostgreSQL database: one leads, and the others pass every connection on to it, so that each
//! of them answers for every sandbox. When the leader is gone, one of the others leads in its place (ADR 0017).
//!
//! ```text
//! client, runner ──► any server ──► the leader ──► PostgreSQL, which lets one server write at a time
//! ```

use std::io;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::StartError;
use crate::data_dir::DataDir;
use crate::door::listener::{self, Listener};
use crate::store::{self, Candidate, Database, Lead, Leader, StoreError, StoreMode};
use crate::vault;

/// Between looks at who leads: a leader that was ended is replaced within this time.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// For one look; the next one connects anew.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// For a connection to the leader.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections of one port that are passed on, each of which needs two descriptors.
const CONNECTIONS_MAX: usize = 4096;

/// The ports of a server.
pub(crate) struct Listeners<L> {
    pub(crate) public: L,
    pub(crate) runners: L,
    pub(crate) ssh: Option<L>,
}

impl<L: Listener> Listeners<L> {
    /// What the others are told of them.
    pub(crate) fn leader(&self, id: String, host: &str, secrets: String) -> Leader {
        let at = |listener: &L| {
            let port = listener.local_addr().map_or(0, |address| address.port());
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        };
        Leader { id, public: at(&self.public), runners: at(&self.runners), ssh: self.ssh.as_ref().map(at), secrets }
    }
}

/// Returns when this server leads; until then its ports lead to the one that does.
pub(crate) async fn lead<L: Listener>(
    database: &Database,
    mode: &StoreMode,
    listeners: Listeners<L>,
    data_dir: &DataDir,
) -> Result<(Lead, Listeners<L>), StartError> {
    let failed = |error: StoreError| StartError::store(database, &error);
    let mut candidate = database.candidate();
    let leader = match store::in_place(mode.is_held(), candidate.lead()).await.map_err(failed)? {
        Ok(lead) => return Ok((lead, listeners)),
        Err(leader) => leader,
    };
    if let Some(leader) = &leader {
        check_secrets(data_dir, leader)?;
        tracing::info!(leader = %leader.public, "another server leads: this one passes connections on to it");
    }
    let (told, leader) = watch::channel(leader);
    let passing = Passing::start(listeners, &leader);
    let lead = wait_to_lead(candidate, &told).await;
    tracing::info!("this server leads");
    let listeners = passing.stop().await.map_err(|source| StartError::Standby { source })?;
    Ok((lead, listeners))
}

/// Without the key a server could not lead: it is told now, and not when the others are gone.
fn check_secrets(data_dir: &DataDir, leader: &Leader) -> Result<(), StartError> {
    if vault::fingerprint(data_dir)?.as_ref() == Some(&leader.secrets) {
        return Ok(());
    }
    let message = format!(
        "the server at {} seals the secrets of this database with another key: copy its secrets.key, and its \
         admin.key, to {}",
        leader.public,
        data_dir.join("").display()
    );
    Err(StartError::Vault(message))
}

async fn wait_to_lead(mut candidate: Candidate, told: &watch::Sender<Option<Leader>>) -> Lead {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        match tokio::time::timeout(LOOK_TIMEOUT, candidate.lead()).await {
            Ok(Ok(Ok(lead))) => return lead,
            Ok(Ok(Err(leader))) => {
                told.send_if_modified(|known| {
                    let news = leader.is_some() && *known != leader;
                    if news {
                        *known = leader;
                    }
                    news
                });
            }
            Ok(Err(error)) => tracing::warn!(%error, "the database does not say who leads"),
            Err(_) => tracing::warn!(after = ?LOOK_TIMEOUT, "the database does not answer who leads"),
        }
    }
}

/// The ports of a server that does not lead.
struct Passing<L> {
    ports: Listeners<JoinHandle<L>>,
    ended: CancellationToken,
    /// Ends them with whoever waits.
    _guard: DropGuard,
}

impl<L: Listener> Passing<L> {
    fn start(listeners: Listeners<L>, leader: &watch::Receiver<Option<Leader>>) -> Self {
        let ended = CancellationToken::new();
        let pass = |listener: L, port: fn(&Leader) -> Option<&str>| {
            let leader = leader.clone();
            let each = move |stream: L::Stream, _| {
                let address = leader.borrow().as_ref().and_then(port).map(str::to_owned);
                async move {
                    let Some(address) = address else { return };
                    if let Err(error) = pass_on(stream, &address).await {
                        tracing::debug!(%address, %error, "connection that was passed on");
                    }
                }
            };
            tokio::spawn(listener::accept(listener, CONNECTIONS_MAX, each, TaskTracker::new(), ended.clone()))
        };
        let ports = Listeners {
            public: pass(listeners.public, |leader| Some(&leader.public)),
            runners: pass(listeners.runners, |leader| Some(&leader.runners)),
            ssh: listeners.ssh.map(|listener| pass(listener, |leader| leader.ssh.as_deref())),
        };
        Self { ports, _guard: ended.clone().drop_guard(), ended }
    }

    /// The ports; connections that were passed on last as long as their ends.
    async fn stop(self) -> io::Result<Listeners<L>> {
        self.ended.cancel();
        let Listeners { public, runners, ssh } = self.ports;
        let ssh = match ssh {
            Some(task) => Some(task.await?),
            None => None,
        };
        Ok(Listeners { public: public.await?, runners: runners.await?, ssh })
    }
}

async fn pass_on(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    address: &str,
) -> io::Result<()> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
    let mut leader = connecting.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    leader.set_nodelay(true)?;
    copy_bidirectional(&mut stream, &mut leader).await?;
    Ok(())
}
