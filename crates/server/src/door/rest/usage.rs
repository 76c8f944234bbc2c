//! What a sandbox used over time.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::json::time;
use super::{Answer, Parts, bad_query};
use crate::auth::Principal;
use crate::clock::MICROS_PER_SEC;
use crate::sandbox::spec::invalid;
use crate::sandbox::usage::Sample;

const NANOS_PER_MICRO: i128 = 1000;

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct UsageQuery {
    /// RFC 3339; an hour before `to` when it is absent. What lies more than a day back is told by the quarter of an hour.
    #[serde(default)]
    from: Option<String>,
    /// RFC 3339; now when it is absent.
    #[serde(default)]
    to: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct UsageJson {
    step_secs: i64,
    /// Oldest first. A step in which nothing was reported has none.
    samples: Vec<SampleJson>,
}

/// CPU is the mean of one core, memory and sessions are the highest.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct SampleJson {
    at: String,
    cpu_percent: Option<f64>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<u64>,
    session_count: u32,
}

impl From<&Sample> for SampleJson {
    fn from(sample: &Sample) -> Self {
        Self {
            at: time(sample.at.saturating_mul(MICROS_PER_SEC)),
            cpu_percent: sample.cpu_percent,
            memory_mb: sample.memory_mb,
            session_count: sample.session_count,
        }
    }
}

pub(super) async fn usage(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Answer<Json<UsageJson>> {
    let Query(query) = query.map_err(|error| bad_query(&error))?;
    let micros = |field, text: Option<String>| {
        let parse = |text: String| {
            let at =
                OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| invalid(field, "it is not an RFC 3339 time"))?;
            Ok::<_, dispense_api::error::Error>(
                i64::try_from(at.unix_timestamp_nanos() / NANOS_PER_MICRO).unwrap_or(i64::MAX),
            )
        };
        text.map(parse).transpose()
    };
    let (from, to) = (micros("from", query.from)?, micros("to", query.to)?);
    let (tier, samples) = parts.sandboxes.seen_by(&caller).usage(&id, from, to).await?;
    Ok(Json(UsageJson { step_secs: tier.step_secs, samples: samples.iter().map(Into::into).collect() }))
}
