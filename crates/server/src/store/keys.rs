//! Rows of API keys. The keys themselves are nowhere; only their hashes.

use sqlx::AnyConnection;
use sqlx::Row;

use super::{Readers, StoreError};
use crate::auth::{ApiKey, Role};

/// Adds a key.
pub(crate) async fn insert(tx: &mut AnyConnection, key: &ApiKey) -> Result<(), StoreError> {
    let sql = "INSERT INTO api_key (id, name, prefix, hash, role, created_at, expires_at) \
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    sqlx::query(sql)
        .bind(key.id.clone())
        .bind(key.name.clone())
        .bind(key.prefix.clone())
        .bind(key.hash.clone())
        .bind(key.role.as_str())
        .bind(key.created_at)
        .bind(key.expires_at)
        .execute(tx)
        .await?;
    Ok(())
}

/// Every key.
pub(crate) async fn all(readers: &Readers) -> Result<Vec<ApiKey>, StoreError> {
    let sql = "SELECT id, name, prefix, hash, role, created_at, expires_at FROM api_key";
    let rows = readers.all(sqlx::query(sql)).await?;
    let key = |row: &sqlx::any::AnyRow| {
        let id: String = row.try_get("id")?;
        let role: String = row.try_get("role")?;
        Ok(ApiKey {
            name: row.try_get("name")?,
            prefix: row.try_get("prefix")?,
            hash: row.try_get("hash")?,
            role: Role::parse(&role).ok_or_else(|| StoreError::Row { id: id.clone(), what: "role" })?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            id,
        })
    };
    rows.iter().map(key).collect()
}
