//! One transaction of the writer, and what became of it when its connection was cut.

use std::time::Duration;

use sqlx::{AnyConnection, Executor, Row};
use tokio::time::timeout;

use super::writer::Change;
use super::{Database, StoreError};

/// Between questions after a transaction that is still under way.
const OUTCOME_PAUSE: Duration = Duration::from_millis(200);

/// How far a transaction has come.
#[derive(Default)]
pub(super) struct Progress {
    /// By which PostgreSQL knows it.
    pub(super) number: Option<String>,
    /// Whether it was told to commit.
    pub(super) committing: bool,
}

/// Runs changes and commits them. Where it fails over a connection that still answers, nothing of them is written.
pub(super) async fn transact(
    connection: &mut AnyConnection,
    database: &Database,
    batch: &mut [Box<dyn Change>],
    progress: &mut Progress,
) -> Result<(), StoreError> {
    let result = run(connection, database, batch, progress).await;
    if result.is_err()
        && let Err(error) = connection.execute("ROLLBACK").await
    {
        // SQLite has rolled back by itself, e.g. when the disk was full.
        tracing::debug!(%error, "rollback");
    }
    result
}

async fn run(
    connection: &mut AnyConnection,
    database: &Database,
    batch: &mut [Box<dyn Change>],
    progress: &mut Progress,
) -> Result<(), StoreError> {
    progress.number = begin(connection, database).await?;
    for change in batch {
        change.run(connection).await?;
    }
    progress.committing = true;
    connection.execute("COMMIT").await?;
    Ok(())
}

/// Begins a transaction; its number where it has one.
async fn begin(connection: &mut AnyConnection, database: &Database) -> Result<Option<String>, StoreError> {
    match database {
        // The lock is taken before anything is read, so that no read in the transaction is stale.
        Database::File(_) => {
            connection.execute("BEGIN IMMEDIATE").await?;
            Ok(None)
        }
        // The writer is the only one. Both in one message, so that the number costs no round trip.
        Database::Postgres(_) => {
            let both = sqlx::raw_sql("BEGIN; SELECT CAST(pg_current_xact_id() AS TEXT) AS number");
            let rows = both.fetch_all(connection).await?;
            Ok(rows.first().map(|row| row.try_get("number")).transpose()?)
        }
    }
}

/// Whether a transaction was committed whose connection was cut meanwhile; `None` when that cannot be learned.
pub(super) async fn outcome(database: &Database, number: &str, limit: Duration) -> Option<bool> {
    let told = async {
        loop {
            match status(database, number).await {
                Ok(Some(status)) if status == "committed" => return Some(true),
                Ok(Some(status)) if status == "aborted" => return Some(false),
                // It is under way.
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(error) => tracing::warn!(%error, "the database does not tell what became of a transaction"),
            }
            tokio::time::sleep(OUTCOME_PAUSE).await;
        }
    };
    timeout(limit, told).await.ok().flatten()
}

/// What became of a transaction; `None` of one that PostgreSQL has forgotten.
async fn status(database: &Database, number: &str) -> Result<Option<String>, StoreError> {
    let mut connection = database.connect().await?;
    let sql = "SELECT pg_xact_status(CAST(CAST($1 AS TEXT) AS XID8)) AS status";
    let row = sqlx::query(sql).bind(number).fetch_one(&mut connection).await?;
    Ok(row.try_get("status")?)
}
