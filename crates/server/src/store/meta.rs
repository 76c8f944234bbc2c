//! Single values of the whole system.

use sqlx::AnyConnection;
use sqlx::Row;

use super::StoreError;

/// The value of a name; the first to ask decides it.
pub(crate) async fn get_or_insert(tx: &mut AnyConnection, name: &str, value: &str) -> Result<String, StoreError> {
    let sql = "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
    sqlx::query(sql).bind(name.to_owned()).bind(value.to_owned()).execute(&mut *tx).await?;
    let row = sqlx::query("SELECT value FROM meta WHERE name = $1").bind(name.to_owned()).fetch_one(tx).await?;
    Ok(row.try_get("value")?)
}

/// Sets the value of a name.
pub(super) async fn put(tx: &mut AnyConnection, name: &str, value: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    sqlx::query(sql).bind(name.to_owned()).bind(value.to_owned()).execute(tx).await?;
    Ok(())
}

/// The value of a name.
pub(super) async fn get(connection: &mut AnyConnection, name: &str) -> Result<Option<String>, StoreError> {
    let query = sqlx::query("SELECT value FROM meta WHERE name = $1").bind(name.to_owned());
    let row = query.fetch_optional(connection).await?;
    Ok(row.map(|row| row.try_get("value")).transpose()?)
}
