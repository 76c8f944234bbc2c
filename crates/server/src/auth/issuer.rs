//! The keys in the hands of an administrator: what is asked for is noted before it is done. The doors ask here.

use dispense_api::error::Error;

use super::issue::NewKey;
use super::{ApiKey, Keys, Principal};
use crate::sandbox::service::Sandboxes;

/// The keys, for one caller.
pub(crate) struct Issuer<'a> {
    pub(crate) keys: &'a Keys,
    pub(crate) sandboxes: &'a Sandboxes,
    pub(crate) caller: &'a Principal,
}

impl Issuer<'_> {
    fn now(&self) -> i64 {
        self.sandboxes.clock.now()
    }

    async fn note(&self, action: &str, target: &str) -> Result<(), Error> {
        self.sandboxes.audit.taken(self.caller, action, target).await
    }

    /// Those that open something; with `all` also those that have ended.
    pub(crate) fn list(&self, all: bool) -> Vec<ApiKey> {
        let now = self.now();
        self.keys.all().into_iter().filter(|key| all || key.is_active(now)).collect()
    }

    /// Makes a key; with the secret, which is told once.
    pub(crate) async fn create(&self, new: NewKey) -> Result<(ApiKey, String), Error> {
        self.note("key.create", &new.name).await?;
        self.keys.issue(&self.sandboxes.store, new, self.now()).await
    }

    /// Makes a key that replaces another, which ends after `overlap_secs`.
    pub(crate) async fn rotate(&self, key: &str, overlap_secs: Option<u64>) -> Result<(ApiKey, String), Error> {
        self.note("key.rotate", key).await?;
        self.keys.rotate(&self.sandboxes.store, key, overlap_secs, self.now()).await
    }

    /// Ends a key at once.
    pub(crate) async fn revoke(&self, key: &str) -> Result<ApiKey, Error> {
        self.note("key.revoke", key).await?;
        self.keys.revoke(&self.sandboxes.store, key, self.now()).await
    }
}
