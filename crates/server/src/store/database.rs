//! Which database, how it is connected to, and who may write to it.
//!
//! A file is written by the process that has its data directory. A PostgreSQL database may be shared by several
//! servers: the one that holds a lock of it writes. The lock belongs to the session that writes, so whoever loses the
//! one has lost the other; PostgreSQL ends a session that is silent for [`LEAD_TIMEOUT_MS`], so that a server which hangs
//! or is cut off holds nobody up.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{AnyConnection, Connection, Executor, Row};
use tokio_util::sync::CancellationToken;

use super::{StoreError, meta};
use crate::auth::secret::random;

/// FULL: what a client was told is on the disk.
const PRAGMAS: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000; \
                       PRAGMA cache_size = -16000;";
/// Held by the server that writes: any number that is always the same.
const WRITER_LOCK: &str = "SELECT pg_try_advisory_lock(4850263112) AS held";
/// A leader that says nothing for this long has lost the lock.
const LEAD_TIMEOUT_MS: u32 = 15_000;
/// Between signs of life of a leader that has nothing to write.
pub(super) const LEAD_KEEPALIVE: Duration = Duration::from_secs(4);
/// In `meta`.
const LEADER: &str = "leader";

/// Which database.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// A SQLite file.
    File(PathBuf),
    /// A PostgreSQL server, as `postgres://USER:PASSWORD@HOST/NAME`.
    Postgres(String),
}

impl Database {
    pub(super) fn url(&self) -> String {
        match self {
            Self::File(path) => format!("sqlite://{}?mode=rwc", path.display()),
            Self::Postgres(url) => url.clone(),
        }
    }

    /// What is done to a fresh connection.
    pub(super) async fn prepare(&self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        if let Self::File(_) = self {
            connection.execute(PRAGMAS).await?;
        }
        Ok(())
    }

    /// Begins a transaction of the writer.
    pub(super) fn begin(&self) -> &'static str {
        match self {
            // The lock is taken before anything is read, so that no read in the transaction is stale.
            Self::File(_) => "BEGIN IMMEDIATE",
            // The writer is the only one.
            Self::Postgres(_) => "BEGIN",
        }
    }

    /// A connection that reads.
    pub(super) async fn connect(&self) -> Result<AnyConnection, StoreError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        if let Self::File(path) = self {
            writable(path)?;
        }
        let mut connection = AnyConnection::connect(&self.url()).await?;
        self.prepare(&mut connection).await?;
        Ok(connection)
    }

    /// One that would write.
    pub(crate) fn candidate(&self) -> Candidate {
        Candidate { database: self.clone(), connection: None }
    }

    /// Whether the session may write from now on.
    async fn take(&self, connection: &mut AnyConnection) -> Result<bool, StoreError> {
        if let Self::File(_) = self {
            return Ok(true);
        }
        let row = sqlx::query(WRITER_LOCK).fetch_one(&mut *connection).await?;
        let held = row.try_get("held")?;
        for name in ["idle_session_timeout", "idle_in_transaction_session_timeout"] {
            let sql = format!("SET {name} = {LEAD_TIMEOUT_MS}");
            // Before version 14 there is none for idle ones: a leader that hangs then leads until it is ended.
            if held && let Err(error) = connection.execute(sqlx::AssertSqlSafe(sql)).await {
                tracing::warn!(%error, "this PostgreSQL cannot take the lead from a server that hangs");
            }
        }
        Ok(held)
    }
}

/// A server that would write, with its connection between two attempts.
pub(crate) struct Candidate {
    database: Database,
    connection: Option<AnyConnection>,
}

impl Candidate {
    /// Makes this server the one that writes, or tells which one does.
    ///
    /// CANCEL SAFETY: the next attempt connects anew.
    pub(crate) async fn lead(&mut self) -> Result<Result<Lead, Option<Leader>>, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.database.connect().await?,
        };
        if self.database.take(&mut connection).await? {
            let (database, id, lost) = (self.database.clone(), random(""), CancellationToken::new());
            return Ok(Ok(Lead { database, connection, id, lost }));
        }
        let leader = leader(&mut connection).await;
        self.connection = Some(connection);
        Ok(Err(leader))
    }
}

/// The right to write, and the connection to do it with.
pub(crate) struct Lead {
    pub(super) database: Database,
    pub(super) connection: AnyConnection,
    /// Names this time of leading.
    pub(crate) id: String,
    /// Cancelled when another server leads.
    pub(super) lost: CancellationToken,
}

impl Lead {
    /// After a failure: the database may have been restarted, or the network cut.
    pub(super) async fn restore(&mut self) {
        let Err(error) = self.connection.ping().await else { return };
        tracing::warn!(%error, "the connection to the database is lost");
        match self.reconnect().await {
            Ok(true) => {}
            Ok(false) => {
                tracing::error!("another server leads");
                self.lost.cancel();
            }
            Err(error) => tracing::error!(%error, "the database cannot be written: the next change tries again"),
        }
    }

    /// `false` when another server has taken the lead.
    async fn reconnect(&mut self) -> Result<bool, StoreError> {
        let mut fresh = self.database.connect().await?;
        let held = self.database.take(&mut fresh).await?;
        let ours = match leader(&mut fresh).await {
            // Whoever led in between may have changed anything.
            Some(leader) => leader.id == self.id,
            None => true,
        };
        if held && ours {
            self.connection = fresh;
        } else if ours {
            tracing::warn!("the database still has this server's former session: the next change tries again");
        }
        Ok(ours)
    }
}

/// The server that leads, for the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leader {
    pub(crate) id: String,
    /// Where the others reach its ports, each as `HOST:PORT`.
    pub(crate) public: String,
    pub(crate) runners: String,
    pub(crate) ssh: Option<String>,
    /// Hash of the key of its secrets, which the others need.
    pub(crate) secrets: String,
}

impl Leader {
    /// Tells the others.
    pub(crate) async fn announce(&self, tx: &mut AnyConnection) -> Result<(), StoreError> {
        meta::put(tx, LEADER, &super::json(self)).await
    }
}

/// Who led last, as far as it can be read.
async fn leader(connection: &mut AnyConnection) -> Option<Leader> {
    // Before the first server has made the tables there is none.
    let text = meta::get(connection, LEADER).await.unwrap_or_default()?;
    serde_json::from_str(&text).ok()
}

/// Without the password.
impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_string())
    }
}

impl std::fmt::Display for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => {
                let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", ""));
                write!(f, "{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, place)| place))
            }
        }
    }
}

/// SQLite would leave files beside a database that nobody can write.
fn writable(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).open(path) {
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            Err(StoreError::ReadOnly)
        }
        _ => Ok(()),
    }
}
