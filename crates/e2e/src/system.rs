//! A server and a runner with the fake backend, in this process, over real sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dispense_backend::fake::{Fake, FakeMachine};
use dispense_client::Client;
use dispense_runner::{Capacity, RunnerConfig, RunnerError};
use dispense_server::{Server, ServerConfig};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Everything of one test.
pub struct System {
    /// Its boxes, and what goes wrong with them.
    pub machine: Arc<FakeMachine>,
    /// With the administrator's key.
    pub client: Client,
    server: Option<Server>,
    runner: Option<(JoinHandle<Result<(), RunnerError>>, CancellationToken)>,
    folder: TempDir,
    address: SocketAddr,
    runner_address: SocketAddr,
    key: String,
}

async fn start_server(data_dir: &Path, address: SocketAddr, runner_address: SocketAddr) -> Server {
    let config = ServerConfig {
        data_dir: data_dir.to_owned(),
        address,
        runner_address,
        embedded: false,
        log_tail_bytes: 64 << 10,
    };
    Server::start(config).await.expect("a server on free ports")
}

impl System {
    /// Starts server and runner and waits until they know each other.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = start_server(&folder.path().join("data"), any, any).await;
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

    /// The administrator's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Starts the runner and waits until it has joined.
    pub async fn start_runner(&mut self) {
        let server = self.server.as_ref().expect("the server runs");
        let config = RunnerConfig {
            server_url: format!("http://{}", self.runner_address),
            join_token: Some(server.join_token().to_owned()),
            state_dir: self.folder.path().join("runner"),
            name: Some("fake-1".to_owned()),
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            capacity: Some(Capacity {
                cpu_millis: 64_000,
                memory_bytes: 256 << 30,
                disk_bytes: 1 << 40,
                sandboxes: 1000,
            }),
            embedded: true,
        };
        let shutdown = CancellationToken::new();
        let backend = Arc::new(Fake::on(self.machine.clone()));
        let task = tokio::spawn(dispense_runner::run(config, backend, shutdown.clone()));
        self.runner = Some((task, shutdown));
        tokio::time::timeout(Duration::from_secs(10), server.runner_connected()).await.expect("the runner joins");
    }

    /// Ends the runner; its boxes live on.
    pub async fn stop_runner(&mut self) {
        if let Some((task, shutdown)) = self.runner.take() {
            shutdown.cancel();
            task.await.expect("no panic").expect("it ends well");
        }
    }

    /// Ends the server and starts it again on the same ports and data.
    pub async fn restart_server(&mut self) {
        self.server.take().expect("the server runs").stop().await;
        self.server = Some(start_server(&self.folder.path().join("data"), self.address, self.runner_address).await);
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
