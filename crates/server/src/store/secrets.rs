//! Sealed values.

use sqlx::AnyConnection;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Readers, StoreError};

/// A value as the vault sealed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// Number of the key.
    pub(crate) key: i64,
    /// Nonce and ciphertext, in base64.
    pub(crate) data: String,
}

/// Writes a value.
pub(crate) async fn put(tx: &mut AnyConnection, name: &str, sealed: &Sealed) -> Result<(), StoreError> {
    let sql = "INSERT INTO secret (name, key_id, sealed) VALUES ($1, $2, $3) \
               ON CONFLICT (name) DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed";
    sqlx::query(sql).bind(name.to_owned()).bind(sealed.key).bind(sealed.data.clone()).execute(tx).await?;
    Ok(())
}

/// The value of a name.
pub(crate) async fn get(readers: &Readers, name: &str) -> Result<Option<Sealed>, StoreError> {
    let query = sqlx::query("SELECT name, key_id, sealed FROM secret WHERE name = $1").bind(name.to_owned());
    readers.optional(query).await?.as_ref().map(sealed).transpose()
}

/// Every value with its name.
pub(crate) async fn all(readers: &Readers) -> Result<Vec<(String, Sealed)>, StoreError> {
    let rows = readers.all(sqlx::query("SELECT name, key_id, sealed FROM secret ORDER BY name")).await?;
    rows.iter().map(|row| Ok((row.try_get("name")?, sealed(row)?))).collect()
}

fn sealed(row: &AnyRow) -> Result<Sealed, StoreError> {
    Ok(Sealed { key: row.try_get("key_id")?, data: row.try_get("sealed")? })
}
