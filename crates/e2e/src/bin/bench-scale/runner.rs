//! A simulated runner: speaks `dispense.runner.v1` over a connection of its own and carries out at once, on nothing,
//! what it is told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dispense_api::runner::runner_link_service_client::RunnerLinkServiceClient;
use dispense_api::runner::{AgentReport, Box as BoxMessage, BoxState, DesiredState, Hello, RunnerMessage};
use dispense_api::runner::{runner_message::Kind, server_message};
use dispense_api::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::Endpoint;

/// As a real runner comes back.
const RECONNECT_MIN: Duration = Duration::from_millis(250);
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// What all runners share.
#[derive(Default)]
pub(crate) struct Board {
    /// How many are welcome now.
    pub(crate) connected: AtomicUsize,
    /// When the order of a sandbox came, by name.
    pub(crate) ordered: Mutex<HashMap<String, Instant>>,
    pub(crate) reports: AtomicU64,
}

pub(crate) struct Simulated {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) board: Arc<Board>,
    /// Between two reports of this runner.
    pub(crate) report_interval: Duration,
    pub(crate) boxes: HashMap<String, u64>,
    pub(crate) runner_id: String,
}

impl Simulated {
    /// Lives until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut delay = RECONNECT_MIN;
        loop {
            let start = Instant::now();
            let mut welcome = false;
            // The server is away or was killed: that is part of the measurement.
            let _ = self.once(&mut welcome).await;
            if welcome {
                self.board.connected.fetch_sub(1, Ordering::Relaxed);
            }
            if start.elapsed() > Duration::from_secs(1) {
                delay = RECONNECT_MIN;
            }
            let mut bytes = [0; 2];
            let _ = getrandom::fill(&mut bytes);
            tokio::time::sleep(delay.mul_f64(f64::from(u16::from_le_bytes(bytes)) / 65_536.0)).await;
            delay = (delay * 2).min(RECONNECT_MAX);
        }
    }

    async fn once(&mut self, welcome: &mut bool) -> Result<()> {
        let endpoint = Endpoint::from_shared(self.url.clone())?.connect_timeout(Duration::from_secs(10));
        let mut client = RunnerLinkServiceClient::new(endpoint.connect().await?);
        let (sender, receiver) = mpsc::channel(64);
        sender.send(message(Kind::Hello(self.hello()))).await?;
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse()?);
        let mut inbound = client.attach(request).await?.into_inner();
        match inbound.message().await?.and_then(|first| first.kind) {
            Some(server_message::Kind::Welcome(told)) => {
                if !told.credential.is_empty() {
                    self.token = told.credential;
                }
                self.runner_id = told.runner_id;
            }
            _ => bail!("no welcome"),
        }
        *welcome = true;
        self.board.connected.fetch_add(1, Ordering::Relaxed);
        let mut reports = tokio::time::interval(self.report_interval);
        loop {
            tokio::select! {
                _ = reports.tick() => {
                    self.board.reports.fetch_add(1, Ordering::Relaxed);
                    let kind = match self.boxes.iter().next() {
                        Some((id, generation)) => Kind::Agent(AgentReport {
                            sandbox_id: id.clone(),
                            generation: *generation,
                            status: "running".to_owned(),
                            ..Default::default()
                        }),
                        None => Kind::Heartbeat(Default::default()),
                    };
                    sender.send(message(kind)).await?;
                }
                next = inbound.message() => {
                    let next = next?.context("the server ended the stream")?;
                    if let Some(server_message::Kind::Desired(desired)) = next.kind {
                        let state = match desired.state() {
                            DesiredState::Running => {
                                self.board.ordered.lock().expect("no panic").insert(desired.name.clone(), Instant::now());
                                self.boxes.insert(desired.sandbox_id.clone(), desired.generation);
                                BoxState::Running
                            }
                            DesiredState::Stopped => BoxState::Stopped,
                            DesiredState::Absent | DesiredState::Unspecified => {
                                self.boxes.remove(&desired.sandbox_id);
                                BoxState::Gone
                            }
                        };
                        let told = one_box(desired.sandbox_id, desired.generation, state);
                        sender.send(message(Kind::Box(told))).await?;
                    }
                }
            }
        }
    }

    fn hello(&self) -> Hello {
        let boxes = self.boxes.iter().map(|(id, generation)| one_box(id.clone(), *generation, BoxState::Running));
        Hello {
            runner_id: self.runner_id.clone(),
            name: self.name.clone(),
            capacity: Some(v1::Capacity {
                cpu_millis: 1 << 30,
                memory_bytes: 1 << 50,
                disk_bytes: 1 << 50,
                sandboxes: 10_000,
            }),
            backends: vec!["simulated".to_owned()],
            templates: vec!["host".to_owned()],
            networks: vec![v1::Network::None.into()],
            version: "bench".to_owned(),
            boxes: boxes.collect(),
            ..Default::default()
        }
    }
}

fn message(kind: Kind) -> RunnerMessage {
    RunnerMessage { kind: Some(kind) }
}

fn one_box(sandbox_id: String, generation: u64, state: BoxState) -> BoxMessage {
    BoxMessage { sandbox_id, generation, state: state.into(), ..Default::default() }
}
