//! Rows of jobs.

use dispense_api::id::{JobId, RunnerId, SandboxId};
use sqlx::AnyConnection;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::sql::Sql;
use super::{Readers, StoreError, json};
use crate::auth::Scope;
use crate::job::{Attempt, Job, JobStatus, JobType};

const SELECT: &str = "SELECT id, type, sandbox_id, runner_id, status, error, attempts, created_at, deadline_at, started_at, finished_at FROM job ";

/// Adds a job; the one before it on the same sandbox, if still open, is failed as overtaken.
pub(crate) async fn open(tx: &mut AnyConnection, job: &Job, before: Option<&JobId>) -> Result<(), StoreError> {
    if let Some(before) = before {
        finish(tx, before, Some("overtaken by a newer request"), job.created_at).await?;
    }
    let sql = "INSERT INTO job (id, type, sandbox_id, runner_id, status, error, attempts, created_at, deadline_at, \
               started_at, finished_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    sqlx::query(sql)
        .bind(job.id.to_string())
        .bind(job.kind.as_str())
        .bind(job.sandbox.to_string())
        .bind(job.runner.as_ref().map(ToString::to_string))
        .bind(job.status.as_str())
        .bind(job.error.clone())
        .bind(json(&job.attempts))
        .bind(job.created_at)
        .bind(job.deadline_at)
        .bind(job.started_at)
        .bind(job.finished_at)
        .execute(tx)
        .await?;
    Ok(())
}

/// Its runner was chosen and told.
pub(crate) async fn begin(tx: &mut AnyConnection, job: &JobId, runner: &RunnerId, now: i64) -> Result<(), StoreError> {
    let sql = "UPDATE job SET status = 'running', runner_id = $2, started_at = $3 WHERE id = $1 AND status = 'pending'";
    sqlx::query(sql).bind(job.to_string()).bind(runner.to_string()).bind(now).execute(tx).await?;
    Ok(())
}

/// An attempt on a runner failed; another runner has taken over.
pub(crate) async fn tried(
    tx: &mut AnyConnection,
    id: &JobId,
    attempt: Attempt,
    next: &RunnerId,
) -> Result<(), StoreError> {
    let sql = format!("{SELECT} WHERE id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(&mut *tx).await?;
    let Some(mut found) = row.as_ref().map(job).transpose()? else { return Ok(()) };
    found.attempts.push(attempt);
    let sql = "UPDATE job SET attempts = $2, runner_id = $3 WHERE id = $1";
    let attempts = json(&found.attempts);
    sqlx::query(sql).bind(id.to_string()).bind(attempts).bind(next.to_string()).execute(tx).await?;
    Ok(())
}

/// Sandboxes with an open job whose time is over.
pub(crate) async fn overdue(readers: &Readers, now: i64) -> Result<Vec<(SandboxId, JobId)>, StoreError> {
    let sql = format!("{SELECT} WHERE finished_at IS NULL AND deadline_at <= $1 ORDER BY deadline_at LIMIT 1000");
    let rows = readers.all(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(now)).await?;
    rows.iter().map(|row| job(row).map(|job| (job.sandbox, job.id))).collect()
}

/// The clock has jumped: open jobs have the time that they had.
pub(crate) async fn move_deadlines(tx: &mut AnyConnection, jump: i64) -> Result<(), StoreError> {
    let sql = "UPDATE job SET deadline_at = deadline_at + $1 WHERE finished_at IS NULL";
    sqlx::query(sql).bind(jump).execute(tx).await?;
    Ok(())
}

/// Closes a job that is still open: completed, or failed with `error`.
pub(crate) async fn finish(
    tx: &mut AnyConnection,
    job: &JobId,
    error: Option<&str>,
    now: i64,
) -> Result<(), StoreError> {
    let sql = "UPDATE job SET status = $2, error = $3, finished_at = $4 WHERE id = $1 AND finished_at IS NULL";
    let status = if error.is_some() { JobStatus::Failed } else { JobStatus::Completed };
    let error = error.unwrap_or_default().to_owned();
    sqlx::query(sql).bind(job.to_string()).bind(status.as_str()).bind(error).bind(now).execute(tx).await?;
    Ok(())
}

/// How many there are of each status.
pub(crate) async fn count(readers: &Readers) -> Result<Vec<(String, i64)>, StoreError> {
    let sql = "SELECT status AS what, COUNT(*) AS count FROM job GROUP BY status";
    super::counts(readers, sql, JobStatus::ALL.into_iter().map(JobStatus::as_str)).await
}

/// One job.
pub(crate) async fn find(readers: &Readers, id: &JobId) -> Result<Option<Job>, StoreError> {
    let sql = format!("{SELECT} WHERE id = $1");
    let row = readers.optional(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_string())).await?;
    row.as_ref().map(job).transpose()
}

/// A page, newest first.
pub(crate) async fn list(
    readers: &Readers,
    scope: &Scope,
    sandbox: Option<&SandboxId>,
    status: Option<JobStatus>,
    before: Option<(i64, String)>,
    limit: usize,
) -> Result<Vec<Job>, StoreError> {
    let mut sql = Sql::new(format!("{SELECT} WHERE created_at >= 0"));
    super::sandboxes::within_scope(&mut sql, scope);
    if let Some(sandbox) = sandbox {
        sql.push(" AND sandbox_id = ").bind(sandbox.to_string());
    }
    if let Some(status) = status {
        sql.push(" AND status = ").bind(status.as_str().to_owned());
    }
    if let Some((created_at, id)) = before {
        sql.push(" AND (created_at < ").bind(created_at).push(" OR (created_at = ").bind(created_at);
        sql.push(" AND id < ").bind(id).push("))");
    }
    sql.push(" ORDER BY created_at DESC, id DESC LIMIT ").bind(i64::try_from(limit).unwrap_or(i64::MAX));
    readers.all(sql.build()).await?.iter().map(job).collect()
}

fn job(row: &AnyRow) -> Result<Job, StoreError> {
    let text = |what: &str| row.try_get::<String, _>(what);
    let id = text("id")?;
    let malformed = |what: &'static str| StoreError::Row { id: id.clone(), what };
    let (kind, status, runner) = (text("type")?, text("status")?, row.try_get::<Option<String>, _>("runner_id")?);
    Ok(Job {
        id: id.parse().map_err(|_| malformed("id"))?,
        kind: JobType::ALL.into_iter().find(|value| value.as_str() == kind).ok_or_else(|| malformed("type"))?,
        sandbox: text("sandbox_id")?.parse().map_err(|_| malformed("sandbox_id"))?,
        runner: runner.map(|text| text.parse().map_err(|_| malformed("runner_id"))).transpose()?,
        status: JobStatus::ALL.into_iter().find(|value| value.as_str() == status).ok_or_else(|| malformed("status"))?,
        error: text("error")?,
        attempts: serde_json::from_str(&text("attempts")?).map_err(|_| malformed("attempts"))?,
        created_at: row.try_get("created_at")?,
        deadline_at: row.try_get("deadline_at")?,
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
    })
}
