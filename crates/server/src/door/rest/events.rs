//! `GET /api/v1/events`: server-sent events. A browser that comes back says where it was by `Last-Event-ID`.

use std::collections::BTreeMap;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::sse::{Event as SentEvent, KeepAlive, Sse};
use dispense_api::error::Error;
use futures_util::{Stream, stream};
use http::HeaderMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::Parts;
use super::{Answer, bad_query, json};
use crate::auth::Principal;
use crate::events::From;
use crate::sandbox::spec::invalid;
use crate::store::events::Event;

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Events after this number; without it those that come from now on.
    after: Option<i64>,
    /// Ends with what is there.
    #[serde(default)]
    no_follow: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventJson {
    seq: i64,
    at: String,
    #[serde(rename = "type")]
    kind: String,
    sandbox_id: String,
    group: String,
    data: BTreeMap<String, String>,
}

pub(super) async fn events(
    State(parts): State<Parts>,
    Extension(caller): Extension<Principal>,
    headers: HeaderMap,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Answer<Sse<impl Stream<Item = Result<SentEvent, Error>>>> {
    let Query(query) = query.map_err(|error| bad_query(&error))?;
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let last = last.map(|text| text.parse::<i64>().map_err(|_| invalid("last-event-id", "it is not a number")));
    let from = match (last.transpose()?, query.after) {
        (Some(after), _) | (None, Some(after)) if after < 0 => return Err(invalid("after", "it is below 0").into()),
        (Some(after), _) | (None, Some(after)) => From::After(after),
        (None, None) => From::Now,
    };
    let follower = parts.sandboxes.seen_by(&caller).events(from, !query.no_follow).await?;
    let events = stream::try_unfold(follower, |mut follower| async {
        let Some(event) = follower.next().await? else { return Ok(None) };
        Ok::<_, Error>(Some((sent(event), follower)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

fn sent(event: Event) -> SentEvent {
    let kind = event.kind.clone();
    let body = EventJson {
        seq: event.seq,
        at: json::time(event.at),
        kind: event.kind,
        sandbox_id: event.sandbox,
        group: event.group,
        data: event.data,
    };
    let text = serde_json::to_string(&body).unwrap_or_default();
    SentEvent::default().id(event.seq.to_string()).event(kind).data(text)
}
