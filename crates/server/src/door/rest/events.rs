//! `GET /api/v1/events`: server-sent events, or a WebSocket with one event a text message. A browser that comes back says
//! where it was by `Last-Event-ID`, or `after`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::sse::{Event as SentEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use dispense_api::error::Error;
use futures_util::{SinkExt, StreamExt, stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use super::super::Parts;
use super::super::websocket::{self, Socket};
use super::{Answer, bad_query, json};
use crate::auth::until::KEY_ENDED;
use crate::auth::{Keys, Principal};
use crate::events::{Follower, From};
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

/// Of the WebSocket.
const PROTOCOL: &str = "dispense.events.v1";
/// Between two signs of life; proxies cut what is silent for a minute.
const PING_INTERVAL: Duration = Duration::from_secs(25);
/// One that takes nothing for this long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// A follower has nothing to say.
const MESSAGE_MAX_BYTES: usize = 4096;

pub(super) async fn events(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    query: Result<Query<EventsQuery>, QueryRejection>,
    mut request: Request,
) -> Answer<Response> {
    let Query(query) = query.map_err(|error| bad_query(&error))?;
    let last = request.headers().get("last-event-id").and_then(|value| value.to_str().ok());
    let last = last.map(|text| text.parse::<i64>().map_err(|_| invalid("last-event-id", "it is not a number")));
    let from = match (last.transpose()?, query.after) {
        (Some(after), _) | (None, Some(after)) if after < 0 => return Err(invalid("after", "it is below 0").into()),
        (Some(after), _) | (None, Some(after)) => From::After(after),
        (None, None) => From::Now,
    };
    let follower = parts.sandboxes.seen_by(&caller).events(from, !query.no_follow).await?;
    if websocket::is_asked(request.headers()) {
        parts.origins.check(request.uri(), request.headers())?;
        let (keys, key_id) = (parts.keys.clone(), caller.key_id);
        let serve = |socket| feed(socket, follower, keys, key_id);
        return Ok(websocket::accept(&mut request, PROTOCOL, MESSAGE_MAX_BYTES, serve)?);
    }
    let events = stream::try_unfold(follower, |mut follower| async {
        let Some(event) = follower.next().await? else { return Ok(None) };
        Ok::<_, Error>(Some((sent(event), follower)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

/// Sends events until there are no more, the follower goes, or its key opens nothing any more.
async fn feed(mut socket: Socket, mut follower: Follower, keys: Arc<Keys>, key_id: String) {
    let mut ping = tokio::time::interval(PING_INTERVAL);
    let ended = keys.ended(&key_id);
    tokio::pin!(ended);
    let close = |code, reason: &str| Message::Close(Some(CloseFrame { code, reason: reason.into() }));
    loop {
        let message = tokio::select! {
            event = follower.next() => match event {
                Ok(Some(event)) => Message::Text(body(event).into()),
                Ok(None) => close(CloseCode::Normal, "this is all"),
                Err(error) => close(CloseCode::Error, error.code.as_str()),
            },
            () = &mut ended => close(CloseCode::Policy, KEY_ENDED),
            _ = ping.tick() => Message::Ping(Bytes::new()),
            came = socket.next() => match came {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        let is_last = matches!(message, Message::Close(_));
        let sent = tokio::time::timeout(SEND_TIMEOUT, socket.send(message)).await;
        if is_last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

fn body(event: Event) -> String {
    let body = EventJson {
        seq: event.seq,
        at: json::time(event.at),
        kind: event.kind,
        sandbox_id: event.sandbox,
        group: event.group,
        data: event.data,
    };
    serde_json::to_string(&body).unwrap_or_default()
}

fn sent(event: Event) -> SentEvent {
    let (seq, kind) = (event.seq.to_string(), event.kind.clone());
    SentEvent::default().id(seq).event(kind).data(body(event))
}
