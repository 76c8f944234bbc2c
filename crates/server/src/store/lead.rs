//! The right to write to a database, and what becomes of it.
//!
//! A file is written by the process that has its data directory. A PostgreSQL database may be shared by several
//! servers: the one that holds a lock of it writes. The lock belongs to the session that writes, so whoever has lost the
//! one has lost the other; PostgreSQL ends a session that is silent for [`LEAD_TIMEOUT`], and a server to which PostgreSQL
//! is silent for as long gives up by itself. So neither one that hangs nor one that is cut off holds anybody up.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{AnyConnection, Connection, Executor, Row};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::transaction::{Progress, outcome, transact};
use super::writer::Change;
use super::{Database, StoreError, meta};
use crate::auth::secret::random;

/// Held by the server that writes: any number that is always the same.
const WRITER_LOCK: &str = "SELECT pg_try_advisory_lock(4850263112) AS held";
/// A leader that says nothing for this long has lost the lock; so has, for what it knows, one that hears nothing.
const LEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Between signs of life of a leader that has nothing to write.
pub(super) const LEAD_KEEPALIVE: Duration = Duration::from_secs(4);
/// Between looks whether a session is gone whose connection was cut.
const FORMER_PAUSE: Duration = Duration::from_millis(200);
const FORMER_LOOKS: u32 = 10;
/// In `meta`.
const LEADER: &str = "leader";

/// Why a server may write no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeadLost {
    /// Another one does.
    #[error("another server of the same database leads: start this one again, and it follows that one")]
    Taken,
    /// Another one may.
    #[error(
        "the database has not answered for {} s, so that another server may lead: start this one again once the \
         database can be reached",
        LEAD_TIMEOUT.as_secs()
    )]
    Silent,
    /// What it has in memory may differ from what is written.
    #[error("the database does not tell whether the last change was written: start this server again, and it reads it")]
    Unknown,
}

/// A server that would write, with its connection between two attempts.
pub(crate) struct Candidate {
    database: Database,
    connection: Option<AnyConnection>,
}

impl Candidate {
    pub(super) fn of(database: Database) -> Self {
        Self { database, connection: None }
    }

    /// Makes this server the one that writes, or tells which one does.
    ///
    /// CANCEL SAFETY: the next attempt connects anew.
    pub(crate) async fn lead(&mut self) -> Result<Result<Lead, Option<Leader>>, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.database.connect().await?,
        };
        if take(&self.database, &mut connection).await? {
            let (database, id) = (self.database.clone(), random(""));
            return Ok(Ok(Lead { database, connection, id, heard: Instant::now(), lost: watch::Sender::new(None) }));
        }
        // Before the first server has made the tables nobody has said so.
        let leader = leader(&mut connection).await.unwrap_or_default();
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
    /// When the session last answered.
    heard: Instant,
    /// Told when it is over.
    pub(super) lost: watch::Sender<Option<LeadLost>>,
}

/// Why nothing was written.
enum Failure {
    /// The database would not, or a change was at fault.
    Refused(StoreError),
    /// The connection is gone.
    Cut(StoreError),
}

impl Lead {
    pub(super) fn is_lost(&self) -> bool {
        self.lost.borrow().is_some()
    }

    /// Writes changes in one transaction. What is returned is what is on the disk, also when the connection was cut
    /// before the database could say so.
    pub(super) async fn commit(&mut self, batch: &mut [Box<dyn Change>]) -> Result<(), StoreError> {
        let mut result = self.attempt(batch).await;
        if let Err(Failure::Cut(_)) = result
            && self.regain().await
        {
            // What was undone by the cut is done again, so that nobody learns of it.
            result = self.attempt(batch).await;
        }
        result.map_err(|(Failure::Refused(error) | Failure::Cut(error))| error)
    }

    async fn attempt(&mut self, batch: &mut [Box<dyn Change>]) -> Result<(), Failure> {
        if self.is_lost() {
            return Err(Failure::Refused(StoreError::Closed));
        }
        let mut progress = Progress::default();
        let transaction = transact(&mut self.connection, &self.database, batch, &mut progress);
        let ended = match self.database {
            Database::File(_) => return transaction.await.map_err(Failure::Refused),
            // A transaction may take long, as long as there is a database.
            Database::Postgres(_) => tokio::select! {
                result = transaction => Some(result),
                () = silence(&self.database) => None,
            },
        };
        let error = match ended {
            Some(Ok(())) => {
                self.heard = Instant::now();
                return Ok(());
            }
            Some(Err(error)) => error,
            None => {
                self.lose(LeadLost::Silent);
                let unsure = progress.committing;
                return Err(Failure::Refused(if unsure { StoreError::Unsure } else { StoreError::Silent }));
            }
        };
        if self.connection_is_good().await {
            return Err(Failure::Refused(error));
        }
        let Progress { number: Some(number), committing: true } = progress else { return Err(Failure::Cut(error)) };
        match outcome(&self.database, &number, LEAD_TIMEOUT).await {
            Some(true) => Ok(()),
            Some(false) => Err(Failure::Cut(error)),
            None => {
                self.lose(LeadLost::Unknown);
                Err(Failure::Refused(StoreError::Unsure))
            }
        }
    }

    /// Looks whether this server still leads, and connects again where the database was restarted or the network cut.
    pub(super) async fn keep(&mut self) {
        if !self.is_lost() && !self.connection_is_good().await {
            self.regain().await;
        }
    }

    /// Connects again; whether it can write now.
    async fn regain(&mut self) -> bool {
        if self.is_lost() {
            return false;
        }
        match timeout(LEAD_TIMEOUT - LEAD_KEEPALIVE, self.reconnect()).await {
            Ok(Ok(Some(connection))) => {
                self.connection = connection;
                self.heard = Instant::now();
                return true;
            }
            Ok(Ok(None)) => self.lose(LeadLost::Taken),
            Ok(Err(error)) if is_silence(&error) && self.heard.elapsed() >= LEAD_TIMEOUT => self.lose(LeadLost::Silent),
            // Where it says so itself nobody else leads either.
            Ok(Err(error)) => tracing::error!(%error, "the database cannot be written: the next change tries again"),
            Err(_) => self.lose(LeadLost::Silent),
        }
        false
    }

    fn lose(&self, why: LeadLost) {
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            if first {
                tracing::error!("{why}");
                *lost = Some(why);
            }
            first
        });
    }

    /// Asks over it. One that says nothing at all takes the lead with it.
    async fn connection_is_good(&mut self) -> bool {
        match timeout(LEAD_TIMEOUT - LEAD_KEEPALIVE, self.connection.ping()).await {
            Ok(Ok(())) => {
                self.heard = Instant::now();
                true
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the connection to the database is lost");
                false
            }
            Err(_) => {
                self.lose(LeadLost::Silent);
                false
            }
        }
    }

    /// A new connection that may write; `None` when another server has taken the lead.
    async fn reconnect(&mut self) -> Result<Option<AnyConnection>, StoreError> {
        let mut fresh = self.database.connect().await?;
        for _ in 0..FORMER_LOOKS {
            let held = take(&self.database, &mut fresh).await?;
            // Whoever led in between may have changed anything.
            if leader(&mut fresh).await?.is_some_and(|leader| leader.id != self.id) {
                return Ok(None);
            }
            if held {
                return Ok(Some(fresh));
            }
            tokio::time::sleep(FORMER_PAUSE).await;
        }
        Err(StoreError::Former)
    }
}

/// Returns when a database has said nothing for so long that another server may lead. Asked over a connection of its own.
async fn silence(database: &Database) {
    let mut heard = Instant::now();
    loop {
        tokio::time::sleep(LEAD_KEEPALIVE).await;
        match timeout_at(heard + LEAD_TIMEOUT, database.connect()).await {
            Err(_) => return,
            Ok(Err(error)) if is_silence(&error) => {}
            Ok(_) => heard = Instant::now(),
        }
    }
}

/// Whether nobody is there who says why.
fn is_silence(error: &StoreError) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    match error {
        StoreError::Silent => true,
        StoreError::Sql(sqlx::Error::Io(error)) => {
            !matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound | UnexpectedEof)
        }
        _ => false,
    }
}

/// Whether the session may write from now on.
async fn take(database: &Database, connection: &mut AnyConnection) -> Result<bool, StoreError> {
    if let Database::File(_) = database {
        return Ok(true);
    }
    let row = sqlx::query(WRITER_LOCK).fetch_one(&mut *connection).await?;
    let held = row.try_get("held")?;
    for name in ["idle_session_timeout", "idle_in_transaction_session_timeout"] {
        let sql = format!("SET {name} = {}", LEAD_TIMEOUT.as_millis());
        // Before version 14 there is none for idle ones: a leader that hangs then leads until it is ended.
        if held && let Err(error) = connection.execute(sqlx::AssertSqlSafe(sql)).await {
            tracing::warn!(%error, "this PostgreSQL cannot take the lead from a server that hangs");
        }
    }
    Ok(held)
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

/// Who led last, as far as this version can read it.
async fn leader(connection: &mut AnyConnection) -> Result<Option<Leader>, StoreError> {
    let text = meta::get(connection, LEADER).await?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}
