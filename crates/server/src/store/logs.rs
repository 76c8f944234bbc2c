//! The kept ends of processes' output. A log is kept as it came, a `ProcessLog` in base64: nothing is asked of it
//! but to be given back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dispense_api::id::SandboxId;
use dispense_api::v1::ProcessLog;
use prost::Message;
use sqlx::AnyConnection;
use sqlx::Row;

use super::{Readers, StoreError};

/// Logs of one sandbox; the oldest go first.
const LOGS_MAX: i64 = 64;

/// Keeps a log; one of the same process is replaced.
pub(crate) async fn keep(
    tx: &mut AnyConnection,
    sandbox: &SandboxId,
    pid: u32,
    started_at: i64,
    log: &ProcessLog,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO process_log (sandbox_id, started_at, pid, log) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (sandbox_id, started_at, pid) DO UPDATE SET log = excluded.log";
    sqlx::query(sql)
        .bind(sandbox.to_string())
        .bind(started_at)
        .bind(i64::from(pid))
        .bind(STANDARD.encode(log.encode_to_vec()))
        .execute(&mut *tx)
        .await?;
    let sql = "DELETE FROM process_log WHERE sandbox_id = $1 AND started_at < \
               (SELECT MIN(started_at) FROM (SELECT started_at FROM process_log WHERE sandbox_id = $1 \
               ORDER BY started_at DESC LIMIT $2) AS newest)";
    sqlx::query(sql).bind(sandbox.to_string()).bind(LOGS_MAX).execute(tx).await?;
    Ok(())
}

/// All of a sandbox, in the order of the processes' start.
pub(crate) async fn of_sandbox(readers: &Readers, sandbox: &SandboxId) -> Result<Vec<ProcessLog>, StoreError> {
    let sql = "SELECT log FROM process_log WHERE sandbox_id = $1 ORDER BY started_at, pid";
    let rows = readers.all(sqlx::query(sql).bind(sandbox.to_string())).await?;
    let malformed = || StoreError::Row { id: sandbox.to_string(), what: "log" };
    let log = |row: &sqlx::any::AnyRow| {
        let bytes = STANDARD.decode(row.try_get::<String, _>("log")?).map_err(|_| malformed())?;
        ProcessLog::decode(&*bytes).map_err(|_| malformed())
    };
    rows.iter().map(log).collect()
}
