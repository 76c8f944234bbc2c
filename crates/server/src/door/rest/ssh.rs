//! How to reach a sandbox over SSH.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use http::{HeaderMap, Uri};
use schemars::JsonSchema;
use serde::Serialize;

use super::json::time;
use super::{Answer, Parts};
use crate::auth::Principal;
use crate::clock::MICROS_PER_SEC;
use crate::ssh;

/// What an SSH client needs, with a key and a certificate of minutes that are made for this answer.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConnectionJson {
    host: String,
    port: u16,
    /// The sandbox's id.
    user: String,
    /// In OpenSSH's form.
    private_key: String,
    /// For the private key, as a line.
    certificate: String,
    expires_at: String,
    /// Vouches for the server: `@cert-authority HOSTALIAS LINE` in a `known_hosts` file.
    host_authority: String,
    /// For `HostKeyAlias`.
    host_alias: String,
}

pub(super) async fn connection(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer<Json<ConnectionJson>> {
    let ssh = parts.ssh.as_ref().ok_or_else(ssh::switched_off)?;
    let row = parts.sandboxes.seen_by(&caller).used("ssh.connect", &id).await?;
    let made = ssh.authority.connect("", &caller.key_id, &row.id)?;
    // HTTP/2 has it in the address.
    let header = headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(http::uri::Authority::as_str).or(header).unwrap_or("localhost");
    let host = host
        .rsplit_once(':')
        .filter(|(_, port)| port.parse::<u16>().is_ok())
        .map_or(host, |(name, _)| name)
        .trim_matches(['[', ']']);
    Ok(Json(ConnectionJson {
        host: host.to_owned(),
        port: ssh.port,
        user: row.id.to_string(),
        private_key: made.private_key,
        certificate: made.certificate,
        expires_at: time(i64::try_from(made.expires_at).unwrap_or(i64::MAX).saturating_mul(MICROS_PER_SEC)),
        host_authority: ssh.authority.host_authority(),
        host_alias: ssh::HOST_ALIAS.to_owned(),
    }))
}
