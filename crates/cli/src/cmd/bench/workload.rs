//! What is done while the clock runs.

use std::time::{Duration, Instant};

use bytes::Bytes;
use dispense_client::v1::process_event::Kind;
use dispense_client::{Client, Code, Error, v1};
use tokio::task::JoinSet;

use super::figures::{Figures, Sample};

/// Of one bulk transfer: long enough that its start does not count.
const STDOUT_MB: u32 = 256;
const FILE_MB: u32 = 64;
const CHUNK_BYTES: usize = 256 << 10;
const BYTES_PER_MB: f64 = 1e6;
/// Memory limit of a sandbox that is made to be measured.
const MEMORY_BYTES: u64 = 64 << 20;
const BENCH_FILE: &str = "/workspace/bench";
/// One step of any measurement; past it the step has failed.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// A client and what it makes.
#[derive(Clone)]
pub(super) struct Workload {
    client: Client,
    template: String,
}

impl Workload {
    pub(super) fn new(client: Client, template: String) -> Self {
        Self { client, template }
    }

    /// A step, some times, one after the other.
    pub(super) async fn sequential(
        &self,
        name: &str,
        rounds: u32,
        step: impl AsyncFn(&Self) -> Result<Sample, Error>,
    ) -> Figures {
        let mut results = Vec::new();
        for _ in 0..rounds {
            results.push(within(step(self)).await);
        }
        Figures::new(name, results)
    }

    /// Creates in bursts: each sample is one create to its first output, while the others of the burst run.
    pub(super) async fn bursts(&self, size: usize, rounds: u32) -> Figures {
        let mut results = Vec::new();
        let bursts = (rounds as usize).div_ceil(size).max(2);
        for _ in 0..bursts {
            let mut tasks = JoinSet::new();
            for _ in 0..size {
                let workload = self.clone();
                tasks.spawn(async move { within(workload.create_to_first_output()).await });
            }
            results.extend(tasks.join_all().await);
        }
        Figures::new(format!("create to first output, bursts of {size}"), results)
    }

    /// Create, exec and delete, with so many in flight.
    pub(super) async fn rate(&self, in_flight: usize, count: u32) -> Figures {
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..in_flight {
            let workload = self.clone();
            let own = count / u32::try_from(in_flight).unwrap_or(1);
            tasks.spawn(async move {
                let mut results = Vec::new();
                for _ in 0..own {
                    results.push(within(workload.create_to_first_output()).await);
                }
                results
            });
        }
        let results: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
        let done = results.iter().filter(|result| result.is_ok()).count();
        let rate = Sample::PerSecond(done as f64 / start.elapsed().as_secs_f64());
        let failures = results.into_iter().filter(Result::is_err);
        let results = std::iter::once(Ok(rate)).chain(failures).collect();
        Figures::new(format!("create, exec and delete, {in_flight} in flight"), results)
    }

    /// Makes a sandbox.
    pub(super) async fn create(&self, wait: bool) -> Result<v1::Sandbox, Error> {
        let resources = v1::Resources { memory_bytes: MEMORY_BYTES, ..Default::default() };
        let spec = v1::SandboxSpec {
            template: self.template.clone(),
            resources: Some(resources),
            // Nothing is left of a measurement that is broken off.
            lease_secs: 600,
            ..Default::default()
        };
        let request = v1::CreateSandboxRequest { spec: Some(spec), wait, ..Default::default() };
        let sandbox = self.client.create(request).await?;
        if sandbox.state() == v1::SandboxState::Failed {
            return Err(Error::new(Code::FailedPrecondition, "sandbox_failed", sandbox.reason));
        }
        Ok(sandbox)
    }

    /// Removes it and waits until nothing is left.
    pub(super) async fn delete(&self, sandbox: &str) -> Result<(), Error> {
        self.client.delete(sandbox, false, true).await.map(drop)
    }

    /// From the request to the first byte of a command's output; the removal is not counted.
    pub(super) async fn create_to_first_output(&self) -> Result<Sample, Error> {
        let start = Instant::now();
        let sandbox = self.create(false).await?;
        let output = self.first_output(&sandbox.id).await;
        let took = start.elapsed();
        self.delete(&sandbox.id).await?;
        output.map(|()| milliseconds(took))
    }

    async fn first_output(&self, sandbox: &str) -> Result<(), Error> {
        let mut process = self.client.run(sandbox, command(&["echo", "ready"])).await?;
        while let Some(event) = process.events.next().await? {
            if let Some(Kind::Output(_)) = event.kind {
                return Ok(());
            }
        }
        Err(wrong("the command ended without output"))
    }

    /// A command from the request to its exit.
    pub(super) async fn exec(&self, sandbox: &str) -> Result<Sample, Error> {
        let start = Instant::now();
        let mut process = self.client.run(sandbox, command(&["true"])).await?;
        while process.events.next().await?.is_some() {}
        Ok(milliseconds(start.elapsed()))
    }

    /// Bytes that a command writes to stdout, as the client gets them.
    pub(super) async fn stdout(&self, sandbox: &str) -> Result<Sample, Error> {
        let script = format!("head -c {STDOUT_MB}000000 /dev/zero");
        let start = Instant::now();
        let mut process = self.client.run(sandbox, command(&["sh", "-c", &script])).await?;
        let mut bytes = 0;
        while let Some(event) = process.events.next().await? {
            if let Some(Kind::Output(output)) = event.kind {
                bytes += output.data.len();
            }
        }
        if bytes != STDOUT_MB as usize * 1_000_000 {
            return Err(wrong(&format!("{bytes} bytes came of {STDOUT_MB} MB")));
        }
        Ok(rate(bytes, start.elapsed()))
    }

    pub(super) async fn write_file(&self, sandbox: &str) -> Result<Sample, Error> {
        let chunk = Bytes::from(vec![0x5a; CHUNK_BYTES]);
        let start = Instant::now();
        let open = v1::WriteFile { path: BENCH_FILE.to_owned(), ..Default::default() };
        let upload = self.client.write_file(sandbox, open);
        let mut bytes = 0;
        while bytes < FILE_MB as usize * 1_000_000 {
            upload.write(chunk.clone()).await?;
            bytes += chunk.len();
        }
        upload.finish().await?;
        Ok(rate(bytes, start.elapsed()))
    }

    pub(super) async fn read_file(&self, sandbox: &str) -> Result<Sample, Error> {
        let start = Instant::now();
        let mut download = self.client.read_file(sandbox, BENCH_FILE, 0, 0).await?;
        let mut bytes = 0;
        while let Some(chunk) = download.next().await? {
            bytes += chunk.len();
        }
        Ok(rate(bytes, start.elapsed()))
    }

    /// From a key to its echo on a terminal.
    pub(super) async fn echo(&self, sandbox: &str, rounds: u32) -> Result<Figures, Error> {
        let mut start = command(&["cat"]);
        start.pty = Some(v1::Pty { cols: 80, rows: 24, term: String::new() });
        let mut process = self.client.run(sandbox, start).await?;
        let mut results = Vec::new();
        for _ in 0..rounds {
            let one = async {
                let start = Instant::now();
                process.input.write(Bytes::from_static(b"x")).await?;
                loop {
                    match process.events.next().await?.and_then(|event| event.kind) {
                        Some(Kind::Output(_)) => return Ok(milliseconds(start.elapsed())),
                        Some(_) => {}
                        None => return Err(wrong("the terminal ended")),
                    }
                }
            };
            results.push(within(one).await);
        }
        // Control-D on an empty line, after the line has been ended.
        process.input.write(Bytes::from_static(b"\n\x04")).await?;
        while process.events.next().await?.is_some() {}
        Ok(Figures::new("terminal echo", results))
    }

    /// Memory of the whole machine, the kernel included, for each sandbox that idles.
    pub(super) async fn idle_memory(&self, count: u32) -> Figures {
        let before = available_bytes();
        let mut made = Vec::new();
        let mut results = Vec::new();
        for _ in 0..count {
            match within(self.create(true)).await {
                Ok(sandbox) => made.push(sandbox.id),
                Err(error) => results.push(Err(error)),
            }
        }
        if let (Some(before), Some(after)) = (before, available_bytes()) {
            let used = before.saturating_sub(after) as f64 / made.len().max(1) as f64;
            results.push(Ok(Sample::Megabytes(used / BYTES_PER_MB)));
        }
        for sandbox in made {
            results.extend(within(self.delete(&sandbox)).await.err().map(Err));
        }
        Figures::new(format!("memory of an idle sandbox, {count} live"), results)
    }
}

fn command(args: &[&str]) -> v1::StartProcess {
    v1::StartProcess { args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..Default::default() }
}

fn wrong(message: &str) -> Error {
    Error::new(Code::Internal, "bench", message)
}

fn milliseconds(took: Duration) -> Sample {
    Sample::Milliseconds(took.as_secs_f64() * 1e3)
}

fn rate(bytes: usize, took: Duration) -> Sample {
    Sample::MegabytesPerSecond(bytes as f64 / BYTES_PER_MB / took.as_secs_f64())
}

async fn within<T>(step: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(STEP_TIMEOUT, step).await {
        Ok(result) => result,
        Err(_) => Err(wrong(&format!("it took longer than {} s", STEP_TIMEOUT.as_secs()))),
    }
}

/// Of this machine; the figure means something only when the runner is on it.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}
