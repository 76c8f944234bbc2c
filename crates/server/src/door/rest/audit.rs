//! Who asked for what.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::json::time;
use super::{Answer, Parts, bad_query};
use crate::audit::Entry;
use crate::door::request::page_size;

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AuditQuery {
    /// Entries after this number: that of the last one of the page before; 0 for the first.
    #[serde(default)]
    after: u64,
    /// At most 1,000; 0 for 100.
    #[serde(default)]
    page_size: u32,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct AuditJson {
    /// Oldest first.
    entries: Vec<EntryJson>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct EntryJson {
    seq: i64,
    at: String,
    account: String,
    key_id: String,
    /// What was asked for, e.g. `sandbox.delete` or the method of a call to an agent.
    action: String,
    /// What it was to be done to, as the caller named it.
    target: String,
    /// `taken`, or the code of the refusal.
    outcome: String,
    request_id: String,
    /// SHA-256 in hex, over this entry and the hash of the one before.
    hash: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct VerdictJson {
    entries: u64,
    /// The first entry that is not what was written.
    broken_at: Option<i64>,
    /// Of the last entry: keep it elsewhere, and a later look can tell whether the end was cut off.
    last_hash: String,
}

impl From<Entry> for EntryJson {
    fn from(entry: Entry) -> Self {
        let record = entry.record;
        Self {
            seq: entry.seq,
            at: time(record.at),
            account: record.account,
            key_id: record.key_id,
            action: record.action,
            target: record.target,
            outcome: record.outcome,
            request_id: record.request_id,
            hash: entry.hash,
        }
    }
}

pub(super) async fn list(
    State(parts): State<Arc<Parts>>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Answer<Json<AuditJson>> {
    let Query(query) = query.map_err(|error| bad_query(&error))?;
    let after = i64::try_from(query.after).unwrap_or(i64::MAX);
    let page = parts.sandboxes.audit.page(after, page_size(query.page_size)?).await?;
    Ok(Json(AuditJson { entries: page.into_iter().map(Into::into).collect() }))
}

pub(super) async fn verify(State(parts): State<Arc<Parts>>) -> Answer<Json<VerdictJson>> {
    let verdict = parts.sandboxes.audit.verify().await?;
    let (entries, broken_at, last_hash) = (verdict.entries, verdict.broken_at, verdict.last_hash);
    Ok(Json(VerdictJson { entries, broken_at, last_hash }))
}
