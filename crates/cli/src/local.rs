//! A server, and usually a runner, in this process: behind `up`, `server` and `run`.
//!
//! A Unix socket in the data directory tells clients of the same user where the server is. For the
//! embedded server a connection to it is a lease: when the last one is closed, the server deletes the
//! sandboxes of its clients and ends.

pub(crate) mod lease;
mod socket;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dispense_api::tls::{self, SharedPin};
use dispense_client::{Client, Code, Error, Trust};
use dispense_runner::backend::BackendConfig;
use dispense_runner::{Offer, RunnerConfig};
use dispense_server::{
    AccessConfig, Database, PreviewConfig, Server, ServerConfig, SshConfig, StartError, TlsConfig, WorkspaceConfig,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::failure::local;

/// Of the sandboxes that an embedded server still deletes when it ends.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(15);
/// A runner of the same process ends its sessions, and removes the files of deleted sandboxes: on a busy disk a large
/// tree takes a while. What is left then the next start removes.
const RUNNER_STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// What a local server is.
pub(crate) struct LocalConfig {
    pub(crate) data_dir: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) runner_address: SocketAddr,
    pub(crate) log_tail_bytes: u32,
    pub(crate) access: AccessConfig,
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) database: Option<Database>,
    pub(crate) advertised_host: String,
    pub(crate) rotate_secrets: bool,
    pub(crate) previews: PreviewConfig,
    pub(crate) ssh: Option<SshConfig>,
    pub(crate) workspace: WorkspaceConfig,
    pub(crate) provider_url: Option<http::Uri>,
    /// It lives as long as somebody holds a lease.
    pub(crate) embedded: bool,
    pub(crate) runner: bool,
    /// Templates of the runner, by name.
    pub(crate) templates: BTreeMap<String, PathBuf>,
    /// What the runner promises to sandboxes in all.
    pub(crate) offer: Offer,
    /// Directories that sandboxes of the runner may be filled from.
    pub(crate) source_roots: Vec<PathBuf>,
}

/// What a client needs to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LocalInfo {
    pub(crate) url: String,
    pub(crate) api_key: String,
    /// Where runners join.
    pub(crate) runner_url: String,
    pub(crate) join_token: String,
    /// Of its certificate, where it has TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tls_pin: Option<String>,
    /// It ends with its clients and does not come back.
    pub(crate) embedded: bool,
}

impl LocalInfo {
    /// Connects to it.
    pub(crate) async fn connect(&self) -> Result<Client, Error> {
        let pin = self.tls_pin.as_deref().map(crate::endpoint::parse_pin).transpose()?;
        Client::connect_trusting(&self.url, &self.api_key, &pin.map_or(Trust::System, Trust::pin)).await
    }
}

/// A started server.
pub(crate) struct Local {
    pub(crate) info: LocalInfo,
    server: Server,
    runner: Option<JoinHandle<Result<(), dispense_runner::RunnerError>>>,
    runner_shutdown: CancellationToken,
    socket: socket::Socket,
    embedded: bool,
}

impl Local {
    /// Starts the server, then the runner, then tells clients.
    pub(crate) async fn start(config: LocalConfig) -> Result<Self, Error> {
        let server = Server::start(ServerConfig {
            data_dir: config.data_dir.clone(),
            address: config.address,
            runner_address: config.runner_address,
            embedded: config.embedded,
            log_tail_bytes: config.log_tail_bytes,
            access: config.access.clone(),
            tls: config.tls.clone(),
            database: config.database.clone(),
            advertised_host: config.advertised_host.clone(),
            rotate_secrets: config.rotate_secrets,
            previews: config.previews.clone(),
            ssh: config.ssh.clone(),
            workspace: config.workspace.clone(),
            provider_url: config.provider_url.clone(),
        });
        let server = server.await.map_err(|error| start_error(&error))?;
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let info = LocalInfo {
            url: format!("{scheme}://{}", reachable(server.address())),
            api_key: server.admin_key().to_owned(),
            runner_url: format!("{scheme}://{}", reachable(server.runner_address())),
            join_token: server.join_token().to_owned(),
            tls_pin: server.tls_pin().map(|pin| told(&pin)),
            embedded: config.embedded,
        };
        let runner_shutdown = CancellationToken::new();
        let started = async {
            let runner = match config.runner {
                true => Some(start_runner(&config, &info, server.tls_pin(), runner_shutdown.clone()).await?),
                false => None,
            };
            let mut runner = runner;
            if let Some(task) = &mut runner {
                // Until it is there, nobody knows what it can do, so no request could be refused for good.
                tokio::select! {
                    () = server.runner_connected() => {}
                    ended = task => return Err(why_ended(ended)),
                }
            }
            let socket = socket::Socket::open(&config.data_dir, line(&info, server.tls_pin()), config.embedded)?;
            Ok((runner, socket))
        };
        match started.await {
            Ok((runner, socket)) => {
                Ok(Self { info, server, runner, runner_shutdown, socket, embedded: config.embedded })
            }
            Err(error) => {
                server.stop().await;
                Err(error)
            }
        }
    }

    /// Returns, with the reason, when it is of no use any more: its runner has ended, or another server leads.
    pub(crate) async fn ended(&mut self) -> Error {
        let runner = async {
            match &mut self.runner {
                Some(runner) => runner.await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = runner => ended,
            why = self.server.deposed() => return Error::new(Code::FailedPrecondition, "deposed", why.to_string()),
        };
        self.runner = None;
        why_ended(ended)
    }

    /// Returns when an embedded server is of no use any more: its last client has gone, or, with the reason, its
    /// runner.
    pub(crate) async fn unused(&mut self) -> Option<Error> {
        let Some(runner) = &mut self.runner else {
            self.socket.unused().await;
            return None;
        };
        let ended = tokio::select! {
            () = self.socket.unused() => return None,
            ended = runner => ended,
        };
        self.runner = None;
        Some(why_ended(ended))
    }

    /// Ends it in order: no new clients, no sandboxes of embedded ones, no runner, no server.
    pub(crate) async fn stop(self) {
        self.socket.close();
        if self.embedded {
            self.server.delete_leased().await;
            if !self.server.deletions_done(CLEANUP_TIMEOUT).await {
                tracing::warn!("some sandboxes were not removed in time: the next start removes them");
            }
        }
        self.runner_shutdown.cancel();
        if let Some(runner) = self.runner
            && tokio::time::timeout(RUNNER_STOP_TIMEOUT, runner).await.is_err()
        {
            tracing::warn!("the runner did not end in time");
        }
        self.server.stop().await;
    }
}

fn why_ended(ended: Result<Result<(), dispense_runner::RunnerError>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => local("keep the runner running", &error),
        Ok(Ok(())) => Error::new(Code::Internal, "runner", "the runner ended"),
        Err(error) => local("keep the runner running", &error),
    }
}

/// A fingerprint as it is now.
fn told(pin: &SharedPin) -> String {
    pin.read().expect("no holder panics").to_string()
}

/// What clients are told, with the certificate of the moment.
fn line(info: &LocalInfo, pin: Option<SharedPin>) -> impl Fn() -> String + Send + 'static {
    let info = info.clone();
    move || {
        let info = LocalInfo { tls_pin: pin.as_ref().map(told), ..info.clone() };
        format!("{}\n", serde_json::to_string(&info).unwrap_or_default())
    }
}

async fn start_runner(
    config: &LocalConfig,
    info: &LocalInfo,
    pin: Option<SharedPin>,
    shutdown: CancellationToken,
) -> Result<JoinHandle<Result<(), dispense_runner::RunnerError>>, Error> {
    let state_dir = config.data_dir.join("runner");
    let backend = open_backend(&state_dir, config.templates.clone()).await?;
    let runner = RunnerConfig {
        server_url: info.runner_url.clone(),
        join_token: Some(info.join_token.clone()),
        state_dir,
        name: None,
        labels: BTreeMap::new(),
        offer: config.offer,
        source_roots: config.source_roots.clone(),
        embedded: true,
    };
    let dialler = pin.map(|pin| tls::dialler(&Trust::Pin(pin))).transpose();
    let dialler = dialler.map_err(|error| local("set TLS up", &error))?;
    Ok(tokio::spawn(async move { dispense_runner::run_over(runner, backend, shutdown, dialler).await }))
}

/// Opens the native backend.
pub(crate) async fn open_backend(
    state_dir: &Path,
    templates: BTreeMap<String, PathBuf>,
) -> Result<std::sync::Arc<dyn dispense_runner::backend::Backend>, Error> {
    let config = BackendConfig { state_dir: state_dir.to_owned(), templates };
    dispense_runner::backend::open(config).await.map_err(|error| match error {
        dispense_runner::backend::BackendError::Refused { reason, message } => {
            Error::new(Code::FailedPrecondition, reason, message)
        }
        error => local("prepare this machine for sandboxes (`dispense doctor` looks at it)", &error),
    })
}

fn start_error(error: &StartError) -> Error {
    let reason = match error {
        StartError::DataDir(dispense_server::DataDirError::InUse { .. }) => lease::IN_USE,
        StartError::DataDir(_) => "data_dir",
        StartError::Store { .. } => "database",
        StartError::Standby { .. } => "standby",
        StartError::Vault(_) => "vault",
        StartError::Tls(_) => "tls",
        StartError::Listen { .. } => "listen",
    };
    Error::new(Code::FailedPrecondition, reason, error.to_string())
}

/// An address that a client on this machine can use.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, v6.port()).into(),
        address => address,
    }
}
