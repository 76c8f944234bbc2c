//! The store: every state of the control plane, in one database.
//!
//! Readers use a pool. All writes go through one writer task, which commits whatever has queued up in one
//! transaction, so that a burst of a hundred changes costs one `fsync` and not a hundred.
//!
//! INVARIANT: a change answers after its commit. A change that fails in SQL takes no other down: the batch
//! is rolled back and its changes run alone.

pub(crate) mod jobs;
pub(crate) mod keys;
pub(crate) mod logs;
pub(crate) mod meta;
pub(crate) mod runners;
pub(crate) mod sandboxes;
mod writer;

use std::path::Path;
use std::sync::Once;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use sqlx::AnyConnection;
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyPool, Executor};

use writer::Writer;

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
            Some(inner) if inner.message().contains("disk is full") => Self::Full,
            _ => Self::Sql(error),
        }
    }
}

/// The open database.
pub(crate) struct Store {
    readers: AnyPool,
    writer: Writer,
}

impl Store {
    /// Opens or makes the database file and brings its schema to this version.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let url = format!("sqlite://{}?mode=rwc", path.display());
        let pool = |connections| {
            AnyPoolOptions::new().max_connections(connections).acquire_timeout(BUSY_TIMEOUT).after_connect(
                |connection, _| {
                    Box::pin(async move {
                        // FULL: what a client was told is on the disk.
                        let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                                       PRAGMA busy_timeout = 5000; PRAGMA cache_size = -16000;";
                        connection.execute(pragmas).await?;
                        Ok(())
                    })
                },
            )
        };
        let writing = pool(1).connect(&url).await?;
        sqlx::migrate!().run(&writing).await?;
        let readers = pool(READERS).connect(&url).await?;
        let connection = writing.acquire().await?.detach();
        Ok(Self { readers, writer: Writer::start(connection) })
    }

    /// For queries that change nothing.
    pub(crate) fn readers(&self) -> &AnyPool {
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

    /// Commits what has queued up and closes the database.
    pub(crate) async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }
}

/// Microseconds since 1970, as the store keeps time.
pub(crate) fn now_micros() -> i64 {
    micros(SystemTime::now())
}

/// Microseconds since 1970.
pub(crate) fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Encodes a value that the store keeps as JSON.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("maps and plain structs always encode")
}
