//! Rows of events.

use std::collections::BTreeMap;

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::sql::Sql;
use super::{Readers, StoreError, json};
use crate::auth::Scope;
use crate::sandbox::Sandbox;
use crate::sandbox::lifecycle::State;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) seq: i64,
    pub(crate) at: i64,
    pub(crate) kind: String,
    pub(crate) sandbox: String,
    pub(crate) group: String,
    pub(crate) data: BTreeMap<String, String>,
}

/// Adds the event of a row that has just been written.
pub(crate) async fn append(tx: &mut AnyConnection, sandbox: &Sandbox, now: i64) -> Result<(), StoreError> {
    let kind = match (sandbox.revision, sandbox.life.observed) {
        (1, _) => "sandbox.created",
        (_, State::Deleted) => "sandbox.deleted",
        _ => "sandbox.changed",
    };
    let data = BTreeMap::from([
        ("name", sandbox.name.clone()),
        ("state", sandbox.life.observed.as_str().to_owned()),
        ("generation", sandbox.life.generation.to_string()),
        ("revision", sandbox.revision.to_string()),
        ("reason", sandbox.reason.clone()),
        ("runner", sandbox.runner.as_ref().map(ToString::to_string).unwrap_or_default()),
    ]);
    let sql = "INSERT INTO event (seq, at, type, sandbox_id, group_name, data) \
               SELECT COALESCE(MAX(seq), 0) + 1, $1, $2, $3, $4, $5 FROM event";
    sqlx::query(sql)
        .bind(now)
        .bind(kind)
        .bind(sandbox.id.as_str().to_owned())
        .bind(sandbox.group.clone())
        .bind(json(&data))
        .execute(tx)
        .await?;
    Ok(())
}

/// Events after a number, in their order, of what a scope reaches.
pub(crate) async fn page(readers: &Readers, scope: &Scope, after: i64, limit: usize) -> Result<Vec<Event>, StoreError> {
    let mut sql = Sql::new("SELECT seq, at, type, sandbox_id, group_name, data FROM event WHERE seq > ");
    sql.bind(after);
    match scope {
        Scope::All => {}
        Scope::Group(group) => {
            sql.push(" AND group_name = ").bind(group.clone());
        }
        Scope::Sandboxes(ids) => {
            sql.push(" AND sandbox_id IN (").bind_all(ids.iter().map(ToString::to_string)).push(")");
        }
    }
    sql.push(" ORDER BY seq LIMIT ").bind(i64::try_from(limit).unwrap_or(i64::MAX));
    readers.all(sql.build()).await?.iter().map(event).collect()
}

/// The first and the last number that are kept; 0 and 0 when there is none.
pub(crate) async fn bounds(readers: &Readers) -> Result<(i64, i64), StoreError> {
    let sql = "SELECT COALESCE(MIN(seq), 0) AS first, COALESCE(MAX(seq), 0) AS last FROM event";
    let row = readers.optional(sqlx::query(sql)).await?;
    row.map_or(Ok((0, 0)), |row| Ok((row.try_get("first")?, row.try_get("last")?)))
}

/// Removes the oldest, at most so many, that are from before a time; never the last, whose number the next one counts
/// from. Returns how many.
pub(crate) async fn purge(tx: &mut AnyConnection, before: i64, at_most: i64) -> Result<u64, StoreError> {
    // By number, which is the order of their times too, and has the index.
    let sql = "DELETE FROM event WHERE at < $1 AND seq < (SELECT MAX(seq) FROM event) AND seq IN \
               (SELECT seq FROM event ORDER BY seq LIMIT $2)";
    Ok(sqlx::query(sql).bind(before).bind(at_most).execute(tx).await?.rows_affected())
}

fn event(row: &AnyRow) -> Result<Event, StoreError> {
    let seq: i64 = row.try_get("seq")?;
    let malformed = |_| StoreError::Row { id: seq.to_string(), what: "data" };
    Ok(Event {
        seq,
        at: row.try_get("at")?,
        kind: row.try_get("type")?,
        sandbox: row.try_get("sandbox_id")?,
        group: row.try_get("group_name")?,
        data: serde_json::from_str(&row.try_get::<String, _>("data")?).map_err(malformed)?,
    })
}
