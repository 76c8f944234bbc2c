//! Ports of sandboxes that are open to everybody for a time.

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

/// Until when a port is open to everybody.
pub(crate) async fn public_until(readers: &Readers, sandbox: &SandboxId, port: u16) -> Result<Option<i64>, StoreError> {
    let query = sqlx::query("SELECT public_until FROM preview WHERE sandbox_id = $1 AND port = $2")
        .bind(sandbox.to_string())
        .bind(i64::from(port));
    readers.optional(query).await?.map(|row| Ok(row.try_get("public_until")?)).transpose()
}
