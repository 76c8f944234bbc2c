//! API keys: who may call. For administrators.

use dispense_api::error::Error;
use dispense_api::v1;
use dispense_api::v1::key_service_client::KeyServiceClient;

use crate::retry::idempotent;
use crate::{Authenticated, Client};

impl Client {
    fn keys_client(&self) -> KeyServiceClient<Authenticated> {
        KeyServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    /// Makes a key; the answer has its secret, which is told only here. Not tried again: a lost answer leaves a
    /// key that nobody has, and [`Client::keys`] shows it.
    pub async fn create_key(&self, request: v1::CreateKeyRequest) -> Result<v1::IssuedKey, Error> {
        let issued = self.keys_client().create_key(request).await;
        issued.map(tonic::Response::into_inner).map_err(crate::error::of)
    }

    /// Keys that open something, or all, newest first.
    pub async fn keys(&self, all: bool) -> Result<Vec<v1::Key>, Error> {
        let request = v1::ListKeysRequest { all };
        Ok(idempotent(|| async { self.keys_client().list_keys(request).await }).await?.keys)
    }

    /// Makes a key that replaces another one, which ends after the overlap.
    pub async fn rotate_key(&self, request: v1::RotateKeyRequest) -> Result<v1::IssuedKey, Error> {
        let issued = self.keys_client().rotate_key(request).await;
        issued.map(tonic::Response::into_inner).map_err(crate::error::of)
    }

    /// Ends a key at once; by id, prefix or name.
    pub async fn revoke_key(&self, key: &str) -> Result<v1::Key, Error> {
        let request = v1::RevokeKeyRequest { key: key.to_owned() };
        idempotent(|| async { self.keys_client().revoke_key(request.clone()).await }).await
    }
}
