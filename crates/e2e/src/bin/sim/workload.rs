//! What the client does: creates, runs, stops, starts and deletes, at random moments; and what it was promised.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dispense_backend::fake::count_byte;
use dispense_client::v1::process_event::Kind;
use dispense_client::{Client, v1};

use crate::chance::Chance;
use crate::faults::slowness;
use crate::world::{self, Credentials};

/// Between two things that the client does.
const PAUSE_MAX_MS: u64 = 900;
/// Between looks at everything.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Calls that are not streams; the server holds some of them for a while.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);
const TTL_SECS: u32 = 45;

/// What the client knows.
#[derive(Default)]
pub(crate) struct Journal {
    /// Sandboxes whose creation was answered, with whether they have a TTL.
    pub(crate) created: BTreeMap<String, bool>,
    /// Sandboxes whose deletion was answered.
    pub(crate) deleted: Vec<String>,
    /// The last look at everything: by id.
    pub(crate) seen: BTreeMap<String, v1::Sandbox>,
    pub(crate) jobs: Vec<v1::Job>,
    /// Counts looks.
    pub(crate) looks: u64,
    /// Things that are still under way.
    pub(crate) open: BTreeMap<u64, String>,
    /// Streams that were read to their end.
    pub(crate) streams: u64,
    pub(crate) violations: Vec<String>,
    /// No more is begun.
    pub(crate) over: bool,
}

pub(crate) type Shared = Arc<Mutex<Journal>>;

/// Does random things until the journal is closed, then only looks.
pub(crate) async fn work(credentials: Arc<Mutex<Option<Credentials>>>, journal: Shared, seed: u64) -> turmoil::Result {
    let client = world::client(&credentials).await;
    let (watcher, eyes) = (client.clone(), journal.clone());
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let _ = look(&watcher, &eyes).await;
        }
    });
    let mut chance = Chance::new(seed.wrapping_mul(31));
    let slow = slowness(seed);
    for number in 0.. {
        tokio::time::sleep(Duration::from_millis(slow * chance.between(10, PAUSE_MAX_MS))).await;
        if lock(&journal).over {
            break;
        }
        let (client, journal, dice) = (client.clone(), journal.clone(), chance.next());
        tokio::spawn(async move {
            let mut chance = Chance::new(dice);
            let mine: Vec<String> = lock(&journal).created.keys().cloned().collect();
            let existing = chance.pick(&mine).cloned();
            let what = match (chance.between(0, 100), existing) {
                (0..40, _) | (_, None) => {
                    What::Create { ttl: chance.between(0, 5) == 0, auto_stop: chance.between(0, 8) == 0 }
                }
                (40..43, _) => What::Drain(format!("runner-{}", chance.between(1, 4)), chance.between(0, 2) == 0),
                (43..47, _) => What::Uncordon(format!("runner-{}", chance.between(1, 4))),
                (47..64, Some(id)) => What::Run(id, chance.between(0, 60_000)),
                (64..71, Some(id)) => What::Stop(id),
                (71..78, Some(id)) => What::Start(id),
                (_, Some(id)) => What::Delete(id, chance.between(0, 4) == 0),
            };
            lock(&journal).open.insert(number, format!("{what:?}"));
            what.carry_out(&client, &journal).await;
            lock(&journal).open.remove(&number);
        });
    }
    // Runners that stay closed would keep sandboxes waiting; a call that closes one may still be under way.
    loop {
        for runner in 1..=world::RUNNERS {
            let name = format!("runner-{runner}");
            let _ = tokio::time::timeout(CALL_TIMEOUT, client.uncordon_runner(&name)).await;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

pub(crate) fn lock(journal: &Mutex<Journal>) -> std::sync::MutexGuard<'_, Journal> {
    journal.lock().expect("one thread")
}

#[derive(Debug)]
enum What {
    Create {
        ttl: bool,
        auto_stop: bool,
    },
    /// Drained, or only cordoned.
    Drain(String, bool),
    Uncordon(String),
    Run(String, u64),
    Stop(String),
    Start(String),
    /// With force.
    Delete(String, bool),
}

impl What {
    /// Errors are the weather here; only what was promised counts.
    async fn carry_out(self, client: &Client, journal: &Shared) {
        match self {
            Self::Create { ttl, auto_stop } => {
                let (ttl_secs, auto_stop_mins) = (if ttl { TTL_SECS } else { 0 }, u32::from(auto_stop));
                let spec = v1::SandboxSpec { ttl_secs, auto_stop_mins, ..Default::default() };
                let request = v1::CreateSandboxRequest { spec: Some(spec), ..Default::default() };
                if let Ok(Ok(sandbox)) = tokio::time::timeout(CALL_TIMEOUT, client.create(request)).await {
                    lock(journal).created.insert(sandbox.id, ttl);
                }
            }
            Self::Drain(name, true) => {
                let _ = tokio::time::timeout(CALL_TIMEOUT, client.drain_runner(&name)).await;
            }
            Self::Drain(name, false) => {
                let _ = tokio::time::timeout(CALL_TIMEOUT, client.cordon_runner(&name)).await;
            }
            Self::Uncordon(name) => {
                let _ = tokio::time::timeout(CALL_TIMEOUT, client.uncordon_runner(&name)).await;
            }
            Self::Run(id, bytes) => run(client, journal, &id, bytes).await,
            Self::Stop(id) => {
                let _ = tokio::time::timeout(CALL_TIMEOUT, client.stop(&id, false)).await;
            }
            Self::Start(id) => {
                let _ = tokio::time::timeout(CALL_TIMEOUT, client.start(&id, false)).await;
            }
            Self::Delete(id, force) => {
                if let Ok(Ok(_)) = tokio::time::timeout(CALL_TIMEOUT, client.delete(&id, force, false)).await {
                    lock(journal).deleted.push(id);
                }
            }
        }
    }
}

/// A process whose every byte is known: none may be lost, repeated or changed, whatever happens on the way.
async fn run(client: &Client, journal: &Shared, id: &str, bytes: u64) {
    let args = vec!["count".to_owned(), bytes.to_string()];
    let start = v1::StartProcess { args, ..Default::default() };
    let Ok(Ok(mut process)) = tokio::time::timeout(CALL_TIMEOUT, client.run(id, start)).await else { return };
    let mut next = 0;
    loop {
        match process.events.next().await {
            Ok(Some(event)) => match event.kind {
                Some(Kind::Output(output)) => {
                    let expected = |(index, byte): (usize, &u8)| *byte == count_byte(output.offset + index as u64);
                    if output.offset != next || !output.data.iter().enumerate().all(expected) {
                        let offset = output.offset;
                        lock(journal).violations.push(format!("output of {id} at {next} came with offset {offset}"));
                    }
                    next = output.offset + output.data.len() as u64;
                }
                Some(Kind::Exited(_)) if next != bytes => {
                    lock(journal).violations.push(format!("a process of {id} ended with {next} of {bytes} bytes"));
                }
                _ => {}
            },
            Ok(None) => {
                lock(journal).streams += 1;
                return;
            }
            // The sandbox was stopped or deleted, or it was away for too long.
            Err(_) => return,
        }
    }
}

async fn look(client: &Client, journal: &Shared) -> Result<(), dispense_client::Error> {
    let all = 1..=i32::from(v1::SandboxState::Deleted);
    let request = v1::ListSandboxesRequest { states: all.collect(), ..Default::default() };
    let sandboxes = client.list_all(request).await?;
    let mut jobs = Vec::new();
    let mut request = v1::ListJobsRequest { page_size: 1000, ..Default::default() };
    loop {
        let page = client.jobs(request.clone()).await?;
        jobs.extend(page.jobs);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let mut journal = lock(journal);
    for sandbox in sandboxes {
        if let Some(before) = journal.seen.get(&sandbox.id) {
            let back = sandbox.revision < before.revision
                || sandbox.generation < before.generation
                || (before.state() == v1::SandboxState::Deleted && sandbox.state() != v1::SandboxState::Deleted);
            if back {
                let told = format!("{} went back in time: {before:?}, then {sandbox:?}", sandbox.id);
                journal.violations.push(told);
            }
        }
        journal.seen.insert(sandbox.id.clone(), sandbox);
    }
    journal.jobs = jobs;
    journal.looks += 1;
    Ok(())
}
