//! `dispense.v1.SshService`.

use std::sync::Arc;

use dispense_api::error::{Code, Error};
use dispense_api::v1;
use dispense_api::v1::ssh_service_server::SshService;
use tonic::{Request, Response, Status};

use crate::clock::MICROS_PER_SEC;
use crate::door::Parts;
use crate::door::request::caller;
use crate::sandbox::view::timestamp;
use crate::ssh::{self, Connection};
use crate::store::ssh_keys::{self, SshKey};

/// Of one account: people have a few, and each key of a machine is one more.
const KEYS_MAX: usize = 100;

pub(super) struct SshDoor(pub(super) Arc<Parts>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl SshService for SshDoor {
    async fn connect_ssh(&self, request: Request<v1::ConnectSshRequest>) -> Answer<v1::SshConnection> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let ssh = self.0.ssh.as_ref().ok_or_else(ssh::switched_off)?;
        let row = self.0.sandboxes.seen_by(&caller).used("ssh.connect", &request.sandbox).await?;
        let Connection { certificate, expires_at, private_key } =
            ssh.authority.connect(&request.public_key, &caller.key_id, &row.id)?;
        let expires_at = i64::try_from(expires_at).unwrap_or(i64::MAX).saturating_mul(MICROS_PER_SEC);
        Ok(Response::new(v1::SshConnection {
            port: ssh.port.into(),
            user: row.id.to_string(),
            certificate,
            expires_at: Some(timestamp(expires_at)),
            host_authority: ssh.authority.host_authority(),
            host_alias: ssh::HOST_ALIAS.to_owned(),
            private_key,
            sandbox: row.name,
        }))
    }

    async fn add_ssh_key(&self, request: Request<v1::AddSshKeyRequest>) -> Answer<v1::SshKey> {
        let caller = caller(&request)?;
        let public = ssh::parse_public_key(&request.into_inner().public_key)?;
        let fingerprint = ssh::fingerprint(&public);
        let store = &self.0.sandboxes.store;
        if ssh_keys::of_account(store.readers(), &caller.account).await.map_err(Error::from)?.len() >= KEYS_MAX {
            let message = format!("this account has {KEYS_MAX} public keys: remove one first");
            return Err(Error::new(Code::ResourceExhausted, "ssh_keys", message).into());
        }
        self.0.sandboxes.audit.taken(&caller, "ssh_key.add", &fingerprint).await?;
        let key = SshKey {
            fingerprint,
            public_key: public.to_openssh().unwrap_or_default(),
            account: caller.account,
            created_at: self.0.sandboxes.clock.now(),
        };
        let row = key.clone();
        let write = store.write(move |tx| {
            let row = row.clone();
            Box::pin(async move { ssh_keys::insert(tx, &row).await })
        });
        if !write.await.map_err(Error::from)? {
            let message = "this public key opens as another account: make a new one with `ssh-keygen -t ed25519`";
            return Err(Error::new(Code::AlreadyExists, "ssh_key_taken", message).into());
        }
        Ok(Response::new(wire(key)))
    }

    async fn list_ssh_keys(&self, request: Request<v1::ListSshKeysRequest>) -> Answer<v1::ListSshKeysResponse> {
        let caller = caller(&request)?;
        let keys =
            ssh_keys::of_account(self.0.sandboxes.store.readers(), &caller.account).await.map_err(Error::from)?;
        Ok(Response::new(v1::ListSshKeysResponse { keys: keys.into_iter().map(wire).collect() }))
    }

    async fn remove_ssh_key(&self, request: Request<v1::RemoveSshKeyRequest>) -> Answer<v1::RemoveSshKeyResponse> {
        let caller = caller(&request)?;
        let fingerprint = request.into_inner().fingerprint;
        self.0.sandboxes.audit.taken(&caller, "ssh_key.remove", &fingerprint).await?;
        let (account, shown) = (caller.account, fingerprint.clone());
        let write = self.0.sandboxes.store.write(move |tx| {
            let (account, fingerprint) = (account.clone(), fingerprint.clone());
            Box::pin(async move { ssh_keys::remove(tx, &account, &fingerprint).await })
        });
        if !write.await.map_err(Error::from)? {
            let message = format!("there is no public key `{}` here", crate::sandbox::spec::clip(&shown));
            return Err(Error::new(Code::NotFound, "ssh_key_unknown", message).into());
        }
        Ok(Response::new(v1::RemoveSshKeyResponse {}))
    }
}

fn wire(key: SshKey) -> v1::SshKey {
    v1::SshKey { fingerprint: key.fingerprint, public_key: key.public_key, created_at: Some(timestamp(key.created_at)) }
}
