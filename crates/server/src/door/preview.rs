//! Previews: a reverse proxy to what listens in a sandbox, by host name.
//!
//! ```text
//! Host: 3000-web.localhost ──► who may see it (access) ──► a connection to the port (pool) ──► the sandbox
//! ```
//!
//! Towards the sandbox it speaks HTTP/1.1, whatever the caller speaks. Bodies are streamed both ways and never kept.
//! INVARIANT: what opens Dispense (keys, links, cookies of previews) never reaches the sandbox.

mod access;
pub(crate) mod headers;
mod page;
mod pool;
mod upgrade;

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use dispense_api::error::{Code, Error, reason};
use http::{HeaderMap, Request, StatusCode};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::Parts;
use super::listener::PeerAddress;
use super::observe::Matched;
use super::pulse::Pulse;
use crate::auth::keys::unauthenticated;
use crate::auth::until::Until;
use crate::preview::{Place, refuse_agent_port};
use crate::relay::Route;
use access::Entry;
use headers::Forwarded;
use pool::Pool;

/// Until the first byte of an answer, after the last of the request: programs that think longer stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// Most programs have answered by then.
const SOON: Duration = Duration::from_secs(1);

/// The door.
pub(super) struct PreviewDoor {
    parts: Arc<Parts>,
    pool: Arc<Pool>,
}

impl PreviewDoor {
    pub(super) fn new(parts: Arc<Parts>) -> Self {
        let pool = Arc::new(Pool::new(parts.relay.clone()));
        Self { parts, pool }
    }

    /// What the request's host stands for, if it is one of a preview. A request that names two hosts names none.
    pub(super) fn place(&self, request: &Request<Incoming>) -> Option<Place> {
        self.parts.previews.place(headers::host(request)?)
    }

    /// Answers one request.
    pub(super) async fn serve(&self, place: Place, request: Request<Incoming>) -> Result<Response, Infallible> {
        let for_people = page::wanted(request.headers());
        let mut response = match self.answer(&place, request).await {
            Ok(answered) => answered,
            Err(error) => page::refusal(&place, &error, for_people),
        };
        response.extensions_mut().insert(Matched("preview".to_owned()));
        Ok(response)
    }

    /// With what let the caller in: the answer ends with it.
    async fn answer(&self, place: &Place, request: Request<Incoming>) -> Result<Response, Error> {
        match access::enter(&self.parts, place, &request).await? {
            Entry::Answered(response) => Ok(response),
            Entry::Open(route, pass) => {
                refuse_agent_port(route.agent_ports, place.port)?;
                let (previews, keys) = (self.parts.previews.clone(), self.parts.keys.clone());
                let until = pass.until(previews, keys, &route.sandbox, place.port);
                let mut response = self.forward(place, &route, &until, request).await?;
                response.extensions_mut().insert(until);
                if let Some(holder) = pass.holder() {
                    response.extensions_mut().insert(holder.clone());
                }
                Ok(response)
            }
        }
    }

    async fn forward(
        &self,
        place: &Place,
        route: &Route,
        until: &Until,
        mut request: Request<Incoming>,
    ) -> Result<Response, Error> {
        let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0.ip());
        let forwarded = self.forwarded(place, peer, &request);
        let upgrade = headers::upgrade(request.headers());
        let theirs = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (head, body) = request.into_parts();
        let pulse = Pulse::default();
        let body = Body::new(Uploaded { body, pulse: pulse.clone() });
        let mut outgoing = headers::to_sandbox(head, &forwarded, upgrade)?.map(|()| body);
        let (connection, mut response) = loop {
            let mut connection = self.pool.take(route, place.port).await?;
            let mut answered = std::pin::pin!(connection.sender.try_send_request(outgoing));
            // Until then nothing is set up to watch over what lets the caller in.
            let answered = match tokio::time::timeout(SOON, &mut answered).await {
                Ok(answered) => answered,
                Err(_) => tokio::select! {
                    answered = answered => answered,
                    () = pulse.stopped(ANSWER_TIMEOUT) => return Err(late(place)),
                    why = until.ended() => return Err(unauthenticated(why)),
                },
            };
            match answered {
                Ok(response) => break (connection, response),
                Err(mut failed) => match failed.take_message() {
                    // The program closed a connection that was kept: the request has not left, and goes by another.
                    Some(unsent) if connection.kept => outgoing = unsent,
                    _ => return Err(cut(place, failed.error())),
                },
            }
        };
        headers::from_sandbox(response.headers_mut(), &forwarded);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let theirs = theirs.ok_or_else(|| cut(place, &"it switched protocols unasked"))?;
            let ours = hyper::upgrade::on(&mut response);
            let ended = until.ended();
            tokio::spawn(async move {
                tokio::select! {
                    () = upgrade::join(theirs, ours) => {}
                    why = ended => tracing::debug!(why, "an upgraded connection of a preview was ended"),
                }
            });
            return Ok(response.map(Body::new));
        }
        self.pool.put(connection);
        Ok(response.map(Body::new))
    }

    fn forwarded(&self, place: &Place, peer: Option<IpAddr>, request: &Request<Incoming>) -> Forwarded {
        Forwarded {
            port: place.port,
            host: headers::host(request).unwrap_or_default().to_owned(),
            peer,
            https: self.parts.previews.config.https,
        }
    }
}

/// The body of a request on its way: an upload takes as long as it takes.
struct Uploaded {
    body: Incoming,
    pulse: Pulse,
}

impl http_body::Body for Uploaded {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.pulse.beat();
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn late(place: &Place) -> Error {
    let message = format!("the program on port {} did not answer within {} s", place.port, ANSWER_TIMEOUT.as_secs());
    Error::new(Code::DeadlineExceeded, "preview_slow", message)
}

fn cut(place: &Place, why: &dyn std::fmt::Display) -> Error {
    let message = format!("the program on port {} does not speak HTTP/1.1 or ended the connection: {why}", place.port);
    Error::new(Code::Unavailable, "preview_cut", message)
}

/// Whether it may pass by itself: a page then looks again.
fn passes(error: &Error) -> bool {
    ["port_closed", "preview_cut", reason::SANDBOX_NOT_RUNNING, reason::AGENT_UNREACHABLE, reason::RUNNER_OFFLINE]
        .contains(&error.reason.as_str())
}

/// The credentials of Dispense in a request's headers, if there are any.
fn has_platform_key(headers: &HeaderMap) -> bool {
    crate::auth::keys::credential(headers).is_some_and(crate::auth::keys::is_platform_secret)
}
