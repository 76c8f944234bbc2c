//! The load: unary calls as fast as they are answered, or evenly spaced; streams that stay open.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dispense_api::service::dispense_service_client::DispenseServiceClient;
use dispense_api::service::{CreateSandboxRequest, GetSandboxRequest};
use dispense_api::v1;
use dispense_api::v1::event_service_client::EventServiceClient;
use tokio::task::JoinSet;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

use crate::h2load;
use crate::servers::Server;

/// Streams that are being opened at the same time.
const OPENING: usize = 64;

/// A server, its connections, and the sandbox that is asked for.
#[derive(Clone)]
pub(crate) struct Target {
    channels: Vec<Channel>,
    key: MetadataValue<Ascii>,
    identifier: String,
}

/// What came of a load.
pub(crate) struct Outcome {
    pub(crate) rate: f64,
    pub(crate) failed: u64,
    latencies_us: Vec<u64>,
}

impl Outcome {
    fn new(mut latencies_us: Vec<u64>, failed: u64, took: Duration) -> Self {
        latencies_us.sort_unstable();
        Self { rate: latencies_us.len() as f64 / took.as_secs_f64(), failed, latencies_us }
    }

    pub(crate) fn percentile_ms(&self, percent: f64) -> f64 {
        let last = self.latencies_us.len().saturating_sub(1);
        let index = (last as f64 * percent / 100.0).round() as usize;
        self.latencies_us.get(index).map_or(f64::NAN, |us| *us as f64 / 1000.0)
    }
}

async fn connect(address: &str) -> Result<Channel> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?)
}

impl Target {
    /// Connects, and makes the sandbox. Nobody runs it: what is measured is the answer.
    pub(crate) async fn prepare(address: &str, key: &str, connections: usize) -> Result<Self> {
        let mut channels = Vec::new();
        for _ in 0..connections {
            channels.push(connect(address).await?);
        }
        let mut target = Self { channels, key: key.parse().context("a key is a header")?, identifier: String::new() };
        let request = CreateSandboxRequest { name: "bench".to_owned(), ..Default::default() };
        let made = target.client(0).create_sandbox(target.request(request)).await?.into_inner();
        target.identifier = made.sandbox.context("a sandbox")?.id;
        Ok(target)
    }

    fn client(&self, number: usize) -> DispenseServiceClient<Channel> {
        DispenseServiceClient::new(self.channels[number % self.channels.len()].clone())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-api-key", self.key.clone());
        request
    }

    async fn once(&self, client: &mut DispenseServiceClient<Channel>) -> Option<u64> {
        let message = GetSandboxRequest { identifier: self.identifier.clone() };
        let begun = Instant::now();
        let answer = client.get_sandbox(self.request(message)).await.ok()?;
        answer.into_inner().sandbox?;
        u64::try_from(begun.elapsed().as_micros()).ok()
    }

    /// Calls a second as h2load counts them, with so many connections and calls in flight.
    pub(crate) fn count(&self, server: &Server, load: (usize, usize), time: Duration) -> Result<f64> {
        h2load::rate(&server.address, &server.key, &self.identifier, load, time)
    }

    /// Each of `in_flight` callers calls again when it has its answer.
    pub(crate) async fn closed_loop(&self, in_flight: usize, time: Duration) -> Outcome {
        let begun = Instant::now();
        let mut callers = JoinSet::new();
        for number in 0..in_flight {
            let target = self.clone();
            callers.spawn(async move {
                let mut client = target.client(number);
                let (mut latencies, mut failed) = (Vec::new(), 0);
                while begun.elapsed() < time {
                    match target.once(&mut client).await {
                        Some(us) => latencies.push(us),
                        None => failed += 1,
                    }
                }
                (latencies, failed)
            });
        }
        gather(callers, begun).await
    }

    /// Calls at a rate, whether or not the ones before were answered; a latency counts from when a call was due.
    pub(crate) async fn open_loop(&self, rate: f64, time: Duration) -> Result<Outcome> {
        let begun = Instant::now();
        let next = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        // More than are ever in flight below the server's limit.
        for number in 0..256 {
            let (target, next) = (self.clone(), next.clone());
            callers.spawn(async move {
                let mut client = target.client(number);
                let (mut latencies, mut failed) = (Vec::new(), 0);
                loop {
                    let due = Duration::from_secs_f64(next.fetch_add(1, Ordering::Relaxed) as f64 / rate);
                    if due > time {
                        return (latencies, failed);
                    }
                    tokio::time::sleep_until((begun + due).into()).await;
                    match target.once(&mut client).await {
                        Some(_) => {
                            let late = begun.elapsed().saturating_sub(due);
                            latencies.push(u64::try_from(late.as_micros()).unwrap_or(u64::MAX));
                        }
                        None => failed += 1,
                    }
                }
            });
        }
        Ok(gather(callers, begun).await)
    }
}

async fn gather(mut callers: JoinSet<(Vec<u64>, u64)>, begun: Instant) -> Outcome {
    let (mut all, mut failures) = (Vec::new(), 0);
    while let Some(done) = callers.join_next().await {
        match done {
            Ok((latencies, failed)) => {
                all.extend(latencies);
                failures += failed;
            }
            Err(_) => failures += 1,
        }
    }
    Outcome::new(all, failures, begun.elapsed())
}

/// Opens streams that follow events, and keeps them.
pub(crate) async fn open_streams(
    address: &str,
    key: &str,
    connections: usize,
    count: usize,
) -> Result<Vec<Streaming<v1::Event>>> {
    let key: MetadataValue<Ascii> = key.parse().context("a key is a header")?;
    let mut channels = Vec::new();
    for _ in 0..connections {
        channels.push(connect(address).await?);
    }
    let (mut opening, mut open) = (JoinSet::new(), Vec::with_capacity(count));
    for number in 0..count {
        let (mut client, key) = (EventServiceClient::new(channels[number % connections].clone()), key.clone());
        opening.spawn(async move {
            let mut request = Request::new(v1::WatchEventsRequest { from_now: true, ..Default::default() });
            request.metadata_mut().insert("x-api-key", key);
            Ok::<_, tonic::Status>(client.watch_events(request).await?.into_inner())
        });
        if opening.len() >= OPENING
            && let Some(opened) = opening.join_next().await
        {
            open.push(opened??);
        }
    }
    while let Some(opened) = opening.join_next().await {
        open.push(opened??);
    }
    Ok(open)
}
