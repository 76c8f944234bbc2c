//! API keys. A secret is told once, in the answer that makes it.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::json::time;
use super::{Answer, Parts, bad_body, bad_query};
use crate::auth::issue::NewKey;
use crate::auth::{ApiKey, Principal, Role, Scope};
use crate::sandbox::spec::{invalid, renamed};

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeyJson {
    id: String,
    name: String,
    /// The first characters of the secret.
    prefix: String,
    /// `viewer`, `member` or `admin`.
    role: &'static str,
    /// It reaches only the sandboxes of this group, and creates only there; empty for no such bound.
    group: String,
    /// It reaches only these sandboxes, and creates none; empty for no such bound.
    sandbox_ids: Vec<String>,
    /// Whom its sandboxes belong to: a key and those that replace it have the same.
    account: String,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct KeysJson {
    keys: Vec<KeyJson>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct IssuedJson {
    key: KeyJson,
    /// Told only here.
    secret: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NewKeyJson {
    /// For people; at most 63 bytes.
    name: String,
    /// `viewer`, `member` or `admin`; empty means member.
    #[serde(default)]
    role: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    sandbox_ids: Vec<String>,
    /// Seconds after which it ends; never when it is absent.
    #[serde(default)]
    #[schemars(range(min = 1))]
    expires_in_secs: Option<u64>,
    /// With the prefix `e2b_` instead of `dsp_`, which some SDKs insist on.
    #[serde(default)]
    e2b: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeysQuery {
    /// Also those that have ended.
    #[serde(default)]
    all: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RotateQuery {
    /// Seconds for which the old one is still taken; a day when it is absent, 0 ends it at once.
    overlap_secs: Option<u64>,
}

impl From<ApiKey> for KeyJson {
    fn from(key: ApiKey) -> Self {
        let (group, sandbox_ids) = match key.scope {
            Scope::All => (String::new(), vec![]),
            Scope::Group(group) => (group, vec![]),
            Scope::Sandboxes(ids) => (String::new(), ids.iter().map(ToString::to_string).collect()),
        };
        Self {
            id: key.id,
            name: key.name,
            prefix: key.prefix,
            role: key.role.as_str(),
            group,
            sandbox_ids,
            account: key.account,
            created_at: time(key.created_at),
            expires_at: key.expires_at.map(time),
            revoked_at: key.revoked_at.map(time),
        }
    }
}

impl From<(ApiKey, String)> for IssuedJson {
    fn from((key, secret): (ApiKey, String)) -> Self {
        Self { key: key.into(), secret }
    }
}

pub(super) async fn list(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    query: Result<Query<KeysQuery>, QueryRejection>,
) -> Answer<Json<KeysJson>> {
    let Query(KeysQuery { all }) = query.map_err(|error| bad_query(&error))?;
    let keys = parts.issuer(&caller).list(all).into_iter().map(Into::into).collect();
    Ok(Json(KeysJson { keys }))
}

pub(super) async fn create(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    body: Result<Json<NewKeyJson>, JsonRejection>,
) -> Answer<(StatusCode, Json<IssuedJson>)> {
    let Json(body) = body.map_err(|error| bad_body(&error))?;
    let role = match body.role.as_str() {
        "" => Role::Member,
        text => Role::parse(text).ok_or_else(|| invalid("role", "use viewer, member or admin"))?,
    };
    let scope = Scope::of(&body.group, &body.sandbox_ids);
    let scope = scope.map_err(|error| renamed(error, |field| field.replace("scope.sandboxes", "sandboxIds")))?;
    let expires_in_secs = match body.expires_in_secs {
        // Somebody's time was up, who does not want a key for ever.
        Some(0) => {
            return Err(invalid("expiresInSecs", "0 is over at once: leave it out for a key that does not end").into());
        }
        secs => secs.unwrap_or_default(),
    };
    let new = NewKey::parse(body.name, role, scope, expires_in_secs, body.e2b)?;
    Ok((StatusCode::CREATED, Json(parts.issuer(&caller).create(new).await?.into())))
}

pub(super) async fn rotate(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(key): Path<String>,
    query: Result<Query<RotateQuery>, QueryRejection>,
) -> Answer<(StatusCode, Json<IssuedJson>)> {
    let Query(RotateQuery { overlap_secs }) = query.map_err(|error| bad_query(&error))?;
    Ok((StatusCode::CREATED, Json(parts.issuer(&caller).rotate(&key, overlap_secs).await?.into())))
}

pub(super) async fn revoke(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(key): Path<String>,
) -> Answer<Json<KeyJson>> {
    Ok(Json(parts.issuer(&caller).revoke(&key).await?.into()))
}
