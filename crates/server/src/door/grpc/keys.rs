//! `dispense.v1.KeyService`.

use std::sync::Arc;

use dispense_api::v1;
use dispense_api::v1::key_service_server::KeyService;
use tonic::{Request, Response, Status};

use crate::auth::issue::NewKey;
use crate::auth::{ApiKey, Role, Scope};
use crate::door::Parts;
use crate::door::request::caller;
use crate::sandbox::spec::invalid;
use crate::sandbox::view::timestamp;

pub(super) struct KeyDoor(pub(super) Arc<Parts>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl KeyService for KeyDoor {
    async fn create_key(&self, request: Request<v1::CreateKeyRequest>) -> Answer<v1::IssuedKey> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let role = match v1::Role::try_from(request.role) {
            Ok(v1::Role::Unspecified | v1::Role::Member) => Role::Member,
            Ok(v1::Role::Viewer) => Role::Viewer,
            Ok(v1::Role::Admin) => Role::Admin,
            Err(_) => return Err(invalid("role", "use viewer, member or admin").into()),
        };
        let scope = Scope::of(&request.group, &request.sandbox_ids)?;
        let new = NewKey::parse(request.name, role, scope, request.expires_in_secs, request.e2b)?;
        Ok(Response::new(told(self.0.issuer(&caller).create(new).await?)))
    }

    async fn list_keys(&self, request: Request<v1::ListKeysRequest>) -> Answer<v1::ListKeysResponse> {
        let caller = caller(&request)?;
        let keys = self.0.issuer(&caller).list(request.into_inner().all).into_iter().map(wire).collect();
        Ok(Response::new(v1::ListKeysResponse { keys }))
    }

    async fn rotate_key(&self, request: Request<v1::RotateKeyRequest>) -> Answer<v1::IssuedKey> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        Ok(Response::new(told(self.0.issuer(&caller).rotate(&request.key, request.overlap_secs).await?)))
    }

    async fn revoke_key(&self, request: Request<v1::RevokeKeyRequest>) -> Answer<v1::Key> {
        let caller = caller(&request)?;
        Ok(Response::new(wire(self.0.issuer(&caller).revoke(&request.into_inner().key).await?)))
    }
}

fn told((key, secret): (ApiKey, String)) -> v1::IssuedKey {
    v1::IssuedKey { key: Some(wire(key)), secret }
}

fn wire(key: ApiKey) -> v1::Key {
    let (group, sandbox_ids) = match key.scope {
        Scope::All => (String::new(), vec![]),
        Scope::Group(group) => (group, vec![]),
        Scope::Sandboxes(ids) => (String::new(), ids.iter().map(ToString::to_string).collect()),
    };
    v1::Key {
        id: key.id,
        name: key.name,
        prefix: key.prefix,
        role: match key.role {
            Role::Viewer => v1::Role::Viewer,
            Role::Member => v1::Role::Member,
            Role::Admin => v1::Role::Admin,
        }
        .into(),
        group,
        sandbox_ids,
        account: key.account,
        created_at: Some(timestamp(key.created_at)),
        expires_at: key.expires_at.map(timestamp),
        revoked_at: key.revoked_at.map(timestamp),
    }
}
