//! The store: every state of the control plane, in one database.
//!
//! Readers use a pool. All writes go through one writer task, which commits whatever has queued up in one
//! transaction, so that a burst of a hundred changes costs one `fsync` and not a hundred.
//!
//! INVARIANT: a change answers after its commit. A change that fails in SQL takes no other down: the batch
//! is rolled back and its changes run alone.

pub(crate) mod audit;
pub(crate) mod events;
pub(crate) mod jobs;
pub(crate) mod keys;
pub(crate) mod logs;
pub(crate) mod meta;
pub(crate) mod previews;
mod readers;
pub(crate) mod runners;
pub(crate) mod sandboxes;
pub(crate) mod secrets;
mod sql;
pub(crate) mod ssh_keys;
mod writer;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, Connection, Executor, Row};
use tokio::sync::Mutex;

use crate::metrics::Metrics;
use writer::Writer;

pub(crate) use readers::{AnyQuery, Readers};

/// Connections that read; more gain nothing on a file.
const READERS: u32 = 4;
/// A reader waits at most this long for a connection, a writer for the lock of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// FULL: what a client was told is on the disk.
const PRAGMAS: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000; \
                       PRAGMA cache_size = -16000;";
/// Of a PostgreSQL database, held by the one server that writes to it: any number that is always the same.
const WRITER_LOCK: &str = "SELECT pg_try_advisory_lock(4850263112) AS held";

/// Which database.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// A SQLite file.
    File(PathBuf),
    /// A PostgreSQL server, as `postgres://USER:PASSWORD@HOST/NAME`.
    Postgres(String),
}

impl Database {
    fn url(&self) -> String {
        match self {
            Self::File(path) => format!("sqlite://{}?mode=rwc", path.display()),
            Self::Postgres(url) => url.clone(),
        }
    }

    /// What is done to a fresh connection.
    async fn prepare(&self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        if let Self::File(_) = self {
            connection.execute(PRAGMAS).await?;
        }
        Ok(())
    }

    /// Begins a transaction of the writer.
    fn begin(&self) -> &'static str {
        match self {
            // The lock is taken before anything is read, so that no read in the transaction is stale.
            Self::File(_) => "BEGIN IMMEDIATE",
            // The writer is the only one.
            Self::Postgres(_) => "BEGIN",
        }
    }

    /// The writer's connection.
    async fn connect_writer(&self) -> Result<AnyConnection, StoreError> {
        let mut connection = AnyConnection::connect(&self.url()).await?;
        self.prepare(&mut connection).await?;
        if let Self::Postgres(_) = self {
            let row = sqlx::query(WRITER_LOCK).fetch_one(&mut connection).await?;
            if !row.try_get::<bool, _>("held")? {
                return Err(StoreError::InUse);
            }
        }
        Ok(connection)
    }
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
    /// Another server writes to it.
    #[error("another server uses it: end that one first")]
    InUse,
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
    fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }
}

/// The open database.
pub(crate) struct Store {
    readers: Readers,
    writer: Writer,
}

impl Store {
    /// Opens the database, or makes the file, and brings its schema to this version.
    pub(crate) async fn open(database: Database, mode: StoreMode, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        in_place(mode.is_held(), Self::open_now(database, mode, metrics)).await
    }

    async fn open_now(database: Database, mode: StoreMode, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        if let Database::File(path) = &database {
            writable(path)?;
        }
        let mut writing = database.connect_writer().await?;
        sqlx::migrate!().run(&mut writing).await?;
        let readers = if mode.is_held() {
            let mut connection = AnyConnection::connect(&database.url()).await?;
            database.prepare(&mut connection).await?;
            Readers::One(Mutex::new(connection))
        } else {
            let options = AnyPoolOptions::new().max_connections(READERS).acquire_timeout(BUSY_TIMEOUT);
            let kind = database.clone();
            let options = options.after_connect(move |connection, _| {
                let kind = kind.clone();
                Box::pin(async move { kind.prepare(connection).await })
            });
            Readers::Pool(options.connect(&database.url()).await?)
        };
        Ok(Self { readers, writer: Writer::start(writing, database, mode, metrics) })
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

/// SQLite would leave files beside a database that nobody can write.
fn writable(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).open(path) {
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            Err(StoreError::ReadOnly)
        }
        _ => Ok(()),
    }
}

/// Waits for the database on this thread, so that nothing else happens meanwhile, or as any future.
async fn in_place<T>(held: bool, answer: impl Future<Output = T>) -> T {
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
