//! The load: workers that create, run, feed and delete, and a few sandboxes that live through everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use dispense_client::v1::process_event::Kind;
use dispense_client::{Client, Code, Error, v1};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// Workers, each with one sandbox at a time.
const WORKERS: usize = 6;
/// Sandboxes that live from the first fault to the last, each with a process that counts.
const PETS: usize = 4;
/// Lines that a worker's process writes, a hundredth of a second apart.
const LINES: u64 = 40;
/// Bytes that a worker sends through `cat`.
const FED_BYTES: usize = 300_000;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// A call is tried again for this long.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);

/// What the load came to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sandboxes: u64,
    pub(crate) streams: u64,
    pub(crate) bytes: u64,
    /// Sandboxes or processes that vanished.
    pub(crate) lost: u64,
    pub(crate) wrong_bytes: u64,
    pub(crate) failures: Vec<String>,
}

impl Tally {
    pub(crate) fn is_clean(&self) -> bool {
        self.lost == 0 && self.wrong_bytes == 0 && self.failures.is_empty()
    }
}

/// What runs.
pub(crate) struct Load {
    tasks: JoinSet<()>,
    tally: Arc<Mutex<Tally>>,
    over: Arc<AtomicBool>,
    pets: Vec<String>,
    next_probe: AtomicU64,
}

impl Load {
    pub(crate) async fn start(client: &Client) -> Result<Self> {
        let mut load = Self {
            tasks: JoinSet::new(),
            tally: Arc::default(),
            over: Arc::default(),
            pets: Vec::new(),
            next_probe: AtomicU64::new(0),
        };
        for number in 0..PETS {
            let name = format!("pet-{number}");
            create(client, &name).await?;
            load.pets.push(name.clone());
            let (client, tally, over) = (client.clone(), load.tally.clone(), load.over.clone());
            load.tasks.spawn(async move {
                if let Err(error) = keep(&client, &name, &tally, &over).await {
                    fail(&tally, &name, &error).await;
                }
            });
        }
        for worker in 0..WORKERS {
            let (client, tally, over) = (client.clone(), load.tally.clone(), load.over.clone());
            load.tasks.spawn(async move {
                for round in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("worker-{worker}-{round}");
                    if let Err(error) = round_trip(&client, &name, &tally).await {
                        fail(&tally, &name, &error).await;
                    }
                }
            });
        }
        Ok(load)
    }

    /// A sandbox that must always work.
    pub(crate) fn probe(&self) -> &str {
        let number = self.next_probe.fetch_add(1, Ordering::Relaxed);
        &self.pets[usize::try_from(number).unwrap_or(0) % self.pets.len()]
    }

    /// Lets everything come to its end, and deletes what lived through it.
    pub(crate) async fn finish(mut self, client: &Client, timeout: Duration) -> Tally {
        self.over.store(true, Ordering::Relaxed);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let in_time = tokio::time::timeout(timeout, ended).await.is_ok();
        for pet in &self.pets {
            if let Err(error) = again(|| client.delete(pet, false, true)).await {
                fail(&self.tally, pet, &error).await;
            }
        }
        let mut tally = std::mem::take(&mut *self.tally.lock().await);
        if !in_time {
            tally.failures.push(format!("wedged: the load did not end within {timeout:?}"));
        }
        tally
    }
}

async fn fail(tally: &Mutex<Tally>, name: &str, error: &Error) {
    let mut tally = tally.lock().await;
    if error.code == Code::NotFound || error.code == Code::FailedPrecondition {
        tally.lost += 1;
    }
    tally.failures.push(format!("{name}: {} ({}): {}", error.code, error.reason, error.message));
}

/// Repeats a call until the server is there again.
async fn again<T, F: Future<Output = Result<T, Error>>>(call: impl Fn() -> F) -> Result<T, Error> {
    let end = Instant::now() + CALL_TIMEOUT;
    loop {
        match call().await {
            Err(error) if matches!(error.code, Code::Unavailable | Code::DeadlineExceeded) && Instant::now() < end => {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            result => return result,
        }
    }
}

async fn create(client: &Client, name: &str) -> Result<(), Error> {
    let request = || v1::CreateSandboxRequest { name: name.to_owned(), wait: true, ..Default::default() };
    match again(|| client.create(request())).await {
        // The answer to an earlier attempt was lost.
        Err(error) if error.code == Code::AlreadyExists => {
            let request = || v1::WaitSandboxRequest { sandbox: name.to_owned(), ..Default::default() };
            again(|| client.wait(request())).await.map(drop)
        }
        result => result.map(drop),
    }
}

/// One sandbox from its creation to its deletion.
async fn round_trip(client: &Client, name: &str, tally: &Mutex<Tally>) -> Result<(), Error> {
    create(client, name).await?;
    tally.lock().await.sandboxes += 1;
    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.01; done");
    let wanted: String = (0..LINES).map(|number| format!("line {number}\n")).collect();
    let seen = output(client, name, &["sh", "-c", &script], None).await?;
    count(tally, name, &seen, wanted.as_bytes()).await;
    let fed: Bytes = (0..FED_BYTES).map(|index| (index % 253) as u8).collect();
    let seen = output(client, name, &["cat"], Some(fed.clone())).await?;
    count(tally, name, &seen, &fed).await;
    again(|| client.delete(name, false, true)).await.map(drop)
}

async fn count(tally: &Mutex<Tally>, name: &str, seen: &[u8], wanted: &[u8]) {
    let mut tally = tally.lock().await;
    tally.streams += 1;
    tally.bytes += seen.len() as u64;
    if seen != wanted {
        let wrong = seen.len().abs_diff(wanted.len()).max(1);
        tally.wrong_bytes += wrong as u64;
        tally.failures.push(format!("{name}: {} bytes came, {} were written", seen.len(), wanted.len()));
    }
}

async fn output(client: &Client, sandbox: &str, args: &[&str], input: Option<Bytes>) -> Result<Vec<u8>, Error> {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let start = || v1::StartProcess { stdin: input.is_some(), ..Default::default() };
    let start = v1::StartProcess { args, ..start() };
    // A start that never reached the agent may be made again; one that did is told by its key.
    let start = v1::StartProcess { key: format!("{sandbox}-{}", start.args.len()), ..start };
    let process = again(|| client.run(sandbox, start.clone())).await?;
    let (writer, mut events) = (process.input, process.events);
    let feeding = tokio::spawn(async move {
        if let Some(input) = input {
            for chunk in input.chunks(10_000) {
                writer.write(Bytes::copy_from_slice(chunk)).await?;
            }
            writer.close().await?;
        }
        Ok::<_, Error>(())
    });
    let mut all = Vec::new();
    while let Some(event) = events.next().await? {
        if let Some(Kind::Output(output)) = event.kind {
            all.extend_from_slice(&output.data);
        }
    }
    feeding.await.map_err(|error| Error::new(Code::Internal, "feeding", error.to_string()))??;
    Ok(all)
}

/// A process that counts for as long as there are faults: every line comes once, in order, from one process.
async fn keep(client: &Client, name: &str, tally: &Mutex<Tally>, over: &AtomicBool) -> Result<(), Error> {
    let script = "i=0; while [ ! -e /workspace/over ]; do echo $i; i=$((i+1)); sleep 0.02; done";
    let start = v1::StartProcess { args: ["sh", "-c", script].map(str::to_owned).to_vec(), ..Default::default() };
    let mut process = again(|| client.run(name, start.clone())).await?;
    let (mut text, mut next, mut told) = (Vec::new(), 0u64, false);
    loop {
        if over.load(Ordering::Relaxed) && !told {
            output(client, name, &["touch", "/workspace/over"], None).await?;
            told = true;
        }
        let Some(event) = process.events.next().await? else { break };
        let Some(Kind::Output(output)) = event.kind else { continue };
        text.extend_from_slice(&output.data);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let mut tally = tally.lock().await;
            tally.bytes += line.len() as u64;
            if line != format!("{next}\n").into_bytes() {
                tally.wrong_bytes += 1;
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                tally.failures.push(format!("{name}: `{line}` instead of {next}"));
                return Ok(());
            }
            next += 1;
        }
    }
    tally.lock().await.streams += 1;
    Ok(())
}
