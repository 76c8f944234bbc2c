//! A server and a runner with the fake backend, in this process, over real sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dispense_backend::fake::{Fake, FakeMachine};
use dispense_client::Client;
use dispense_runner::{Capacity, Offer, RunnerConfig, RunnerError};
use dispense_server::{AccessConfig, Database, LeadLost, PreviewConfig, Server, ServerConfig, Surroundings, WallClock};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::postgres::Postgres;

/// Everything of one test.
pub struct System {
    /// Its boxes, and what goes wrong with them.
    pub machine: Arc<FakeMachine>,
    /// With the administrator's key.
    pub client: Client,
    server: Option<Server>,
    runner: Option<FakeRunner>,
    folder: TempDir,
    address: SocketAddr,
    runner_address: SocketAddr,
    key: String,
    clock: WallClock,
    database: Option<Database>,
    /// Of a run in which every store is PostgreSQL.
    _postgres: Option<Postgres>,
}

async fn start_server(
    data_dir: &Path,
    address: SocketAddr,
    runner_address: SocketAddr,
    clock: WallClock,
    database: Option<Database>,
) -> Server {
    let config = ServerConfig {
        data_dir: data_dir.to_owned(),
        address,
        runner_address,
        embedded: false,
        log_tail_bytes: dispense_server::LOG_TAIL_BYTES_DEFAULT,
        access: AccessConfig::default(),
        rotate_secrets: false,
        tls: None,
        previews: PreviewConfig::default(),
        ssh: None,
        provider_url: None,
        workspace: Default::default(),
        database,
        advertised_host: "127.0.0.1".into(),
    };
    let listen = |address| async move { TcpListener::bind(address).await.expect("a free port") };
    let (public, runners) = (listen(address).await, listen(runner_address).await);
    let surroundings = Surroundings { wall_clock: clock, ..Surroundings::default() };
    Server::start_in(config, public, runners, surroundings).await.expect("a server on free ports")
}

/// A runner on a fake machine of its own.
pub struct FakeRunner {
    /// Its boxes, and what goes wrong with them.
    pub machine: Arc<FakeMachine>,
    task: JoinHandle<Result<(), RunnerError>>,
    shutdown: CancellationToken,
}

impl FakeRunner {
    /// Ends it; its boxes live on.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("no panic").expect("it ends well");
    }
}

impl System {
    /// Starts server and runner and waits until they know each other.
    pub async fn start() -> Self {
        Self::start_with_clock(Arc::new(SystemTime::now)).await
    }

    /// The same, with another clock than this machine's.
    pub async fn start_with_clock(clock: WallClock) -> Self {
        let postgres = if Postgres::is_asked_for() { Postgres::start() } else { None };
        let database = postgres.as_ref().map(|postgres| Database::Postgres(postgres.url()));
        Self::start_with(clock, database, postgres).await
    }

    /// The same, on a PostgreSQL database.
    pub async fn start_on(database: &str) -> Self {
        Self::start_with(Arc::new(SystemTime::now), Some(Database::Postgres(database.to_owned())), None).await
    }

    async fn start_with(clock: WallClock, database: Option<Database>, postgres: Option<Postgres>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = start_server(&folder.path().join("data"), any, any, clock.clone(), database.clone()).await;
        let (address, runner_address, key) = (server.address(), server.runner_address(), server.admin_key().to_owned());
        let client = Client::connect(&format!("http://{address}"), &key).await.expect("the server answers");
        let mut system = Self {
            machine: Arc::default(),
            client,
            server: Some(server),
            runner: None,
            folder,
            address,
            runner_address,
            key,
            clock,
            database,
            _postgres: postgres,
        };
        system.start_runner().await;
        system
    }

    /// The public address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where runners connect.
    pub fn runner_address(&self) -> SocketAddr {
        self.runner_address
    }

    /// Returns when the server may not write any more.
    pub async fn deposed(&self) -> LeadLost {
        self.server.as_ref().expect("the server runs").deposed().await
    }

    /// The administrator's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Starts the runner and waits until it has joined.
    pub async fn start_runner(&mut self) {
        self.runner = Some(self.join("fake-1", self.machine.clone()));
        let server = self.server.as_ref().expect("the server runs");
        tokio::time::timeout(Duration::from_secs(10), server.runner_connected()).await.expect("the runner joins");
    }

    /// Starts one more runner and waits until it has joined.
    pub async fn add_runner(&mut self, name: &str) -> FakeRunner {
        let runner = self.join(name, Arc::default());
        let joined = async {
            while self.client.runner(name).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), joined).await.expect("the runner joins");
        runner
    }

    fn join(&self, name: &str, machine: Arc<FakeMachine>) -> FakeRunner {
        let server = self.server.as_ref().expect("the server runs");
        let config = RunnerConfig {
            server_url: format!("http://{}", self.runner_address),
            join_token: Some(server.join_token().to_owned()),
            state_dir: self.folder.path().join(name),
            name: Some(name.to_owned()),
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            offer: Offer::from(Capacity {
                cpu_millis: 64_000,
                memory_bytes: 256 << 30,
                disk_bytes: 1 << 40,
                sandboxes: 1000,
            }),
            source_roots: vec![],
            embedded: true,
        };
        let shutdown = CancellationToken::new();
        let backend = Arc::new(Fake::on(machine.clone()));
        let task = tokio::spawn(dispense_runner::run(config, backend, shutdown.clone()));
        FakeRunner { machine, task, shutdown }
    }

    /// Ends the runner; its boxes live on.
    pub async fn stop_runner(&mut self) {
        if let Some(runner) = self.runner.take() {
            runner.stop().await;
        }
    }

    /// Ends the server and starts it again on the same ports and data.
    pub async fn restart_server(&mut self) {
        self.server.take().expect("the server runs").stop().await;
        let (data_dir, clock, database) = (self.folder.path().join("data"), self.clock.clone(), self.database.clone());
        self.server = Some(start_server(&data_dir, self.address, self.runner_address, clock, database).await);
        let server = self.server.as_ref().expect("just started");
        tokio::time::timeout(Duration::from_secs(30), server.runner_connected()).await.expect("the runner comes back");
        self.client =
            Client::connect(&format!("http://{}", self.address), &self.key).await.expect("the server answers");
    }

    /// Ends everything.
    pub async fn stop(mut self) {
        self.stop_runner().await;
        self.server.take().expect("the server runs").stop().await;
    }
}
