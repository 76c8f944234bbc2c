//! Which database, and how it is connected to.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use sqlx::{AnyConnection, Connection, Executor};
use tokio::time::timeout;

use super::StoreError;
use super::lead::Candidate;

/// FULL: what a client was told is on the disk.
const PRAGMAS: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000; \
                       PRAGMA cache_size = -16000;";
/// For one connection to a server, which may have gone without a word.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For one query of it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(15);

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

    /// A file has its own, and what it does takes as long as it takes.
    pub(super) fn query_timeout(&self) -> Option<Duration> {
        match self {
            Self::File(_) => None,
            Self::Postgres(_) => Some(QUERY_TIMEOUT),
        }
    }

    /// A connection that reads.
    pub(super) async fn connect(&self) -> Result<AnyConnection, StoreError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        if let Self::File(path) = self {
            writable(path)?;
        }
        let connected = async {
            let mut connection = AnyConnection::connect(&self.url()).await?;
            self.prepare(&mut connection).await?;
            Ok(connection)
        };
        match self {
            Self::File(_) => connected.await,
            Self::Postgres(_) => timeout(CONNECT_TIMEOUT, connected).await.map_err(|_| StoreError::Silent)?,
        }
    }

    /// One that would write.
    pub(crate) fn candidate(&self) -> Candidate {
        Candidate::of(self.clone())
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

/// SQLite would leave files beside a database that nobody can write.
fn writable(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).open(path) {
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            Err(StoreError::ReadOnly)
        }
        _ => Ok(()),
    }
}
