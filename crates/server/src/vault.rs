//! Values that are sealed at rest: a copy of the database alone opens none of them.
//!
//! The keys stand in a file of the data directory, the newest last. A value is sealed with ChaCha20-Poly1305, with
//! its name as associated data, so that one row cannot stand in for another. To rotate, a new key is added, every
//! value is sealed again in one transaction, and then the old keys are forgotten: a crash between two of these
//! steps leaves a file that has the key of every row.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dispense_api::error::{Code, Error};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::StartError;
use crate::auth::secret::{hash, hex, random_bytes};
use crate::data_dir::{DataDir, DataDirError};
use crate::store::secrets::{self, Sealed};
use crate::store::{Store, StoreError};

/// In the data directory: a key a line, its number and 64 hex digits.
const KEYS_FILE: &str = "secrets.key";
const KEY_BYTES: usize = 32;

struct Key {
    id: i64,
    key: LessSafeKey,
}

/// Why a value cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    /// The row names a key that the file does not have, or is damaged.
    #[error("failed to open the secret `{0}`: it was sealed with another key than secrets.key has")]
    Unopened(String),
    /// It is not what it was kept as.
    #[error("failed to use the secret `{0}`: it is damaged")]
    Unusable(String),
    /// The database did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key file cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The key file is not one.
    #[error("failed to read secrets.key: a line is not a number and 64 hex digits")]
    Malformed,
}

impl From<VaultError> for StartError {
    fn from(error: VaultError) -> Self {
        Self::Vault(error.to_string())
    }
}

impl From<VaultError> for Error {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Store(error) => error.into(),
            VaultError::Unopened(_) | VaultError::Unusable(_) | VaultError::DataDir(_) | VaultError::Malformed => {
                tracing::error!(%error, "vault");
                Self::new(
                    Code::Internal,
                    "vault",
                    "a stored secret cannot be opened: see the server's log, or set it again",
                )
            }
        }
    }
}

/// The open vault.
pub(crate) struct Vault {
    store: Arc<Store>,
    keys: Vec<Key>,
    fingerprint: String,
}

/// Tells the newest key of a data directory from others; `None` where there is none yet.
pub(crate) fn fingerprint(data_dir: &DataDir) -> Result<Option<String>, DataDirError> {
    Ok(data_dir.read_lines(KEYS_FILE)?.last().map(|line| hash(line)))
}

impl Vault {
    /// Reads the keys, or makes the first one; with `rotate` everything is sealed anew with a new key.
    pub(crate) async fn open(data_dir: &DataDir, store: Arc<Store>, rotate: bool) -> Result<Self, VaultError> {
        let mut lines: Vec<String> = data_dir.read_lines(KEYS_FILE)?;
        if lines.is_empty() || rotate {
            let newest = lines.last().map(|line| parse(line)).transpose()?.map_or(0, |key| key.id);
            lines.push(format!("{} {}", newest + 1, hex(&random_bytes::<KEY_BYTES>())));
            data_dir.write(KEYS_FILE, &(lines.join("\n") + "\n"))?;
        }
        let keys = lines.iter().map(|line| parse(line)).collect::<Result<Vec<_>, _>>()?;
        let fingerprint = lines.last().map(|line| hash(line)).unwrap_or_default();
        let mut vault = Self { store, keys, fingerprint };
        if vault.keys.len() > 1 {
            vault.seal_anew().await?;
            let newest = lines.pop().ok_or(VaultError::Malformed)?;
            data_dir.write(KEYS_FILE, &(newest + "\n"))?;
            vault.keys.drain(..vault.keys.len() - 1);
        }
        Ok(vault)
    }

    /// Tells its key from others.
    pub(crate) fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    async fn seal_anew(&self) -> Result<(), VaultError> {
        let mut fresh = Vec::new();
        for (name, sealed) in secrets::all(self.store.readers()).await? {
            let value = self.unseal(&name, &sealed)?;
            fresh.push((name.clone(), self.seal(&name, &value)));
        }
        tracing::info!(values = fresh.len(), "secrets were sealed with a new key");
        let write = self.store.write(move |tx| {
            let fresh = fresh.clone();
            Box::pin(async move {
                for (name, sealed) in &fresh {
                    secrets::put(&mut *tx, name, sealed).await?;
                }
                Ok(())
            })
        });
        Ok(write.await?)
    }

    /// Keeps a value.
    pub(crate) async fn put(&self, name: &str, value: &str) -> Result<(), VaultError> {
        let (name, sealed) = (name.to_owned(), self.seal(name, value));
        let write = self.store.write(move |tx| {
            let (name, sealed) = (name.clone(), sealed.clone());
            Box::pin(async move { secrets::put(tx, &name, &sealed).await })
        });
        Ok(write.await?)
    }

    /// The value of a name.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<String>, VaultError> {
        let sealed = secrets::get(self.store.readers(), name).await?;
        sealed.map(|sealed| self.unseal(name, &sealed)).transpose()
    }

    fn seal(&self, name: &str, value: &str) -> Sealed {
        let newest = self.keys.last().expect("a vault has a key");
        let nonce = random_bytes::<NONCE_LEN>();
        let mut data = value.as_bytes().to_vec();
        let sealed =
            newest.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name), &mut data);
        sealed.expect("a value is far below the cipher's limit");
        Sealed { key: newest.id, data: STANDARD.encode([&nonce[..], &data].concat()) }
    }

    fn unseal(&self, name: &str, sealed: &Sealed) -> Result<String, VaultError> {
        let open = || {
            let key = self.keys.iter().find(|key| key.id == sealed.key)?;
            let all = STANDARD.decode(&sealed.data).ok()?;
            let (nonce, data) = all.split_at_checked(NONCE_LEN)?;
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut data = data.to_vec();
            let plain = key.key.open_in_place(nonce, Aad::from(name), &mut data).ok()?;
            String::from_utf8(plain.to_vec()).ok()
        };
        open().ok_or_else(|| VaultError::Unopened(name.to_owned()))
    }
}

fn parse(line: &str) -> Result<Key, VaultError> {
    let parsed = line.split_once(' ').and_then(|(id, digits)| {
        let digits = digits.trim();
        let byte = |index: usize| u8::from_str_radix(digits.get(index..index + 2)?, 16).ok();
        let bytes = (0..KEY_BYTES).map(|index| byte(index * 2)).collect::<Option<Vec<u8>>>()?;
        let whole = digits.len() == KEY_BYTES * 2;
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).ok().filter(|_| whole)?;
        Some(Key { id: id.parse().ok()?, key: LessSafeKey::new(key) })
    });
    parsed.ok_or(VaultError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_value_is_sealed_opens_again_and_outlives_a_rotation() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let data_dir = DataDir::open(folder.path()).expect("free");
        let store = Arc::new(Store::in_folder(folder.path()).await);
        let vault = Vault::open(&data_dir, store.clone(), false).await.expect("it opens");
        assert_eq!(vault.get("provider").await.expect("none yet"), None);
        vault.put("provider", "sk-secret-1234").await.expect("kept");
        let before = secrets::get(store.readers(), "provider").await.expect("read").expect("there");
        assert!(!before.data.contains("secret"), "{}", before.data);
        let rotated = Vault::open(&data_dir, store.clone(), true).await.expect("it opens");
        assert_eq!(rotated.get("provider").await.expect("opened").as_deref(), Some("sk-secret-1234"));
        let after = secrets::get(store.readers(), "provider").await.expect("read").expect("there");
        assert_ne!((before.key, &before.data), (after.key, &after.data));
        assert_eq!(data_dir.read_lines(KEYS_FILE).expect("there").len(), 1, "the old key is forgotten");
        // What stands under another name does not open, nor does what another key sealed.
        assert!(rotated.unseal("other", &after).is_err());
        assert!(rotated.unseal("provider", &before).is_err());
    }
}
