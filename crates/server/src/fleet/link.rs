//! `dispense.runner.v1`: the control stream of each runner, and the sessions that it dials back.
//!
//! ```text
//! runner: hello (all it has) ──► server: welcome, then what is wanted of each of its sandboxes
//! runner: box, agent, heartbeat ──►   ◄── server: desired, open_session
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use dispense_api::error::{Code, Error, reason};
use dispense_api::id::{RunnerId, SandboxId, SessionId};
use dispense_api::runner::runner_link_service_server::RunnerLinkService;
use dispense_api::runner::{KeepLogsRequest, KeepLogsResponse, RunnerMessage, ServerMessage, SessionFrame, Welcome};
use dispense_api::runner::{runner_message, server_message, session_frame};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::hello::{self, Introduction};
use super::{HEARTBEAT_INTERVAL, KnownRunner, LEASE, LinkHandle, Mode};
use crate::auth::keys::{credential, unauthenticated};
use crate::auth::secret::{CREDENTIAL_PREFIX, hash, random, same};
use crate::door::inside::InsideDoor;
use crate::planted;
use crate::relay::Relay;
use crate::relay::session::Frames;
use crate::sandbox::lifecycle::BoxFact;
use crate::sandbox::service::Sandboxes;
use crate::store::runners;

/// Messages that wait for a runner's stream; the initial orders are not counted.
const QUEUE_MESSAGES: usize = 4096;
/// From the start of a stream to its first message.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames between the relay and HTTP/2, which has a window of its own.
const SESSION_FRAMES: usize = 4;

/// Who opened a stream.
enum Peer {
    /// With the join token.
    New,
    /// With its own credential.
    Known(RunnerId),
}

/// Answers runners.
#[derive(Clone)]
pub(crate) struct RunnerLinks {
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) inside: Arc<InsideDoor>,
    pub(crate) tasks: TaskTracker,
}

type Outbound<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl RunnerLinkService for RunnerLinks {
    type AttachStream = Outbound<ServerMessage>;
    type SessionStream = Outbound<SessionFrame>;

    async fn attach(&self, request: Request<Streaming<RunnerMessage>>) -> Result<Response<Self::AttachStream>, Status> {
        let peer = self.authenticate(&request).await?;
        let mut inbound = request.into_inner();
        let first = first_message(&mut inbound).await?;
        let Some(runner_message::Kind::Hello(hello)) = first.kind else {
            return Err(protocol("the first message is not `hello`").into());
        };
        let introduction = hello::parse(hello)?;
        let (known, credential) = self.admit(peer, &introduction).await?;
        let id = known.id.clone();
        let (outbound, queue) = mpsc::channel(QUEUE_MESSAGES);
        let cancel = CancellationToken::new();
        let handle = LinkHandle { outbound, cancel: cancel.clone() };
        let (serial, orders) = self.sandboxes.reconcile(known, introduction.boxes, handle).await?;
        tracing::info!(runner = %id, name = %introduction.facts.name, "runner connected");
        let welcome = Welcome {
            runner_id: id.to_string(),
            credential: credential.unwrap_or_default(),
            heartbeat_interval_secs: secs(HEARTBEAT_INTERVAL),
            lease_secs: secs(LEASE),
        };
        let welcome = ServerMessage { kind: Some(server_message::Kind::Welcome(welcome)) };
        let links = self.clone();
        let ended = cancel.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = links.read(&id, inbound) => {}
            }
            links.sandboxes.fleet.detach(&id, serial);
            links.relay.cut(serial);
            // Also ends the answer's stream, when it was the runner that ended.
            cancel.cancel();
            tracing::info!(runner = %id, "runner disconnected");
        });
        let first = std::iter::once(welcome).chain(orders);
        let stream = futures_util::stream::iter(first).chain(ReceiverStream::new(queue)).map(Ok);
        Ok(Response::new(Box::pin(stream.take_until(async move { ended.cancelled().await }))))
    }

    async fn session(
        &self,
        request: Request<Streaming<SessionFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let Peer::Known(runner) = self.authenticate(&request).await? else {
            return Err(unauthenticated("a session needs the runner's own credential").into());
        };
        let mut inbound = request.into_inner();
        let first = first_message(&mut inbound).await?;
        let Some(session_frame::Kind::Accept(session)) = first.kind else {
            return Err(protocol("the first frame is not `accept`").into());
        };
        let session: SessionId = session.parse().map_err(|_| protocol("`accept` is not the id of a session"))?;
        let (outbound, frames) = mpsc::channel(SESSION_FRAMES);
        self.relay.accept(&runner, &session, Frames { inbound, outbound })?;
        Ok(Response::new(Box::pin(ReceiverStream::new(frames).map(Ok))))
    }

    async fn keep_logs(&self, request: Request<KeepLogsRequest>) -> Result<Response<KeepLogsResponse>, Status> {
        let Peer::Known(runner) = self.authenticate(&request).await? else {
            return Err(unauthenticated("logs need the runner's own credential").into());
        };
        self.sandboxes.keep_logs(&runner, request.into_inner().logs).await?;
        Ok(Response::new(KeepLogsResponse {}))
    }
}

impl RunnerLinks {
    async fn authenticate<T>(&self, request: &Request<T>) -> Result<Peer, Error> {
        let refused = || {
            unauthenticated(
                "the runner's token is not valid: take a join token from the server (`dispense up` prints it)",
            )
        };
        let token = credential(request.metadata().as_ref()).ok_or_else(refused)?;
        if same(token, &self.sandboxes.secret.join_token()) {
            return Ok(Peer::New);
        }
        if !token.starts_with(CREDENTIAL_PREFIX) {
            return Err(refused());
        }
        let hashed = hash(token);
        // Each session brings the credential again: the database is asked once.
        if let Some(known) = self.sandboxes.fleet.of_credential(&hashed) {
            return Ok(Peer::Known(known));
        }
        let found = runners::by_credential(self.sandboxes.store.readers(), &hashed).await?.ok_or_else(refused)?;
        self.sandboxes.fleet.keep_credential(hashed, found.clone());
        Ok(Peer::Known(found))
    }

    /// The runner's row, and its credential when it is new.
    async fn admit(&self, peer: Peer, introduction: &Introduction) -> Result<(KnownRunner, Option<String>), Error> {
        let now = self.sandboxes.clock.now();
        let facts = introduction.facts.clone();
        match peer {
            Peer::Known(id) => {
                if introduction.runner.as_ref().is_some_and(|said| *said != id) {
                    return Err(unauthenticated("the credential is of another runner than the hello says"));
                }
                let row = (id.clone(), facts.clone());
                let write = self.sandboxes.store.write(move |tx| {
                    let (id, facts) = row.clone();
                    Box::pin(async move { runners::update(tx, &id, &facts, now).await })
                });
                write.await?;
                // The fleet knows its mode.
                Ok((KnownRunner { id, facts, mode: Mode::Open, joined_at: now, last_seen_at: now }, None))
            }
            Peer::New => {
                let secret = random(CREDENTIAL_PREFIX);
                let known =
                    KnownRunner { id: RunnerId::random(), facts, mode: Mode::Open, joined_at: now, last_seen_at: now };
                let (row, hashed) = (known.clone(), hash(&secret));
                let write = self.sandboxes.store.write(move |tx| {
                    let (row, hashed) = (row.clone(), hashed.clone());
                    Box::pin(async move { runners::insert(tx, &row, &hashed).await })
                });
                write.await?;
                Ok((known, Some(secret)))
            }
        }
    }

    /// Takes a runner's messages until its stream ends.
    async fn read(&self, id: &RunnerId, mut inbound: Streaming<RunnerMessage>) {
        loop {
            let message = match inbound.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(status) => {
                    tracing::debug!(runner = %id, %status, "control stream");
                    return;
                }
            };
            self.sandboxes.fleet.heard(id, self.sandboxes.clock.now());
            if let Some(runner_message::Kind::Box(report)) = &message.kind {
                planted::remember(id, report);
            }
            self.take_outdated(id).await;
            for message in std::iter::repeat_n(message, planted::copies()) {
                if let Err(error) = self.take(id, message).await {
                    tracing::warn!(runner = %id, %error, "message of a runner was not taken");
                }
            }
        }
    }

    /// In a simulation: what a runner said of a placement that has been replaced since comes again. It must change
    /// nothing.
    async fn take_outdated(&self, id: &RunnerId) {
        let Some(report) = planted::outdated(id) else { return };
        let row = self.sandboxes.get(&report.sandbox_id).await;
        if row.is_ok_and(|row| row.life.generation.0 > report.generation) {
            let message = RunnerMessage { kind: Some(runner_message::Kind::Box(report)) };
            if let Err(error) = self.take(id, message).await {
                tracing::warn!(runner = %id, %error, "outdated message");
            }
        }
    }

    async fn take(&self, id: &RunnerId, message: RunnerMessage) -> Result<(), Error> {
        match message.kind {
            Some(runner_message::Kind::Box(message)) => {
                let report = hello::box_report(message)?;
                if report.fact != BoxFact::Running {
                    self.relay.ended(&report.sandbox);
                }
                self.sandboxes.box_reported(id, report).await
            }
            Some(runner_message::Kind::Agent(report)) => {
                let sandbox: SandboxId =
                    report.sandbox_id.parse().map_err(|_| protocol("an agent's report names no sandbox"))?;
                self.sandboxes.agent_reported_by(id, &sandbox, report.into()).await
            }
            Some(runner_message::Kind::SessionDenied(denied)) => {
                let session: SessionId =
                    denied.session_id.parse().map_err(|_| protocol("a denial names no session"))?;
                self.relay.denied(id, &session, &denied.reason, denied.message);
                Ok(())
            }
            Some(runner_message::Kind::Visit(visit)) => self.inside.visit(id, &visit),
            Some(runner_message::Kind::Heartbeat(_)) => Ok(()),
            Some(runner_message::Kind::Hello(_)) => Err(protocol("a second `hello`")),
            // Of a newer runner.
            None => Ok(()),
        }
    }
}

async fn first_message<T>(inbound: &mut Streaming<T>) -> Result<T, Status> {
    match tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, inbound.message()).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err(protocol("the stream ended before its first message").into()),
        Ok(Err(status)) => Err(status),
        Err(_) => {
            let message = format!("no first message came within {} s", FIRST_MESSAGE_TIMEOUT.as_secs());
            Err(Error::new(Code::DeadlineExceeded, reason::PROTOCOL, message).into())
        }
    }
}

fn protocol(message: &str) -> Error {
    Error::new(Code::InvalidArgument, reason::PROTOCOL, message)
}

fn secs(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
