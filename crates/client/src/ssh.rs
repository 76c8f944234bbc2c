//! SSH: what a client of that protocol needs.

use dispense_api::error::Error;
use dispense_api::v1;
use dispense_api::v1::ssh_service_client::SshServiceClient;

use crate::retry::idempotent;
use crate::{Authenticated, Client};

impl Client {
    fn ssh_client(&self) -> SshServiceClient<Authenticated> {
        SshServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    /// Where and how to reach a sandbox, with a certificate of minutes for `public_key`; an empty one lets the server
    /// make a pair.
    pub async fn connect_ssh(&self, sandbox: &str, public_key: &str) -> Result<v1::SshConnection, Error> {
        let request = v1::ConnectSshRequest { sandbox: sandbox.to_owned(), public_key: public_key.to_owned() };
        idempotent(|| async { self.ssh_client().connect_ssh(request.clone()).await }).await
    }

    /// Registers a public key, which opens as this account from then on.
    pub async fn add_ssh_key(&self, public_key: &str) -> Result<v1::SshKey, Error> {
        let request = v1::AddSshKeyRequest { public_key: public_key.to_owned() };
        idempotent(|| async { self.ssh_client().add_ssh_key(request.clone()).await }).await
    }

    /// The registered public keys of this account.
    pub async fn ssh_keys(&self) -> Result<Vec<v1::SshKey>, Error> {
        let request = v1::ListSshKeysRequest {};
        Ok(idempotent(|| async { self.ssh_client().list_ssh_keys(request).await }).await?.keys)
    }

    /// Removes a registered public key. Not tried again: a lost answer may have been the removal's.
    pub async fn remove_ssh_key(&self, fingerprint: &str) -> Result<(), Error> {
        let request = v1::RemoveSshKeyRequest { fingerprint: fingerprint.to_owned() };
        self.ssh_client().remove_ssh_key(request).await.map(drop).map_err(crate::error::of)
    }
}
