//! Registered public keys.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::{Readers, StoreError};

/// A public key and whom it opens as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshKey {
    pub(crate) fingerprint: String,
    pub(crate) public_key: String,
    pub(crate) account: String,
    pub(crate) created_at: i64,
}

/// Registers a key; `false` when it is another account's.
pub(crate) async fn insert(tx: &mut AnyConnection, key: &SshKey) -> Result<bool, StoreError> {
    let sql = "INSERT INTO ssh_key (fingerprint, public_key, account, created_at) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (fingerprint) DO UPDATE SET public_key = excluded.public_key \
               WHERE ssh_key.account = excluded.account";
    let query = sqlx::query(sql)
        .bind(key.fingerprint.clone())
        .bind(key.public_key.clone())
        .bind(key.account.clone())
        .bind(key.created_at);
    Ok(query.execute(tx).await?.rows_affected() > 0)
}

/// Removes a key of an account; `false` when there is none.
pub(crate) async fn remove(tx: &mut AnyConnection, account: &str, fingerprint: &str) -> Result<bool, StoreError> {
    let query = sqlx::query("DELETE FROM ssh_key WHERE account = $1 AND fingerprint = $2")
        .bind(account.to_owned())
        .bind(fingerprint.to_owned());
    Ok(query.execute(tx).await?.rows_affected() > 0)
}

/// Those of an account, oldest first.
pub(crate) async fn of_account(readers: &Readers, account: &str) -> Result<Vec<SshKey>, StoreError> {
    let sql = "SELECT fingerprint, public_key, account, created_at FROM ssh_key WHERE account = $1 \
               ORDER BY created_at, fingerprint";
    readers.all(sqlx::query(sql).bind(account.to_owned())).await?.iter().map(key).collect()
}

/// The key with a fingerprint.
pub(crate) async fn find(readers: &Readers, fingerprint: &str) -> Result<Option<SshKey>, StoreError> {
    let sql = "SELECT fingerprint, public_key, account, created_at FROM ssh_key WHERE fingerprint = $1";
    readers.optional(sqlx::query(sql).bind(fingerprint.to_owned())).await?.as_ref().map(key).transpose()
}

fn key(row: &AnyRow) -> Result<SshKey, StoreError> {
    Ok(SshKey {
        fingerprint: row.try_get("fingerprint")?,
        public_key: row.try_get("public_key")?,
        account: row.try_get("account")?,
        created_at: row.try_get("created_at")?,
    })
}
