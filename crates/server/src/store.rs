//! The store: every state of the control plane, in one database.
//!
//! Readers use a pool. All writes go through one writer task, which commits whatever has queued up in one
//! transaction, so that a burst of a hundred changes costs one `fsync` and not a hundred.
//!
//! INVARIANT: a change answers after its commit. A change that fails in SQL takes no other down: the batch
//! is rolled back and its changes run alone.

pub(crate) mod audit;
mod database;
pub(crate) mod events;
pub(crate) mod jobs;
pub(crate) mod keys;
mod lead;
pub(crate) mod logs;
pub(crate) mod meta;
pub(crate) mod previews;
mod readers;
pub(crate) mod runners;
pub(crate) mod sandboxes;
pub(crate) mod secrets;
mod sql;
pub(crate) mod ssh_keys;
mod transaction;
pub(crate) mod usage;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, Row};
use tokio::sync::{Mutex, watch};

use crate::metrics::Metrics;
use writer::Writer;

pub use database::Database;
pub use lead::LeadLost;
pub(crate) use lead::{Candidate, Lead, Leader};
pub(crate) use readers::{AnyQuery, Readers};

/// Connections that read; more gain nothing on a file.
const READERS: u32 = 4;
/// A reader waits at most this long for a connection, a writer for the lock of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A change under way.
pub(crate) type Change<'c, T> = BoxFuture<'c, Result<T, StoreError>>;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// A value that must be unique is there already.
    #[error("failed to store: the value exists")]
    Taken,
    /// The disk of the server is full.
    #[error("failed to store: the server's disk is full")]
    Full,
    /// Its file, directory or file system is read-only.
    #[error("failed to write the database: make its file and directory writable for this user")]
    ReadOnly,
    /// It says nothing.
    #[error("failed to use the database: it does not answer")]
    Silent,
    /// It was asked to write, and nobody knows whether it did.
    #[error("failed to learn whether the database took a change")]
    Unsure,
    /// It has not noticed yet that this server's former connection was cut.
    #[error("failed to use the database: it still has this server's former session")]
    Former,
    /// The database cannot be written or read now.
    #[error("failed to use the database")]
    Sql(#[source] sqlx::Error),
    /// The schema cannot be brought to this version.
    #[error("failed to migrate the database")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A row that this version cannot read.
    #[error("failed to read {what} of row {id}")]
    Row {
        /// Which row.
        id: String,
        /// Which column.
        what: &'static str,
    },
    /// The writer has ended.
    #[error("failed to store: the server is shutting down")]
    Closed,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error() {
            Some(inner) if inner.is_unique_violation() => Self::Taken,
            Some(inner) if inner.message().contains("disk is full") || is(inner, "53100") => Self::Full,
            Some(inner) if inner.message().contains("readonly database") || is(inner, "25006") => Self::ReadOnly,
            _ => Self::Sql(error),
        }
    }
}

/// Whether it is a PostgreSQL error of this SQLSTATE.
fn is(error: &dyn sqlx::error::DatabaseError, state: &str) -> bool {
    error.code().is_some_and(|code| code == state)
}

/// How the database answers.
#[derive(Clone)]
pub enum StoreMode {
    /// As soon as it can, while other things go on.
    Free,
    /// While the caller's thread waits, so that a simulation repeats itself; a commit is preceded by a pause.
    Held {
        /// How long the disk takes.
        pause: Arc<dyn Fn() -> Duration + Send + Sync>,
    },
}

impl StoreMode {
    pub(crate) fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }
}

/// The open database.
pub(crate) struct Store {
    readers: Readers,
    writer: Writer,
    lost: watch::Receiver<Option<LeadLost>>,
}

impl Store {
    /// Brings the schema of a database to this version, and serves it. `lead` is what this server writes with.
    pub(crate) async fn open(lead: Lead, mode: StoreMode, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        in_place(mode.is_held(), Self::open_now(lead, mode, metrics)).await
    }

    async fn open_now(mut lead: Lead, mode: StoreMode, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        sqlx::migrate!().run(&mut lead.connection).await?;
        let readers = if mode.is_held() {
            Readers::One(Mutex::new(lead.database.connect().await?))
        } else {
            let options = AnyPoolOptions::new().max_connections(READERS).acquire_timeout(BUSY_TIMEOUT);
            let kind = lead.database.clone();
            let options = options.after_connect(move |connection, _| {
                let kind = kind.clone();
                Box::pin(async move { kind.prepare(connection).await })
            });
            Readers::Pool(options.connect(&lead.database.url()).await?, lead.database.query_timeout())
        };
        Ok(Self { readers, lost: lead.lost.subscribe(), writer: Writer::start(lead, mode, metrics) })
    }

    /// One in a folder, for a test.
    #[cfg(test)]
    pub(crate) async fn in_folder(folder: &std::path::Path) -> Self {
        let lead = Database::File(folder.join("server.db")).candidate().lead().await.expect("it opens");
        let lead = lead.unwrap_or_else(|_| panic!("a file has no other server"));
        Self::open(lead, StoreMode::Free, Arc::default()).await.expect("it opens")
    }

    /// Returns when this server may not write any more.
    pub(crate) async fn lost(&self) -> LeadLost {
        let mut lost = self.lost.clone();
        let why = lost.wait_for(Option::is_some).await.ok().and_then(|why| *why);
        match why {
            Some(why) => why,
            // It was closed in order.
            None => std::future::pending().await,
        }
    }

    /// For queries that change nothing.
    pub(crate) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Runs a change and answers once it is on the disk. The change may run twice, and decides before it
    /// writes: what it returns as `Ok` is committed, whatever it is.
    pub(crate) async fn write<T, F>(&self, change: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut AnyConnection) -> Change<'c, T> + Send + 'static,
    {
        self.writer.write(change, |_| ()).await
    }

    /// The same, and calls `after` with the result in the order of the commits, before anybody learns of
    /// them: what is told to runners is told in the order in which it became true.
    pub(crate) async fn write_then<T, F, A>(&self, change: F, after: A) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut AnyConnection) -> Change<'c, T> + Send + 'static,
        A: FnOnce(&mut T) + Send + 'static,
    {
        self.writer.write(change, after).await
    }

    /// Queues a change behind those that were asked for before, and does not wait for it: it is on the disk no
    /// later than the next one that is answered. One that fails is told in the log.
    pub(crate) async fn post<F>(&self, change: F) -> Result<(), StoreError>
    where
        F: for<'c> Fn(&'c mut AnyConnection) -> Change<'c, ()> + Send + 'static,
    {
        self.writer.post(change).await
    }

    /// Commits what has queued up and closes the database.
    pub(crate) async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }
}

/// Waits for the database on this thread, so that nothing else happens meanwhile, or as any future.
pub(crate) async fn in_place<T>(held: bool, answer: impl Future<Output = T>) -> T {
    if held {
        // Not for this runtime's scheduler to stop half way.
        futures_executor::block_on(tokio::task::unconstrained(answer))
    } else {
        answer.await
    }
}

/// Counts of `what`; of those that there are none of, 0.
async fn counts(
    readers: &Readers,
    sql: &'static str,
    all: impl Iterator<Item = &'static str>,
) -> Result<Vec<(String, i64)>, StoreError> {
    let rows = readers.all(sqlx::query(sql)).await?;
    let mut counts: BTreeMap<String, i64> = all.map(|what| (what.to_owned(), 0)).collect();
    for row in &rows {
        counts.insert(row.try_get("what")?, row.try_get("count")?);
    }
    Ok(counts.into_iter().collect())
}

/// Encodes a value that the store keeps as JSON.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("maps and plain structs always encode")
}
