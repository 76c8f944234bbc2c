//! Rows of runners.

use dispense_api::id::RunnerId;
use sqlx::AnyConnection;
use sqlx::Row;

use super::{Readers, StoreError, json};
use crate::fleet::{Facts, KnownRunner, Mode};

/// Adds a runner that has just joined.
pub(crate) async fn insert(
    tx: &mut AnyConnection,
    runner: &KnownRunner,
    credential_hash: &str,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO runner (id, name, credential_hash, facts, mode, joined_at, last_seen_at) \
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    sqlx::query(sql)
        .bind(runner.id.to_string())
        .bind(runner.facts.name.clone())
        .bind(credential_hash.to_owned())
        .bind(json(&runner.facts))
        .bind(runner.mode.as_str())
        .bind(runner.joined_at)
        .bind(runner.last_seen_at)
        .execute(tx)
        .await?;
    Ok(())
}

/// Writes what a runner says of itself.
pub(crate) async fn update(tx: &mut AnyConnection, id: &RunnerId, facts: &Facts, now: i64) -> Result<(), StoreError> {
    let sql = "UPDATE runner SET name = $2, facts = $3, last_seen_at = $4 WHERE id = $1";
    sqlx::query(sql).bind(id.to_string()).bind(facts.name.clone()).bind(json(facts)).bind(now).execute(tx).await?;
    Ok(())
}

/// Writes what an operator wants of a runner.
pub(crate) async fn set_mode(tx: &mut AnyConnection, id: &RunnerId, mode: Mode) -> Result<(), StoreError> {
    let sql = "UPDATE runner SET mode = $2 WHERE id = $1";
    sqlx::query(sql).bind(id.to_string()).bind(mode.as_str()).execute(tx).await?;
    Ok(())
}

/// Writes when a runner was heard last.
pub(crate) async fn seen(tx: &mut AnyConnection, id: &RunnerId, at: i64) -> Result<(), StoreError> {
    let sql = "UPDATE runner SET last_seen_at = $2 WHERE id = $1";
    sqlx::query(sql).bind(id.to_string()).bind(at).execute(tx).await?;
    Ok(())
}

/// The runner whose credential has this hash.
pub(crate) async fn by_credential(readers: &Readers, hash: &str) -> Result<Option<RunnerId>, StoreError> {
    let sql = "SELECT id FROM runner WHERE credential_hash = $1";
    let row = readers.optional(sqlx::query(sql).bind(hash.to_owned())).await?;
    let Some(row) = row else { return Ok(None) };
    let id: String = row.try_get("id")?;
    id.parse().map(Some).map_err(|_| StoreError::Row { id, what: "id" })
}

/// Every runner that ever joined.
pub(crate) async fn all(readers: &Readers) -> Result<Vec<KnownRunner>, StoreError> {
    let sql = "SELECT id, facts, mode, joined_at, last_seen_at FROM runner";
    let rows = readers.all(sqlx::query(sql)).await?;
    let runner = |row: &sqlx::any::AnyRow| {
        let id: String = row.try_get("id")?;
        let (facts, mode): (String, String) = (row.try_get("facts")?, row.try_get("mode")?);
        Ok(KnownRunner {
            mode: Mode::parse(&mode).ok_or_else(|| StoreError::Row { id: id.clone(), what: "mode" })?,
            facts: serde_json::from_str(&facts).map_err(|_| StoreError::Row { id: id.clone(), what: "facts" })?,
            id: id.parse().map_err(|_| StoreError::Row { id, what: "id" })?,
            joined_at: row.try_get("joined_at")?,
            last_seen_at: row.try_get("last_seen_at")?,
        })
    };
    rows.iter().map(runner).collect()
}
