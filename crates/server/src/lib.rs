//! The control plane: doors, sandbox lifecycle, placement, fleet, relay, store.
//!
//! It knows no kind of backend and touches no host: runners connect to it, and it tells them what is wanted.
//!
//! ```text
//! door ──► sandbox ──► store (one writer) ──► after the commit: fleet ──► runner
//! door ──► relay ──► fleet ──► runner, which dials back ──► door
//! ```

mod audit;
mod auth;
mod batch;
mod clock;
mod cluster;
mod config;
mod data_dir;
mod door;
mod events;
mod fleet;
#[cfg(fuzzing)]
pub mod fuzzing;
mod job;
mod metrics;
mod placement;
pub mod planted;
mod preview;
mod provider;
mod purge;
mod refusal;
mod relay;
mod sandbox;
mod ssh;
mod store;
mod sweep;
mod vault;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dispense_api::limits;
use dispense_api::runner::runner_link_service_server::RunnerLinkServiceServer;
use dispense_api::tls::SharedPin;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use audit::Audit;
use auth::gate::Gate;
use auth::keys::KEY_PREFIX;
use auth::secret::{ServerSecret, hash, random};
use auth::{ApiKey, Keys, Role};
use clock::Clock;
use cluster::Listeners;
use door::health::Health;
use door::inside::InsideDoor;
use door::listener::Port;
use door::origin::Origins;
use door::ssh::SshDoor;
use door::tls::Tls;
use door::workspace::WorkspaceDoor;
use door::{Doors, Parts, listener};
use fleet::Fleet;
use fleet::link::RunnerLinks;
use metrics::Metrics;
use preview::Previews;
use provider::Provider;
use relay::Relay;
use sandbox::order::Orders;
use sandbox::service::Sandboxes;
use ssh::{Authority, Ssh};
use store::{Leader, Store, StoreError};
use vault::Vault;

pub use auth::table::{Row, rows};
pub use preview::PreviewConfig;
pub use ssh::SshConfig;
pub use store::{Database, LeadLost, StoreMode};

pub use clock::WallClock;
pub use config::{AccessConfig, LOG_TAIL_BYTES_DEFAULT, ServerConfig, StartError, Surroundings, WorkspaceConfig};
pub use data_dir::DataDirError;
pub use door::listener::Listener;
pub use door::openapi::document as openapi;
pub use door::tls::TlsConfig;

/// A hello lists all boxes of a runner.
const CONTROL_MESSAGE_MAX_BYTES: usize = 32 << 20;
/// HTTP/2 window of a client's connection: what one client can make this server hold whose processes do not read.
/// A runner's connection is shared by all clients and has more.
const PUBLIC_WINDOW_BYTES: u32 = 64 << 20;
/// At shutdown calls may finish for this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The file with the first administrator's key.
const ADMIN_KEY_FILE: &str = "admin.key";

/// A running server.
pub struct Server {
    address: SocketAddr,
    runner_address: SocketAddr,
    admin_key: String,
    join_token: String,
    parts: Arc<Parts>,
    tls: Option<Arc<Tls>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Held until the end.
    _data_dir: data_dir::DataDir,
}

impl Server {
    /// Opens everything and serves. Nothing is left behind when it fails.
    pub async fn start(config: ServerConfig) -> Result<Self, StartError> {
        let data_dir = if config.embedded {
            // The one that has it serves as well.
            data_dir::DataDir::open(&config.data_dir)?
        } else {
            data_dir::DataDir::take_over(&config.data_dir).await?
        };
        let public = listen(config.address, "--address").await?;
        let runners = listen(config.runner_address, "--runner-address").await?;
        let ssh = match &config.ssh {
            Some(ssh) => Some(listen(ssh.address, "--ssh-address").await?),
            None => None,
        };
        Self::serve_on(config, data_dir, Listeners { public, runners, ssh }, Surroundings::default()).await
    }

    /// The same, in a world that the caller made: its network, its clock.
    pub async fn start_in<L: Listener>(
        config: ServerConfig,
        public: L,
        runners: L,
        surroundings: Surroundings,
    ) -> Result<Self, StartError> {
        let data_dir = data_dir::DataDir::open(&config.data_dir)?;
        Self::serve_on(config, data_dir, Listeners { public, runners, ssh: None }, surroundings).await
    }

    async fn serve_on<L: Listener>(
        config: ServerConfig,
        data_dir: data_dir::DataDir,
        listeners: Listeners<L>,
        surroundings: Surroundings,
    ) -> Result<Self, StartError> {
        planted::disarm();
        let tls = config.tls.as_ref().map(|tls| Tls::open(tls, &data_dir, config.wildcards())).transpose();
        let tls = tls.map_err(|error| StartError::Tls(error.to_string()))?.map(Arc::new);
        let database = config.database.clone().unwrap_or_else(|| Database::File(data_dir.join("server.db")));
        let failed = |error: StoreError| StartError::store(&database, &error);
        let metrics = Arc::new(Metrics::default());
        let (lead, listeners) = cluster::lead(&database, &surroundings.store, listeners, &data_dir).await?;
        let id = lead.id.clone();
        let store = Arc::new(Store::open(lead, surroundings.store, metrics.clone()).await.map_err(failed)?);
        let admin_key = admin_key(&data_dir, &store, &failed).await?;
        let keys = Arc::new(Keys::new(store::keys::all(store.readers()).await.map_err(failed)?));
        let vault = Vault::open(&data_dir, store.clone(), config.rotate_secrets).await?;
        let clock = Arc::new(Clock::new(surroundings.wall_clock));
        let sandboxes = Arc::new(open_sandboxes(store.clone(), clock.clone(), &config).await.map_err(failed)?);
        let ssh = match (&config.ssh, &listeners.ssh) {
            (Some(ssh), Some(listener)) => {
                let port = listener.local_addr().unwrap_or(ssh.address).port();
                Some(Arc::new(Ssh { authority: Authority::open(&vault, &ssh.names).await?, port }))
            }
            _ => None,
        };
        let relay = Arc::new(Relay::new(sandboxes.fleet.clone(), metrics.clone()));
        let access = &config.access;
        let address = listeners.public.local_addr().unwrap_or(config.address);
        let previews = Previews {
            config: config.previews.clone(),
            secret: sandboxes.secret.clone(),
            store: store.clone(),
            clock,
            listening: address.port(),
            known: Default::default(),
        };
        let leader = listeners.leader(id, &config.advertised_host, vault.fingerprint());
        announce(&store, leader).await.map_err(failed)?;
        let gate = Gate::new(keys.clone(), access.key_required, access.requests_per_minute);
        let server = Self {
            address,
            runner_address: listeners.runners.local_addr().unwrap_or(config.runner_address),
            admin_key,
            join_token: sandboxes.secret.join_token(),
            parts: Arc::new(Parts {
                sandboxes,
                relay,
                keys,
                gate,
                vault,
                provider: Provider::new(config.provider_url.as_ref()),
                metrics,
                health: Health::serving(door::grpc::services()).await,
                previews: Arc::new(previews),
                workspace: Arc::new(config.workspace.clone()),
                ssh,
                origins: Origins::new(&config.access.allowed_origins),
            }),
            tls,
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            _data_dir: data_dir,
        };
        if config.embedded {
            server.delete_leased().await;
        }
        server.serve(listeners, &config);
        Ok(server)
    }

    fn serve<L: Listener>(&self, listeners: Listeners<L>, config: &ServerConfig) {
        let Listeners { public, runners, ssh } = listeners;
        let ssh_door = self.parts.ssh.clone().zip(config.ssh.as_ref());
        let ssh_door = ssh_door.map(|(ssh, config)| SshDoor::new(self.parts.clone(), ssh, config));
        if let (Some(listener), Some(door)) = (ssh, ssh_door.clone()) {
            self.tasks.spawn(door.serve(listener, self.tasks.clone(), self.shutdown.clone()));
        }
        let workspace = WorkspaceDoor::new(self.parts.clone());
        let doors = Arc::new(Doors::new(self.parts.clone(), workspace.clone(), &config.access.allowed_origins));
        let service = move |request| doors.clone().serve(request);
        let acceptor = || self.tls.as_ref().map(|tls| tls.acceptor());
        self.tasks.spawn(listener::serve(
            public,
            Port { window_bytes: PUBLIC_WINDOW_BYTES, tls: acceptor() },
            service,
            self.tasks.clone(),
            self.shutdown.clone(),
        ));
        let links = RunnerLinks {
            sandboxes: self.parts.sandboxes.clone(),
            relay: self.parts.relay.clone(),
            inside: Arc::new(InsideDoor {
                parts: self.parts.clone(),
                workspace,
                ssh: ssh_door,
                tasks: self.tasks.clone(),
                shutdown: self.shutdown.clone(),
                open: Mutex::default(),
            }),
            tasks: self.tasks.clone(),
        };
        let links = RunnerLinkServiceServer::new(links).max_decoding_message_size(CONTROL_MESSAGE_MAX_BYTES);
        let links = tonic::service::Routes::new(links).prepare();
        let service = move |request: http::Request<hyper::body::Incoming>| {
            let links = links.clone();
            async move { links.oneshot(request.map(tonic::body::Body::new)).await }
        };
        self.tasks.spawn(listener::serve(
            runners,
            Port { window_bytes: limits::CONNECTION_WINDOW_BYTES, tls: acceptor() },
            service,
            self.tasks.clone(),
            self.shutdown.clone(),
        ));
        if let Some(tls) = self.tls.clone() {
            self.tasks.spawn(tls.reload_task(self.shutdown.clone()));
        }
        self.tasks.spawn(sweep::sweep_task(self.parts.sandboxes.clone(), self.shutdown.clone()));
        self.tasks.spawn(purge::purge_task(self.parts.sandboxes.clone(), self.shutdown.clone()));
    }

    /// Where clients reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where runners reach it.
    pub fn runner_address(&self) -> SocketAddr {
        self.runner_address
    }

    /// The fingerprint of its certificate, where it has TLS.
    pub fn tls_pin(&self) -> Option<SharedPin> {
        self.tls.as_ref().map(|tls| tls.pin())
    }

    /// The first administrator's key, as it stands in the data directory.
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// With it a runner joins.
    pub fn join_token(&self) -> &str {
        &self.join_token
    }

    /// Returns when this server may not write any more, as another may lead in its place: nothing that it says holds.
    pub async fn deposed(&self) -> LeadLost {
        self.parts.sandboxes.store.lost().await
    }

    /// Returns when a runner is connected.
    pub async fn runner_connected(&self) {
        self.parts.sandboxes.fleet.any_connected().await;
    }

    /// Deletes every sandbox that has a lease, since those who held them are gone.
    pub async fn delete_leased(&self) {
        let sandboxes = &self.parts.sandboxes;
        let leased = store::sandboxes::leased(sandboxes.store.readers()).await;
        let leased = leased.unwrap_or_else(|error| {
            tracing::error!(%error, "sandboxes with a lease were not read: the sweep deletes them when it ends");
            vec![]
        });
        for id in leased {
            if let Err(error) = sandboxes.delete(id.as_str(), false).await {
                tracing::warn!(sandbox = %id, %error, "sandbox with a lease was not deleted: the sweep does it later");
            }
        }
    }

    /// Waits until no sandbox is being deleted by a connected runner; `false` when the time is up first.
    pub async fn deletions_done(&self, timeout: Duration) -> bool {
        let sandboxes = &self.parts.sandboxes;
        let filter = store::sandboxes::Filter {
            states: vec![sandbox::lifecycle::State::Deleting],
            limit: 1,
            ..Default::default()
        };
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            match store::sandboxes::list(sandboxes.store.readers(), &filter).await.as_deref() {
                Ok([]) => return true,
                Ok([row, ..]) => {
                    let left = deadline.saturating_duration_since(tokio::time::Instant::now());
                    let gone = |row: &sandbox::Sandbox| row.life.observed == sandbox::lifecycle::State::Deleted;
                    if sandboxes.wait(&row.id, left, gone).await.is_err() {
                        return false;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "sandboxes were not read");
                    return false;
                }
            }
        }
    }

    /// Stops accepting, lets calls finish for a while, then closes the database.
    pub async fn stop(self) {
        self.parts.health.drain().await;
        self.shutdown.cancel();
        self.tasks.close();
        self.parts.sandboxes.ticker.close();
        self.parts.sandboxes.notices.close();
        self.parts.relay.close();
        self.parts.sandboxes.fleet.disconnect();
        if tokio::time::timeout(DRAIN_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "calls were cut at the shutdown");
        }
        if let Err(error) = self.parts.sandboxes.write_usage(true).await {
            tracing::warn!(%error, "the last minutes of usage were not written");
        }
        self.parts.sandboxes.store.close().await;
    }
}

/// The sandboxes and runners that the database has.
async fn open_sandboxes(store: Arc<Store>, clock: Arc<Clock>, config: &ServerConfig) -> Result<Sandboxes, StoreError> {
    let fresh = random("");
    let secret = store.write(move |tx| {
        let fresh = fresh.clone();
        Box::pin(async move { store::meta::get_or_insert(tx, "secret", &fresh).await })
    });
    let secret = Arc::new(ServerSecret::new(&secret.await?));
    let known = store::runners::all(store.readers()).await?;
    let used = store::sandboxes::used(store.readers()).await?;
    Ok(Sandboxes {
        audit: Arc::new(Audit { store: store.clone(), clock: clock.clone() }),
        ticker: Arc::default(),
        store,
        clock,
        fleet: Arc::new(Fleet::new(known, &used)),
        orders: Orders { secret: secret.clone(), log_tail_bytes: config.log_tail_bytes },
        secret,
        notices: Arc::default(),
        agents: Arc::default(),
        meter: Arc::default(),
        live: Arc::default(),
    })
}

/// Tells the servers that share the database where this one is.
async fn announce(store: &Store, leader: Leader) -> Result<(), StoreError> {
    let write = store.write(move |tx| {
        let leader = leader.clone();
        Box::pin(async move { leader.announce(tx).await })
    });
    write.await
}

async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, flag, source })
}

/// The key in the data directory; whoever can read or write it there is the administrator.
async fn admin_key(
    data_dir: &data_dir::DataDir,
    store: &Store,
    failed: &impl Fn(StoreError) -> StartError,
) -> Result<String, StartError> {
    let valid = |key: &String| {
        let digits = key.strip_prefix(KEY_PREFIX);
        digits.is_some_and(|digits| digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let key = match data_dir.read(ADMIN_KEY_FILE)?.filter(valid) {
        Some(key) => key,
        None => {
            let key = random(KEY_PREFIX);
            data_dir.write(ADMIN_KEY_FILE, &format!("{key}\n"))?;
            key
        }
    };
    // Also after a crash between the file and the row.
    let known = store::keys::all(store.readers()).await.map_err(failed)?;
    if !known.iter().any(|row| row.hash == hash(&key)) {
        let row = ApiKey::of(&key, "admin", Role::Admin);
        let write = store.write(move |tx| {
            let row = row.clone();
            Box::pin(async move { store::keys::insert(tx, &row).await })
        });
        write.await.map_err(failed)?;
    }
    Ok(key)
}
