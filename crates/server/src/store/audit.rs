//! Rows of the audit log: added, read, and never changed.

use sqlx::AnyConnection;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Readers, StoreError};
use crate::audit::{Entry, FIRST_HASH, Record};

/// Adds an entry behind the last one.
pub(crate) async fn append(tx: &mut AnyConnection, record: &Record) -> Result<(), StoreError> {
    let last = sqlx::query("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetch_optional(&mut *tx).await?;
    let (seq, hash) = match last {
        Some(row) => (row.try_get::<i64, _>("seq")? + 1, row.try_get("hash")?),
        None => (1, FIRST_HASH.to_owned()),
    };
    let hash = record.hash(seq, &hash);
    let sql = "INSERT INTO audit (seq, at, account, key_id, action, target, outcome, request_id, hash) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    sqlx::query(sql)
        .bind(seq)
        .bind(record.at)
        .bind(record.account.clone())
        .bind(record.key_id.clone())
        .bind(record.action.clone())
        .bind(record.target.clone())
        .bind(record.outcome.clone())
        .bind(record.request_id.clone())
        .bind(hash)
        .execute(tx)
        .await?;
    Ok(())
}

/// Entries after a number, oldest first.
pub(crate) async fn page(readers: &Readers, after: i64, limit: usize) -> Result<Vec<Entry>, StoreError> {
    let sql = "SELECT seq, at, account, key_id, action, target, outcome, request_id, hash FROM audit \
               WHERE seq > $1 ORDER BY seq LIMIT $2";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    readers.all(sqlx::query(sql).bind(after).bind(limit)).await?.iter().map(entry).collect()
}

fn entry(row: &AnyRow) -> Result<Entry, StoreError> {
    let record = Record {
        at: row.try_get("at")?,
        account: row.try_get("account")?,
        key_id: row.try_get("key_id")?,
        action: row.try_get("action")?,
        target: row.try_get("target")?,
        outcome: row.try_get("outcome")?,
        request_id: row.try_get("request_id")?,
    };
    Ok(Entry { seq: row.try_get("seq")?, hash: row.try_get("hash")?, record })
}
