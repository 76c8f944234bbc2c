//! Rows of API keys. The keys themselves are nowhere; only their hashes.

use sqlx::AnyConnection;
use sqlx::Row;

use super::{Readers, StoreError};
use crate::auth::{ApiKey, Role, Scope};

/// Adds a key.
pub(crate) async fn insert(tx: &mut AnyConnection, key: &ApiKey) -> Result<(), StoreError> {
    let sql = "INSERT INTO api_key (id, name, prefix, hash, role, created_at, expires_at, account, scope, revoked_at) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    sqlx::query(sql)
        .bind(key.id.clone())
        .bind(key.name.clone())
        .bind(key.prefix.clone())
        .bind(key.hash.clone())
        .bind(key.role.as_str())
        .bind(key.created_at)
        .bind(key.expires_at)
        .bind(key.account.clone())
        .bind(key.scope.text())
        .bind(key.revoked_at)
        .execute(tx)
        .await?;
    Ok(())
}

/// Writes when a key ends.
pub(crate) async fn set_end(tx: &mut AnyConnection, key: &ApiKey) -> Result<(), StoreError> {
    let sql = "UPDATE api_key SET expires_at = $2, revoked_at = $3 WHERE id = $1";
    sqlx::query(sql).bind(key.id.clone()).bind(key.expires_at).bind(key.revoked_at).execute(tx).await?;
    Ok(())
}

/// Every key.
pub(crate) async fn all(readers: &Readers) -> Result<Vec<ApiKey>, StoreError> {
    let sql = "SELECT id, name, prefix, hash, role, created_at, expires_at, account, scope, revoked_at FROM api_key";
    let rows = readers.all(sqlx::query(sql)).await?;
    let key = |row: &sqlx::any::AnyRow| {
        let id: String = row.try_get("id")?;
        let (role, scope): (String, String) = (row.try_get("role")?, row.try_get("scope")?);
        Ok(ApiKey {
            name: row.try_get("name")?,
            prefix: row.try_get("prefix")?,
            hash: row.try_get("hash")?,
            role: Role::parse(&role).ok_or_else(|| StoreError::Row { id: id.clone(), what: "role" })?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            account: row.try_get("account")?,
            scope: Scope::parse(&scope).ok_or_else(|| StoreError::Row { id: id.clone(), what: "scope" })?,
            revoked_at: row.try_get("revoked_at")?,
            id,
        })
    };
    rows.iter().map(key).collect()
}
