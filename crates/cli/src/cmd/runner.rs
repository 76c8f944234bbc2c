//! `dispense runner`: joins a server; `dispense runner list`.

use dispense_api::tls;
use dispense_client::{Client, Code, Error, v1};
use dispense_runner::RunnerConfig;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use super::serve::{StopSignals, absolute, roots};
use crate::args::{Global, Output, RunnerArgs, RunnerCommand};
use crate::endpoint::{connect, data_dir, trust};
use crate::failure::{local, usage};
use crate::local::open_backend;
use crate::show::{self, age, rfc3339};
use crate::units::show_bytes;

#[derive(Serialize)]
struct ListJson {
    runners: Vec<RunnerJson>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RunnerJson {
    id: String,
    name: String,
    status: &'static str,
    address: String,
    cpu_millis: u32,
    memory_bytes: u64,
    sandboxes: u32,
    labels: BTreeMap<String, String>,
    backends: Vec<String>,
    templates: Vec<String>,
    version: String,
    last_heartbeat: Option<String>,
    unenforced_limits: BTreeMap<String, String>,
    disk_in_memory: String,
}

/// Joins a server, or lists runners.
pub(super) async fn runner(global: &Global, args: RunnerArgs) -> Result<u8, Error> {
    if let Some(command) = args.command {
        return operate(global, command).await;
    }
    let server_url = args.join.ok_or_else(|| usage("--join is missing"))?;
    let state_dir = match args.state_dir {
        Some(path) => std::path::absolute(path).map_err(|error| local("resolve --state-dir", &error))?,
        None => data_dir(global)?.join("runner"),
    };
    let mut stop = StopSignals::listen()?;
    let offer = args.offer.offer();
    let backend = open_backend(&state_dir, absolute(args.offer.template)?).await?;
    let config = RunnerConfig {
        server_url,
        join_token: args.token,
        state_dir,
        name: args.name,
        labels: args.label.into_iter().collect(),
        offer,
        source_roots: roots(args.offer.source_root)?,
        embedded: false,
    };
    let shutdown = CancellationToken::new();
    let tls = config.server_url.starts_with("https://").then(|| tls::dialler(&trust(global))).transpose();
    let dialler = tls.map_err(|error| local("set TLS up", &error))?;
    let running = dispense_runner::run_over(config, backend, shutdown.clone(), dialler);
    tokio::pin!(running);
    let ended = tokio::select! {
        ended = &mut running => ended,
        () = stop.next() => {
            shutdown.cancel();
            tokio::select! {
                ended = running => ended,
                () = stop.next() => return Ok(crate::failure::OURS),
            }
        }
    };
    ended.map(|()| 0).map_err(|error| {
        let code = match &error {
            dispense_runner::RunnerError::Link(dispense_runner::LinkError::Refused { .. }) => {
                dispense_client::Code::Unauthenticated
            }
            _ => dispense_client::Code::FailedPrecondition,
        };
        Error { code, ..local("run as a runner", &error) }
    })
}

/// How long a drain may take: each sandbox has a grace of seconds, and they stop side by side.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
const DRAIN_POLL: Duration = Duration::from_millis(250);

async fn operate(global: &Global, command: RunnerCommand) -> Result<u8, Error> {
    let client = match &command {
        RunnerCommand::List => return list(global).await,
        RunnerCommand::Cordon(_) | RunnerCommand::Uncordon(_) | RunnerCommand::Drain(_) => connect(global).await?,
    };
    let client = &client.client;
    let runner = match &command {
        RunnerCommand::Cordon(args) => client.cordon_runner(&args.runner).await?,
        RunnerCommand::Uncordon(args) => client.uncordon_runner(&args.runner).await?,
        RunnerCommand::Drain(args) => {
            let runner = client.drain_runner(&args.runner).await?;
            drained(client, &runner).await?;
            client.runner(&runner.id).await?
        }
        RunnerCommand::List => return Ok(0),
    };
    match global.output {
        Output::Json => show::json(&RunnerJson::from(runner)),
        Output::Table => show::say!("{} {}", runner.name, status(runner.status())),
    }
    Ok(0)
}

/// Waits until nothing runs on it any more.
async fn drained(client: &Client, runner: &v1::Runner) -> Result<(), Error> {
    let deadline = tokio::time::Instant::now() + DRAIN_TIMEOUT;
    let states = [v1::SandboxState::Starting, v1::SandboxState::Running, v1::SandboxState::Stopping];
    loop {
        let request =
            v1::ListSandboxesRequest { states: states.map(i32::from).to_vec(), ..v1::ListSandboxesRequest::default() };
        let sandboxes = client.list_all(request).await?;
        let left = sandboxes.iter().filter(|sandbox| sandbox.runner_id == runner.id).count();
        if left == 0 {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            let message = format!("runner `{}` still runs {left} sandboxes: it goes on draining", runner.name);
            return Err(Error::new(Code::DeadlineExceeded, "drain", message));
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

async fn list(global: &Global) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let runners = connected.client.runners().await?;
    match global.output {
        Output::Json => show::json(&ListJson { runners: runners.into_iter().map(RunnerJson::from).collect() }),
        Output::Table => {
            let mut table =
                show::table(&["NAME", "STATUS", "SANDBOXES", "CPU", "MEMORY", "TEMPLATES", "LABELS", "HEARD", "ID"]);
            for runner in runners {
                let (all, used) = (runner.capacity.unwrap_or_default(), runner.used.unwrap_or_default());
                table.add_row([
                    runner.name.clone(),
                    status(runner.status()).to_owned(),
                    format!("{} of {}", used.sandboxes, all.sandboxes),
                    format!("{} of {}", show::cores(used.cpu_millis), show::cores(all.cpu_millis)),
                    format!("{} of {}", show_bytes(used.memory_bytes), show_bytes(all.memory_bytes)),
                    runner.templates.join(", "),
                    labels(&runner.labels),
                    runner.last_heartbeat.as_ref().map(|at| format!("{} ago", age(at))).unwrap_or_default(),
                    runner.id.clone(),
                ]);
            }
            show::print(&table);
        }
    }
    Ok(0)
}

/// As `--target` takes them.
fn labels(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(", ")
}

impl From<v1::Runner> for RunnerJson {
    fn from(runner: v1::Runner) -> Self {
        let capacity = runner.capacity.unwrap_or_default();
        Self {
            status: status(runner.status()),
            id: runner.id,
            name: runner.name,
            address: runner.address,
            cpu_millis: capacity.cpu_millis,
            memory_bytes: capacity.memory_bytes,
            sandboxes: capacity.sandboxes,
            labels: runner.labels,
            backends: runner.backends,
            templates: runner.templates,
            version: runner.version,
            last_heartbeat: runner.last_heartbeat.as_ref().map(rfc3339),
            unenforced_limits: runner.unenforced_limits,
            disk_in_memory: runner.disk_in_memory,
        }
    }
}

fn status(status: v1::RunnerStatus) -> &'static str {
    match status {
        v1::RunnerStatus::Unspecified => "unknown",
        v1::RunnerStatus::Available => "available",
        v1::RunnerStatus::Busy => "busy",
        v1::RunnerStatus::Draining => "draining",
        v1::RunnerStatus::Offline => "offline",
    }
}
