//! The link to the server: one outbound connection, the control stream on it, and a stream a session.
//!
//! It comes back by itself, with full jitter and a cap, for as long as the runner lives; only a refusal of
//! the join token ends it.

use std::sync::Arc;
use std::time::Duration;

use dispense_api::dial::{self, Dialler};
use dispense_api::limits;
use dispense_api::runner::runner_link_service_client::RunnerLinkServiceClient;
use dispense_api::runner::{Heartbeat, Hello, OpenSession, RunnerMessage, ServerMessage, SessionDenied, Welcome};
use dispense_api::runner::{runner_message, server_message};
use dispense_backend::{Backend, Network};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Uri};
use tonic::{Code, Request, Status, Streaming};

use crate::identity::{Identity, IdentityError, Known};
use crate::logs::Logs;
use crate::machine;
use crate::reports::Reports;
use crate::supervisor::Supervisor;
use crate::{RunnerConfig, session, wanted};

/// Messages waiting for the control stream; reports are state, so few are ever needed.
const QUEUE_MESSAGES: usize = 64;
/// Largest message of the control stream: a spec with its environment.
const CONTROL_MESSAGE_MAX_BYTES: usize = 40 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the start of the stream to its `welcome`.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
const RECONNECT_MIN: Duration = Duration::from_millis(250);
/// With full jitter a thousand runners ask a server that is down 400 times a second, which costs it nothing.
const RECONNECT_MAX: Duration = Duration::from_secs(5);
/// A link that lived this long was good: the next reconnect starts from the shortest delay.
const LINK_GOOD_AFTER: Duration = Duration::from_secs(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Sessions at the same time.
const SESSIONS_MAX: usize = 4096;
/// At shutdown sessions may finish for this long.
const SESSION_DRAIN: Duration = Duration::from_secs(2);
/// Heartbeats are not sent more often, whatever the server says.
const HEARTBEAT_MIN_SECS: u32 = 1;
const HEARTBEAT_MAX_SECS: u32 = 60;

/// Why the link ended for good, or, inside, for now.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Not a URL.
    #[error("`{0}` is not the address of a server: use http://HOST:PORT")]
    Address(String),
    /// There is neither a token nor an identity.
    #[error("this runner has not joined a server yet: give it a join token with --token")]
    NoToken,
    /// The server does not accept the token.
    #[error("the server at {url} refused this runner: {message}")]
    Refused {
        /// Which server.
        url: String,
        /// What it said.
        message: String,
    },
    /// The identity cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Not now.
    #[error("failed to reach the server at {url}: {message}")]
    Away {
        /// Which server.
        url: String,
        /// Why.
        message: String,
    },
}

/// Puts the credential into every request.
#[derive(Clone)]
pub(crate) struct Credential(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub(crate) type RunnerLink = RunnerLinkServiceClient<InterceptedService<Channel, Credential>>;

/// What the link works with.
pub(crate) struct Link {
    pub(crate) config: RunnerConfig,
    pub(crate) dialler: Option<Dialler>,
    pub(crate) identity: Identity,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) reports: Arc<Reports>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) supervisor: Supervisor,
}

/// An established link.
struct Live {
    channel: Channel,
    client: RunnerLink,
    inbound: Streaming<ServerMessage>,
    outbound: mpsc::Sender<RunnerMessage>,
    welcome: Welcome,
}

impl Link {
    /// Keeps the link until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: &CancellationToken) -> Result<(), LinkError> {
        let sessions = TaskTracker::new();
        let mut delay = RECONNECT_MIN;
        loop {
            let start = tokio::time::Instant::now();
            let ended = tokio::select! {
                () = shutdown.cancelled() => break,
                ended = self.once(&sessions, shutdown) => ended,
            };
            match ended {
                Ok(()) => {}
                Err(error @ (LinkError::Address(_) | LinkError::NoToken | LinkError::Identity(_))) => {
                    return Err(error);
                }
                // A runner that never joined cannot; one that did keeps its boxes and goes on asking.
                Err(error @ LinkError::Refused { .. }) if self.identity.known().is_none() => return Err(error),
                Err(error) => tracing::warn!(%error, "link to the server"),
            }
            if start.elapsed() > LINK_GOOD_AFTER {
                delay = RECONNECT_MIN;
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(jitter(delay)) => {}
            }
            delay = (delay * 2).min(RECONNECT_MAX);
        }
        sessions.close();
        let _ = tokio::time::timeout(SESSION_DRAIN, sessions.wait()).await;
        Ok(())
    }

    async fn once(&mut self, sessions: &TaskTracker, shutdown: &CancellationToken) -> Result<(), LinkError> {
        let mut live = self.connect().await?;
        self.join(&live.welcome)?;
        // Sessions carry the runner's own credential, which a first join has just brought.
        live.client = self.client(live.channel.clone())?;
        tracing::info!(runner = %live.welcome.runner_id, server = %self.config.server_url, "joined");
        let slots = Arc::new(Semaphore::new(SESSIONS_MAX));
        let interval_secs = live.welcome.heartbeat_interval_secs.clamp(HEARTBEAT_MIN_SECS, HEARTBEAT_MAX_SECS);
        let mut heartbeat = tokio::time::interval(Duration::from_secs(interval_secs.into()));
        let logs = self.logs.clone();
        let mut logs = std::pin::pin!(logs.send(live.client.clone()));
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                status = &mut logs => return Err(self.status(&status)),
                _ = heartbeat.tick() => self.send(&live, runner_message::Kind::Heartbeat(self.heartbeat())).await?,
                messages = self.reports.next() => {
                    for message in messages {
                        live.outbound.send(message).await.map_err(|_| self.away("the control stream ended"))?;
                    }
                }
                message = live.inbound.message() => {
                    let message = message.map_err(|status| self.status(&status))?;
                    let Some(message) = message else { return Err(self.away("the server ended the control stream")) };
                    match message.kind {
                        Some(server_message::Kind::Desired(desired)) => match wanted::parse(desired) {
                            Ok((sandbox, order)) => self.supervisor.order(&sandbox, order),
                            Err(error) => tracing::error!(%error, "ignored"),
                        },
                        Some(server_message::Kind::OpenSession(request)) => self.open_session(&live, request, sessions, &slots),
                        Some(server_message::Kind::Ping(_)) => {
                            self.send(&live, runner_message::Kind::Heartbeat(self.heartbeat())).await?;
                        }
                        // A second welcome, or a message of a newer server.
                        Some(server_message::Kind::Welcome(_)) | None => {}
                    }
                }
            }
        }
    }

    fn open_session(&self, live: &Live, request: OpenSession, sessions: &TaskTracker, slots: &Arc<Semaphore>) {
        let (backend, supervisor, client) = (self.backend.clone(), self.supervisor.clone(), live.client.clone());
        // Of the link, which a session does not hold up: its end tells the server that this runner is away.
        let (outbound, slots) = (live.outbound.downgrade(), slots.clone());
        sessions.spawn(async move {
            let session_id = request.session_id.clone();
            let result = match slots.try_acquire() {
                Ok(_slot) => session::run(request, &*backend, &supervisor, client)
                    .await
                    .map_err(|error| (error.reason, error.message)),
                Err(_) => Err((
                    "sessions_exhausted".to_owned(),
                    format!("this runner has {SESSIONS_MAX} sessions open: close some"),
                )),
            };
            if let Err((reason, message)) = result {
                tracing::debug!(session = %session_id, %reason, %message, "session denied");
                let denied = SessionDenied { session_id, reason, message };
                let message = RunnerMessage { kind: Some(runner_message::Kind::SessionDenied(denied)) };
                // A link that ended meanwhile took the session with it.
                if let Some(outbound) = outbound.upgrade() {
                    let _ = outbound.send(message).await;
                }
            }
        });
    }

    async fn connect(&self) -> Result<Live, LinkError> {
        let channel = self.channel().await?;
        let mut client = self.client(channel.clone())?;
        let (outbound, receiver) = mpsc::channel(QUEUE_MESSAGES);
        let hello = RunnerMessage { kind: Some(runner_message::Kind::Hello(self.hello())) };
        outbound.try_send(hello).map_err(|_| self.away("a fresh channel takes a message"))?;
        let attach = async {
            let mut inbound =
                client.attach(ReceiverStream::new(receiver)).await.map_err(|status| self.status(&status))?.into_inner();
            let first = inbound.message().await.map_err(|status| self.status(&status))?;
            match first.and_then(|message| message.kind) {
                Some(server_message::Kind::Welcome(welcome)) => Ok((inbound, welcome)),
                _ => Err(self.away("the server did not begin with a welcome")),
            }
        };
        let attached = tokio::time::timeout(WELCOME_TIMEOUT, attach).await;
        let (inbound, welcome) =
            attached.map_err(|_| self.away("the server did not welcome this runner in time"))??;
        Ok(Live { channel, client, inbound, outbound, welcome })
    }

    async fn channel(&self) -> Result<Channel, LinkError> {
        let url = &self.config.server_url;
        let uri: Uri = url.parse().map_err(|_| LinkError::Address(url.clone()))?;
        let endpoint = dial::endpoint(&uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .tcp_nodelay(true);
        dial::connect(&endpoint, &uri, self.dialler.as_ref()).await.map_err(|error| self.away(&chain(&error)))
    }

    fn client(&self, channel: Channel) -> Result<RunnerLink, LinkError> {
        let token = match (self.identity.known(), &self.config.join_token) {
            (Some(known), _) => known.credential.clone(),
            (None, Some(token)) => token.clone(),
            (None, None) => return Err(LinkError::NoToken),
        };
        let value = format!("Bearer {token}")
            .parse()
            .map_err(|_| self.refused("the token has characters that no token has"))?;
        let client = RunnerLinkServiceClient::with_interceptor(channel, Credential(value));
        Ok(client.max_decoding_message_size(CONTROL_MESSAGE_MAX_BYTES))
    }

    fn join(&mut self, welcome: &Welcome) -> Result<(), LinkError> {
        if welcome.credential.is_empty() {
            return Ok(());
        }
        let known = Known { runner_id: welcome.runner_id.clone(), credential: welcome.credential.clone() };
        Ok(self.identity.keep(known)?)
    }

    fn hello(&self) -> Hello {
        let capabilities = self.backend.capabilities();
        let capacity = self.config.offer.capacity(&self.config.state_dir);
        let networks = capabilities.networks.iter().map(|network| match network {
            Network::None => dispense_api::v1::Network::None as i32,
            Network::Nat => dispense_api::v1::Network::Nat as i32,
        });
        Hello {
            runner_id: self.identity.known().map(|known| known.runner_id.clone()).unwrap_or_default(),
            name: self.config.name.clone().unwrap_or_else(machine::hostname),
            address: machine::hostname(),
            capacity: Some(capacity.into()),
            labels: self.config.labels.clone(),
            backends: vec![capabilities.backend],
            templates: capabilities.templates,
            version: dispense_api::VERSION.to_owned(),
            unenforced_limits: capabilities.unenforced_limits,
            disk_in_memory: capabilities.disk_in_memory.unwrap_or_default(),
            networks: networks.collect(),
            boxes: self.reports.all_boxes(),
            boot_id: machine::boot_id(),
            embedded: self.config.embedded,
            source_roots: self.config.source_roots.iter().map(|root| root.to_string_lossy().into_owned()).collect(),
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            disk_free_bytes: machine::disk_free_bytes(&self.config.state_dir),
            load_millis: machine::load_millis(),
        }
    }

    async fn send(&self, live: &Live, kind: runner_message::Kind) -> Result<(), LinkError> {
        live.outbound.send(RunnerMessage { kind: Some(kind) }).await.map_err(|_| self.away("the control stream ended"))
    }

    fn away(&self, message: &str) -> LinkError {
        LinkError::Away { url: self.config.server_url.clone(), message: message.to_owned() }
    }

    fn refused(&self, message: &str) -> LinkError {
        LinkError::Refused { url: self.config.server_url.clone(), message: message.to_owned() }
    }

    fn status(&self, status: &Status) -> LinkError {
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => self.refused(status.message()),
            _ => self.away(status.message()),
        }
    }
}

/// A random delay up to `cap`, so that a fleet does not come back in one moment.
fn jitter(cap: Duration) -> Duration {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).expect("the kernel gives randomness to every process");
    cap.mul_f64(f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
