//! `POST /api/v1/sandboxes/{id}/status`: the heartbeat of a sandbox's agent, with the sandbox's own token.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use dispense_api::id::SandboxId;
use http::HeaderMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::Parts;
use super::{Answer, bad_body};
use crate::auth::keys::{credential, unauthenticated};
use crate::auth::secret::same;
use crate::door::listener::PeerAddress;
use crate::refusal::unknown_sandbox;
use crate::sandbox::agents::Report;
use crate::sandbox::spec::{clip, invalid};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Status {
    Running,
    Stopped,
}

/// What an agent says.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Heartbeat {
    sandbox_id: String,
    status: Status,
    cpu_percent: Option<f64>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<u64>,
    session_count: Option<u32>,
    uptime_secs: u64,
    hostname: String,
    timestamp: String,
    /// Anything; it is not kept.
    #[serde(default, rename = "metadata")]
    _metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Received {
    success: bool,
    sandbox_id: String,
}

pub(super) async fn status(
    State(parts): State<Arc<Parts>>,
    Path(id): Path<String>,
    peer: Option<Extension<PeerAddress>>,
    headers: HeaderMap,
    body: Result<Json<Heartbeat>, JsonRejection>,
) -> Answer<Json<Received>> {
    let token = credential(&headers)
        .ok_or_else(|| unauthenticated("the sandbox's token is missing: send `authorization: Bearer …`"))?;
    let id: SandboxId = id.parse().map_err(|error| invalid("id", error))?;
    let sandbox = parts.sandboxes.get(id.as_str()).await.map_err(|_| unknown_sandbox(id.as_str()))?;
    let generation = sandbox.life.generation;
    if !same(token, &parts.sandboxes.secret.sandbox_token(&id, generation)) {
        return Err(unauthenticated("the token is not that of this sandbox").into());
    }
    let Json(beat) = body.map_err(|error| bad_body(&error))?;
    if beat.sandbox_id != id.as_str() {
        return Err(invalid("sandboxId", "it is not the sandbox of the path").into());
    }
    if OffsetDateTime::parse(&beat.timestamp, &Rfc3339).is_err() {
        return Err(invalid("timestamp", "it is not an RFC 3339 time").into());
    }
    if beat.cpu_percent.is_some_and(|percent| !percent.is_finite() || percent < 0.0) {
        return Err(invalid("cpuPercent", "it is not a number from 0 up").into());
    }
    let report = Report {
        idle: None,
        generation,
        hostname: clip(&beat.hostname),
        ip_address: peer.map(|Extension(PeerAddress(peer))| peer.ip().to_string()).unwrap_or_default(),
        cpu_percent: beat.cpu_percent,
        memory_mb: beat.memory_mb,
        session_count: beat.session_count,
        uptime_secs: beat.uptime_secs,
        stopped: beat.status == Status::Stopped,
    };
    parts.sandboxes.agent_reported(&id, report).await?;
    Ok(Json(Received { success: true, sandbox_id: id.to_string() }))
}
