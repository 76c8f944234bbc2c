//! The world: a server, runners with fake machines and a client, each a host of its own with real server, runner
//! and client code on it, over a simulated network and with simulated time.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use dispense_backend::fake::{Fake, FakeMachine};
use dispense_runner::{Capacity, RunnerConfig};
use dispense_server::{AccessConfig, Listener, Server, ServerConfig, StoreMode, Surroundings};
use tokio_util::sync::CancellationToken;
use turmoil::net::{TcpListener, TcpStream};

use crate::chance::Chance;

pub(crate) const SERVER: &str = "server";
pub(crate) const CLIENT: &str = "client";
pub(crate) const RUNNERS: usize = 3;
const PUBLIC_PORT: u16 = 8080;
const RUNNER_PORT: u16 = 50051;
/// Logical time passes in steps of this; a hop of the network takes at least one.
const TICK: Duration = Duration::from_millis(20);
/// Longest pause before a commit, and in each so manieth world, where the disk is slow.
const DISK_MAX_MS: u64 = 40;
const SLOW_DISK_MAX_MS: u64 = 400;
const SLOW_DISK_EACH: u64 = 4;

/// How long the disk takes for the next commit.
type Pause = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What the server's host tells the others, as an operator would.
#[derive(Default)]
pub(crate) struct Credentials {
    pub(crate) admin_key: String,
    pub(crate) join_token: String,
}

/// Who is on which host.
pub(crate) struct World {
    pub(crate) machines: BTreeMap<String, Arc<FakeMachine>>,
    pub(crate) credentials: Arc<Mutex<Option<Credentials>>>,
    folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new(runners: usize) -> io::Result<Self> {
        // Memory: what survives a crash here is what was committed, and not what the disk had time for.
        let base = if PathBuf::from("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("dispense-sim-").tempdir_in(base)?;
        let machines = (1..=runners).map(|number| (format!("runner-{number}"), Arc::default())).collect();
        Ok(Self { machines, credentials: Arc::default(), folder })
    }

    /// The network with its delays, and the hosts on it.
    pub(crate) fn build<'a>(&self, seed: u64, length: Duration) -> turmoil::Sim<'a> {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
            .simulation_duration(length)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(80))
            .tcp_capacity(1 << 16);
        let mut sim = builder.build();
        let (data_dir, credentials) = (self.folder.path().join("server"), self.credentials.clone());
        let longest = if seed.is_multiple_of(SLOW_DISK_EACH) { SLOW_DISK_MAX_MS } else { DISK_MAX_MS };
        let dice = Arc::new(Mutex::new(Chance::new(seed)));
        let pause = move || Duration::from_millis(dice.lock().expect("one thread").between(0, longest));
        let pause: Pause = Arc::new(pause);
        sim.host(SERVER, move || serve(data_dir.clone(), credentials.clone(), pause.clone()));
        for (name, machine) in &self.machines {
            let (name, machine) = (name.clone(), machine.clone());
            let (state_dir, credentials) = (self.folder.path().join(&name), self.credentials.clone());
            sim.host(name.clone(), move || run(name.clone(), state_dir.clone(), machine.clone(), credentials.clone()));
        }
        sim
    }
}

/// A listener of the simulated network.
struct SimulatedPort(TcpListener);

impl Listener for SimulatedPort {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

async fn serve(data_dir: PathBuf, credentials: Arc<Mutex<Option<Credentials>>>, pause: Pause) -> turmoil::Result {
    std::fs::create_dir_all(&data_dir)?;
    let port = |port| async move { TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.map(SimulatedPort) };
    let (public, runners) = (port(PUBLIC_PORT).await?, port(RUNNER_PORT).await?);
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let config = ServerConfig {
        data_dir,
        address,
        runner_address: address,
        embedded: false,
        log_tail_bytes: 1024,
        access: AccessConfig::default(),
        rotate_secrets: false,
        previews: dispense_server::PreviewConfig::default(),
        ssh: None,
        provider_url: None,
        workspace: Default::default(),
        tls: None,
        database: None,
        advertised_host: String::new(),
    };
    let surroundings = Surroundings {
        wall_clock: Arc::new(|| SystemTime::UNIX_EPOCH + turmoil::since_epoch().unwrap_or_default()),
        store: StoreMode::Held { pause },
    };
    let server = Server::start_in(config, public, runners, surroundings).await?;
    let told = Credentials { admin_key: server.admin_key().to_owned(), join_token: server.join_token().to_owned() };
    *credentials.lock().expect("one thread") = Some(told);
    // Until it is crashed.
    std::future::pending::<()>().await;
    server.stop().await;
    Ok(())
}

async fn run(
    name: String,
    state_dir: PathBuf,
    machine: Arc<FakeMachine>,
    credentials: Arc<Mutex<Option<Credentials>>>,
) -> turmoil::Result {
    std::fs::create_dir_all(&state_dir)?;
    let join_token = told(&credentials, |told| told.join_token.clone()).await;
    let config = RunnerConfig {
        server_url: format!("http://{SERVER}:{RUNNER_PORT}"),
        join_token: Some(join_token),
        state_dir,
        name: Some(name),
        labels: BTreeMap::new(),
        offer: Capacity { cpu_millis: 64_000, memory_bytes: 256 << 30, disk_bytes: 1 << 40, sandboxes: 12 }.into(),
        source_roots: vec![],
        embedded: false,
    };
    let backend = Arc::new(Fake::on(machine));
    dispense_runner::run_over(config, backend, CancellationToken::new(), Some(Arc::new(dial))).await?;
    Ok(())
}

/// Waits until the server's host has told.
async fn told(credentials: &Mutex<Option<Credentials>>, what: impl Fn(&Credentials) -> String) -> String {
    loop {
        if let Some(told) = credentials.lock().expect("one thread").as_ref() {
            return what(told);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn dial(uri: http::Uri) -> dispense_runner::Dialling {
    Box::pin(async move {
        let stream = connect(uri).await?;
        Ok(Box::new(stream) as Box<dyn dispense_runner::Connection>)
    })
}

async fn connect(uri: http::Uri) -> io::Result<TcpStream> {
    let host = uri.host().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    TcpStream::connect((host, uri.port_u16().unwrap_or(PUBLIC_PORT))).await
}

/// A client of the server, as soon as there is one.
pub(crate) async fn client(credentials: &Mutex<Option<Credentials>>) -> dispense_client::Client {
    let key = told(credentials, |told| told.admin_key.clone()).await;
    let dialler: dispense_client::Dialler = Arc::new(|uri| {
        Box::pin(async move {
            let stream = connect(uri).await?;
            Ok(Box::new(stream) as Box<dyn dispense_client::Connection>)
        })
    });
    let url = format!("http://{SERVER}:{PUBLIC_PORT}");
    loop {
        match dispense_client::Client::connect_over(&url, &key, Some(dialler.clone())).await {
            Ok(client) => return client,
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}
