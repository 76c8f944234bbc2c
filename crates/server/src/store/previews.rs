//! Ports of sandboxes that are open to everybody for a time, and those whose links were revoked.

use dispense_api::id::SandboxId;
use sqlx::AnyConnection;
use sqlx::Row;

use super::{Readers, StoreError};

/// Opens a port until a time; what has ended is forgotten.
pub(crate) async fn share(
    tx: &mut AnyConnection,
    sandbox: &SandboxId,
    port: u16,
    until: i64,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM preview WHERE public_until <= $1").bind(now).execute(&mut *tx).await?;
    let sql = "INSERT INTO preview (sandbox_id, port, public_until) VALUES ($1, $2, $3) \
               ON CONFLICT (sandbox_id, port) DO UPDATE SET public_until = excluded.public_until";
    sqlx::query(sql).bind(sandbox.to_string()).bind(i64::from(port)).bind(until).execute(tx).await?;
    Ok(())
}

/// Closes a port again.
pub(crate) async fn end(tx: &mut AnyConnection, sandbox: &SandboxId, port: u16) -> Result<(), StoreError> {
    let sql = "DELETE FROM preview WHERE sandbox_id = $1 AND port = $2";
    sqlx::query(sql).bind(sandbox.to_string()).bind(i64::from(port)).execute(tx).await?;
    Ok(())
}

/// Ends the links to a port that were made until now. Of revocations before `oldest` no link is left.
pub(crate) async fn revoke(
    tx: &mut AnyConnection,
    sandbox: &SandboxId,
    port: u16,
    now: i64,
    oldest: i64,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM preview_revoked WHERE made_until < $1").bind(oldest).execute(&mut *tx).await?;
    let sql = "INSERT INTO preview_revoked (sandbox_id, port, made_until) VALUES ($1, $2, $3) \
               ON CONFLICT (sandbox_id, port) DO UPDATE SET made_until = excluded.made_until";
    sqlx::query(sql).bind(sandbox.to_string()).bind(i64::from(port)).bind(now).execute(tx).await?;
    Ok(())
}

/// What was said of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// Until then it is open to everybody.
    pub(crate) public_until: Option<i64>,
    /// Links to it that were made until then open nothing.
    pub(crate) revoked_until: Option<i64>,
}

pub(crate) async fn access(readers: &Readers, sandbox: &SandboxId, port: u16) -> Result<Access, StoreError> {
    let query = sqlx::query(
        "SELECT (SELECT public_until FROM preview WHERE sandbox_id = $1 AND port = $2) AS public_until, \
                (SELECT made_until FROM preview_revoked WHERE sandbox_id = $1 AND port = $2) AS revoked_until",
    )
    .bind(sandbox.to_string())
    .bind(i64::from(port));
    let Some(row) = readers.optional(query).await? else { return Ok(Access::default()) };
    Ok(Access { public_until: row.try_get("public_until")?, revoked_until: row.try_get("revoked_until")? })
}
