//! Rows of sandboxes.

use std::collections::BTreeMap;

use dispense_api::id::{Generation, RunnerId, SandboxId};
use sqlx::AnyConnection;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::sql::Sql;
use super::{AnyQuery, Readers, StoreError, json};
use crate::auth::Scope;
use crate::placement::Room;
use crate::sandbox::Sandbox;
use crate::sandbox::lifecycle::{Desired, Lifecycle, State};

const MICROS_PER_MINUTE: i64 = 60_000_000;
const COLUMNS: &str = "id, name, group_name, labels, spec, desired, observed, reason, generation, revision, runner_id, \
                       unenforced, job_id, created_at, started_at, stopped_at, deleted_at, expires_at, lease_until, box_gone, asleep, \
                       owner";

const STATES: [(State, &str); 10] = [
    (State::Pending, "pending"),
    (State::Starting, "starting"),
    (State::Running, "running"),
    (State::Paused, "paused"),
    (State::Stopping, "stopping"),
    (State::Stopped, "stopped"),
    (State::Failed, "failed"),
    (State::Lost, "lost"),
    (State::Deleting, "deleting"),
    (State::Deleted, "deleted"),
];
const DESIRED: [(Desired, &str); 3] =
    [(Desired::Running, "running"), (Desired::Stopped, "stopped"), (Desired::Deleted, "deleted")];

impl State {
    /// As clients and the store write it.
    pub(crate) fn as_str(self) -> &'static str {
        STATES.iter().find(|(state, _)| *state == self).map(|(_, text)| *text).expect("the table has every state")
    }

    /// The state of a text form.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        STATES.iter().find(|(_, name)| *name == text).map(|(state, _)| *state)
    }
}

fn desired_str(desired: Desired) -> &'static str {
    DESIRED.iter().find(|(value, _)| *value == desired).map(|(_, text)| *text).expect("the table has every value")
}

/// Adds a row. [`StoreError::Taken`] when a living sandbox has the name.
pub(crate) async fn insert(tx: &mut AnyConnection, sandbox: &Sandbox) -> Result<(), StoreError> {
    let sql = "INSERT INTO sandbox (id, name, live_name, group_name, labels, spec, desired, observed, reason, generation, \
               revision, runner_id, unenforced, job_id, created_at, started_at, stopped_at, deleted_at, expires_at, \
               lease_until, box_gone, asleep, auto_stop, owner) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
               $15, $16, $17, $18, $19, $20, $21, $22, $23, $24)";
    sqlx::query(sql)
        .bind(sandbox.id.as_str().to_owned())
        .bind(sandbox.name.clone())
        .bind(live_name(sandbox))
        .bind(sandbox.group.clone())
        .bind(json(&sandbox.labels))
        .bind(json(&sandbox.spec))
        .bind(desired_str(sandbox.life.desired))
        .bind(sandbox.life.observed.as_str())
        .bind(sandbox.reason.clone())
        .bind(signed(sandbox.life.generation.0))
        .bind(signed(sandbox.revision))
        .bind(sandbox.runner.as_ref().map(ToString::to_string))
        .bind(json(&sandbox.unenforced))
        .bind(sandbox.job.to_string())
        .bind(sandbox.created_at)
        .bind(sandbox.started_at)
        .bind(sandbox.stopped_at)
        .bind(sandbox.deleted_at)
        .bind(sandbox.expires_at)
        .bind(sandbox.lease_until)
        .bind(i64::from(sandbox.box_gone))
        .bind(i64::from(sandbox.life.asleep))
        .bind((sandbox.spec.auto_stop_mins > 0).then(|| i64::from(sandbox.spec.auto_stop_mins) * MICROS_PER_MINUTE))
        .bind(sandbox.owner.clone())
        .execute(tx)
        .await?;
    Ok(())
}

/// Writes what can change.
pub(crate) async fn update(tx: &mut AnyConnection, sandbox: &Sandbox) -> Result<(), StoreError> {
    let sql = "UPDATE sandbox SET live_name = $2, desired = $3, observed = $4, reason = $5, generation = $6, revision = $7, \
               runner_id = $8, unenforced = $9, job_id = $10, started_at = $11, stopped_at = $12, deleted_at = $13, \
               lease_until = $14, box_gone = $15, expires_at = $16, asleep = $17 WHERE id = $1";
    sqlx::query(sql)
        .bind(sandbox.id.as_str().to_owned())
        .bind(live_name(sandbox))
        .bind(desired_str(sandbox.life.desired))
        .bind(sandbox.life.observed.as_str())
        .bind(sandbox.reason.clone())
        .bind(signed(sandbox.life.generation.0))
        .bind(signed(sandbox.revision))
        .bind(sandbox.runner.as_ref().map(ToString::to_string))
        .bind(json(&sandbox.unenforced))
        .bind(sandbox.job.to_string())
        .bind(sandbox.started_at)
        .bind(sandbox.stopped_at)
        .bind(sandbox.deleted_at)
        .bind(sandbox.lease_until)
        .bind(i64::from(sandbox.box_gone))
        .bind(sandbox.expires_at)
        .bind(i64::from(sandbox.life.asleep))
        .execute(tx)
        .await?;
    Ok(())
}

/// Writes the specification, which only a change of the variables changes.
pub(crate) async fn update_spec(tx: &mut AnyConnection, sandbox: &Sandbox) -> Result<(), StoreError> {
    let sql = "UPDATE sandbox SET spec = $2 WHERE id = $1";
    sqlx::query(sql).bind(sandbox.id.as_str().to_owned()).bind(json(&sandbox.spec)).execute(tx).await?;
    Ok(())
}

fn live_name(sandbox: &Sandbox) -> Option<String> {
    (sandbox.life.observed != State::Deleted).then(|| sandbox.name.clone())
}

/// The sandbox of an id.
pub(crate) async fn get(tx: &mut AnyConnection, id: &SandboxId) -> Result<Option<Sandbox>, StoreError> {
    let sql = select("WHERE id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.as_str().to_owned()).fetch_optional(tx).await?;
    row.as_ref().map(sandbox).transpose()
}

/// The sandbox of an id, or the living one of a name; ids win.
pub(crate) async fn find(readers: &Readers, id_or_name: &str) -> Result<Option<Sandbox>, StoreError> {
    let clause = if id_or_name.parse::<SandboxId>().is_ok() { "WHERE id = $1" } else { "WHERE live_name = $1" };
    let row = readers.optional(sqlx::query(sqlx::AssertSqlSafe(select(clause))).bind(id_or_name.to_owned()));
    row.await?.as_ref().map(sandbox).transpose()
}

/// The sandbox of an id, or the one that has a name or had it last.
pub(crate) async fn find_any(readers: &Readers, id_or_name: &str) -> Result<Option<Sandbox>, StoreError> {
    if let Some(found) = find(readers, id_or_name).await? {
        return Ok(Some(found));
    }
    let sql = select("WHERE name = $1 ORDER BY created_at DESC LIMIT 1");
    let row = readers.optional(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id_or_name.to_owned()));
    row.await?.as_ref().map(sandbox).transpose()
}

/// All that were placed on a runner and of which something may be left.
pub(crate) async fn of_runner(tx: &mut AnyConnection, runner: &RunnerId) -> Result<Vec<Sandbox>, StoreError> {
    let sql = select("WHERE runner_id = $1 AND box_gone = 0");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(runner.to_string()).fetch_all(tx).await?;
    Ok(rows.iter().filter_map(|row| readable(sandbox(row))).collect())
}

/// A row that cannot be read is told and left alone; the others go on.
fn readable<T>(row: Result<T, StoreError>) -> Option<T> {
    row.inspect_err(|error| tracing::error!(%error, "damaged row: it is left as it is")).ok()
}

/// Which ones a caller wants to see.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) scope: Scope,
    pub(crate) group: Option<String>,
    /// On these runners, or on none of them; those that wait for a runner are in both.
    pub(crate) runners: Option<(bool, Vec<RunnerId>)>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Empty: all but deleted.
    pub(crate) states: Vec<State>,
    pub(crate) limit: usize,
    /// Of the last one of the page before.
    pub(crate) before: Option<(i64, String)>,
}

/// Of those that a scope reaches.
fn within(sql: &mut Sql, scope: &Scope) {
    match scope {
        Scope::All => {}
        Scope::Group(group) => {
            sql.push(" AND group_name = ").bind(group.clone());
        }
        Scope::Sandboxes(ids) => {
            sql.push(" AND id IN (").bind_all(ids.iter().map(ToString::to_string)).push(")");
        }
    }
}

/// The ids of those that a scope reaches, as a condition on `sandbox_id`.
pub(super) fn within_scope(sql: &mut Sql, scope: &Scope) {
    if *scope != Scope::All {
        sql.push(" AND sandbox_id IN (SELECT id FROM sandbox WHERE id <> ''");
        within(sql, scope);
        sql.push(")");
    }
}

/// A page, newest first. Labels are compared here, since the databases disagree on JSON.
pub(crate) async fn list(readers: &Readers, filter: &Filter) -> Result<Vec<Sandbox>, StoreError> {
    /// Rows of one query when labels may drop some of them.
    const BATCH_ROWS: i64 = 1000;
    let mut found = Vec::new();
    let mut before = filter.before.clone();
    loop {
        let mut sql = Sql::new(select("WHERE "));
        if filter.states.is_empty() {
            sql.push("observed <> 'deleted'");
        } else {
            let states = filter.states.iter().map(|state| state.as_str().to_owned());
            sql.push("observed IN (").bind_all(states).push(")");
        }
        if let Some(group) = &filter.group {
            sql.push(" AND group_name = ").bind(group.clone());
        }
        within(&mut sql, &filter.scope);
        if let Some((on_them, runners)) = &filter.runners {
            // Of no runner there is no id: the list is never empty.
            let ids = runners.iter().map(ToString::to_string).chain([String::new()]);
            sql.push(" AND (runner_id IS NULL OR runner_id ").push(if *on_them { "IN (" } else { "NOT IN (" });
            sql.bind_all(ids).push("))");
        }
        if let Some((created_at, id)) = &before {
            sql.push(" AND (created_at < ").bind(*created_at).push(" OR (created_at = ").bind(*created_at);
            sql.push(" AND id < ").bind(id.clone()).push("))");
        }
        let batch = if filter.labels.is_empty() {
            i64::try_from(filter.limit - found.len()).unwrap_or(BATCH_ROWS)
        } else {
            BATCH_ROWS
        };
        sql.push(" ORDER BY created_at DESC, id DESC LIMIT ").bind(batch);
        let rows = readers.all(sql.build()).await?;
        for row in &rows {
            // The place of a row that cannot be read is known all the same.
            before = Some((row.try_get("created_at")?, row.try_get("id")?));
            let Some(sandbox) = readable(sandbox(row)) else { continue };
            if filter.labels.iter().all(|(key, value)| sandbox.labels.get(key) == Some(value)) {
                found.push(sandbox);
            }
            if found.len() == filter.limit {
                return Ok(found);
            }
        }
        if i64::try_from(rows.len()).unwrap_or(i64::MAX) < batch {
            return Ok(found);
        }
    }
}

/// Ids of living sandboxes whose time or lease has passed and whose deletion has not begun.
pub(crate) async fn expired(readers: &Readers, now: i64) -> Result<Vec<SandboxId>, StoreError> {
    let sql = "SELECT id FROM sandbox WHERE desired <> 'deleted' AND (expires_at <= $1 OR lease_until <= $1)";
    ids(readers, sqlx::query(sql).bind(now)).await
}

/// Running ones that are stopped when nobody uses them, each with the microseconds that it may be idle.
pub(crate) async fn auto_stopped(readers: &Readers) -> Result<Vec<(SandboxId, i64)>, StoreError> {
    let sql = "SELECT id, auto_stop FROM sandbox WHERE auto_stop > 0 AND observed = 'running' AND desired = 'running'";
    let rows = readers.all(sqlx::query(sql)).await?;
    rows.iter().map(|row| Ok((id(row, "id")?, row.try_get("auto_stop")?))).collect()
}

/// Ids of those that a draining runner still runs.
pub(crate) async fn to_drain(readers: &Readers) -> Result<Vec<SandboxId>, StoreError> {
    let sql = "SELECT sandbox.id FROM sandbox JOIN runner ON runner.id = sandbox.runner_id \
               WHERE runner.mode = 'draining' AND sandbox.desired = 'running' \
               AND sandbox.observed IN ('starting', 'running')";
    ids(readers, sqlx::query(sql)).await
}

/// The clock has jumped: TTLs and leases have the time that they had.
pub(crate) async fn move_deadlines(tx: &mut AnyConnection, jump: i64) -> Result<(), StoreError> {
    let sql = "UPDATE sandbox SET expires_at = expires_at + $1, lease_until = lease_until + $1 \
               WHERE expires_at IS NOT NULL OR lease_until IS NOT NULL";
    sqlx::query(sql).bind(jump).execute(tx).await?;
    Ok(())
}

/// Ids of living sandboxes that have a lease.
pub(crate) async fn leased(readers: &Readers) -> Result<Vec<SandboxId>, StoreError> {
    let sql = "SELECT id FROM sandbox WHERE desired <> 'deleted' AND lease_until IS NOT NULL";
    ids(readers, sqlx::query(sql)).await
}

/// Ids of those that wait for a runner, oldest first.
pub(crate) async fn pending(readers: &Readers) -> Result<Vec<SandboxId>, StoreError> {
    ids(readers, sqlx::query("SELECT id FROM sandbox WHERE observed = 'pending' ORDER BY created_at, id")).await
}

async fn ids(readers: &Readers, query: AnyQuery<'_>) -> Result<Vec<SandboxId>, StoreError> {
    Ok(readers.all(query).await?.iter().filter_map(|row| readable(id(row, "id"))).collect())
}

/// Removes sandboxes that were deleted before `before` and of which nothing is left anywhere, at most so many, with all
/// that hangs on them. Returns how many.
pub(crate) async fn purge(tx: &mut AnyConnection, before: i64, at_most: i64) -> Result<u64, StoreError> {
    let gone = "SELECT id FROM sandbox WHERE observed = 'deleted' AND box_gone = 1 AND deleted_at < $1 \
                ORDER BY created_at, id LIMIT $2";
    let mut removed = 0;
    // The sandboxes come last: they say which they are.
    for (table, column) in
        [("job", "sandbox_id"), ("process_log", "sandbox_id"), ("usage", "sandbox_id"), ("sandbox", "id")]
    {
        let sql = format!("DELETE FROM {table} WHERE {column} IN ({gone})");
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(before).bind(at_most);
        removed = query.execute(&mut *tx).await?.rows_affected();
    }
    Ok(removed)
}

/// How many there are in each state.
pub(crate) async fn count(readers: &Readers) -> Result<Vec<(String, i64)>, StoreError> {
    let sql = "SELECT observed AS what, COUNT(*) AS count FROM sandbox GROUP BY observed";
    super::counts(readers, sql, STATES.iter().map(|(_, name)| *name)).await
}

/// What each runner has promised to sandboxes.
pub(crate) async fn used(readers: &Readers) -> Result<BTreeMap<RunnerId, Room>, StoreError> {
    let sql = "SELECT id, runner_id, spec FROM sandbox WHERE observed <> 'deleted' AND runner_id IS NOT NULL";
    let mut used: BTreeMap<RunnerId, Room> = BTreeMap::new();
    for row in readers.all(sqlx::query(sql)).await? {
        let runner: String = row.try_get("runner_id")?;
        let parsed = runner.parse().map_err(|_| malformed(&row, "runner_id"));
        let (Some(runner), Some(spec)) = (readable(parsed), readable(decode(&row, "spec"))) else { continue };
        let room = used.entry(runner).or_default();
        *room = room.plus(Room::of(&spec));
    }
    Ok(used)
}

fn select(clause: &str) -> String {
    format!("SELECT {COLUMNS} FROM sandbox {clause}")
}

fn sandbox(row: &AnyRow) -> Result<Sandbox, StoreError> {
    let started_at: Option<i64> = row.try_get("started_at")?;
    let runner: Option<String> = row.try_get("runner_id")?;
    let runner = runner.map(|text| text.parse().map_err(|_| malformed(row, "runner_id"))).transpose()?;
    let desired: String = row.try_get("desired")?;
    let observed: String = row.try_get("observed")?;
    let life = Lifecycle {
        desired: DESIRED
            .iter()
            .find(|(_, text)| *text == desired)
            .map(|(value, _)| *value)
            .ok_or_else(|| malformed(row, "desired"))?,
        observed: State::parse(&observed).ok_or_else(|| malformed(row, "observed"))?,
        generation: Generation(unsigned(row.try_get("generation")?)),
        placed: runner.is_some(),
        started: started_at.is_some(),
        asleep: row.try_get::<i64, _>("asleep")? != 0,
    };
    let job: String = row.try_get("job_id")?;
    Ok(Sandbox {
        id: id(row, "id")?,
        name: row.try_get("name")?,
        group: row.try_get("group_name")?,
        owner: row.try_get("owner")?,
        labels: decode(row, "labels")?,
        spec: decode(row, "spec")?,
        life,
        reason: row.try_get("reason")?,
        revision: unsigned(row.try_get("revision")?),
        runner,
        unenforced: decode(row, "unenforced")?,
        job: job.parse().map_err(|_| malformed(row, "job_id"))?,
        created_at: row.try_get("created_at")?,
        started_at,
        stopped_at: row.try_get("stopped_at")?,
        deleted_at: row.try_get("deleted_at")?,
        expires_at: row.try_get("expires_at")?,
        lease_until: row.try_get("lease_until")?,
        box_gone: row.try_get::<i64, _>("box_gone")? != 0,
    })
}

fn id(row: &AnyRow, what: &'static str) -> Result<SandboxId, StoreError> {
    row.try_get::<String, _>(what)?.parse().map_err(|_| malformed(row, what))
}

fn decode<T: serde::de::DeserializeOwned>(row: &AnyRow, what: &'static str) -> Result<T, StoreError> {
    serde_json::from_str(&row.try_get::<String, _>(what)?).map_err(|_| malformed(row, what))
}

fn malformed(row: &AnyRow, what: &'static str) -> StoreError {
    StoreError::Row { id: row.try_get("id").unwrap_or_default(), what }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
