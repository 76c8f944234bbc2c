//! Queries that change nothing.

use std::time::Duration;

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AnyPool};
use tokio::sync::Mutex;

use super::{StoreError, in_place};

/// For the goodbye of all connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A query with its values.
pub(crate) type AnyQuery<'q> = sqlx::query::Query<'q, sqlx::Any, sqlx::any::AnyArguments>;

/// The connections that read.
pub(crate) enum Readers {
    /// Each query may take so long.
    Pool(AnyPool, Option<Duration>),
    /// For which the thread waits.
    One(Mutex<AnyConnection>),
}

impl Readers {
    /// Every row.
    pub(super) async fn all(&self, query: AnyQuery<'_>) -> Result<Vec<AnyRow>, StoreError> {
        let rows = match self {
            Self::Pool(pool, limit) => in_time(*limit, query.fetch_all(pool)).await?,
            Self::One(connection) => in_place(true, query.fetch_all(&mut *connection.lock().await)).await,
        };
        Ok(rows?)
    }

    /// The first row, if there is one.
    pub(super) async fn optional(&self, query: AnyQuery<'_>) -> Result<Option<AnyRow>, StoreError> {
        let row = match self {
            Self::Pool(pool, limit) => in_time(*limit, query.fetch_optional(pool)).await?,
            Self::One(connection) => in_place(true, query.fetch_optional(&mut *connection.lock().await)).await,
        };
        Ok(row?)
    }

    pub(super) async fn close(&self) {
        if let Self::Pool(pool, _) = self
            && tokio::time::timeout(CLOSE_TIMEOUT, pool.close()).await.is_err()
        {
            tracing::debug!("the database did not take the end of its connections");
        }
    }
}

async fn in_time<T>(limit: Option<Duration>, answer: impl Future<Output = T>) -> Result<T, StoreError> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, answer).await.map_err(|_| StoreError::Silent),
        None => Ok(answer.await),
    }
}
