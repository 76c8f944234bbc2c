//! The fleet: every runner that ever joined, which of them are connected, and what they have promised.

pub(crate) mod hello;
pub(crate) mod link;

pub(crate) use hello::BoxReport;

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use dispense_api::error::Error;
use dispense_api::id::RunnerId;
use dispense_api::runner::ServerMessage;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::placement::{self, Candidate, Misfit, Room};
use crate::refusal::unknown_runner;
use crate::sandbox::spec::{Network, Spec};

/// Between the heartbeats of a runner.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// A runner that is silent for three heartbeats is offline.
pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// What a runner says of itself.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) capacity: Room,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) backends: Vec<String>,
    pub(crate) templates: Vec<String>,
    pub(crate) networks: Vec<Network>,
    #[serde(default)]
    pub(crate) source_roots: Vec<String>,
    pub(crate) unenforced: BTreeMap<String, String>,
    /// Why disks with a limit are in memory; empty where they are kept.
    #[serde(default)]
    pub(crate) disk_in_memory: String,
    pub(crate) version: String,
    pub(crate) embedded: bool,
}

/// What an operator wants of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It takes sandboxes.
    Open,
    /// It takes nothing new.
    Cordoned,
    /// It takes nothing new, and what runs there is stopped.
    Draining,
}

impl Mode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        }
    }

    /// The mode of a text form.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Cordoned, Self::Draining].into_iter().find(|mode| mode.as_str() == text)
    }
}

/// A runner, as the store keeps it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KnownRunner {
    pub(crate) id: RunnerId,
    pub(crate) facts: Facts,
    pub(crate) mode: Mode,
    pub(crate) joined_at: i64,
    pub(crate) last_seen_at: i64,
}

/// As clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunnerStatus {
    Available,
    /// Connected, with no room left.
    Busy,
    /// Connected, and takes nothing new.
    Draining,
    Offline,
}

impl RunnerStatus {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Offline => "offline",
        }
    }
}

/// One runner, as it is now.
#[derive(Debug, Clone)]
pub(crate) struct RunnerView {
    pub(crate) known: KnownRunner,
    pub(crate) status: RunnerStatus,
    pub(crate) used: Room,
}

/// The way to a connected runner.
pub(crate) struct LinkHandle {
    pub(crate) outbound: mpsc::Sender<ServerMessage>,
    /// Ends the link.
    pub(crate) cancel: CancellationToken,
}

struct Entry {
    known: KnownRunner,
    used: Room,
    link: Option<Link>,
    /// Since when nothing was heard.
    heard: Instant,
    /// Its sandboxes have been told lost.
    lost: bool,
}

struct Link {
    serial: u64,
    handle: LinkHandle,
}

/// Every runner. One owner of one map; the database has the rows.
pub(crate) struct Fleet {
    entries: Mutex<Entries>,
    /// Room may have come free: whoever places should look again.
    pub(crate) room_changed: Notify,
    attached: Notify,
}

#[derive(Default)]
struct Entries {
    runners: HashMap<RunnerId, Entry>,
    /// By the hash of their credential; those that have come since the start. BOUND: one a runner.
    credentials: HashMap<String, RunnerId>,
    links: u64,
}

impl Entries {
    fn link(&self, id: &RunnerId) -> Option<&Link> {
        self.runners.get(id)?.link.as_ref()
    }
}

impl Link {
    fn send(&self, id: &RunnerId, message: ServerMessage) -> bool {
        let sent = self.handle.outbound.try_send(message).is_ok();
        if !sent {
            tracing::warn!(runner = %id, "runner does not take its messages: ending its link");
            self.handle.cancel.cancel();
        }
        sent
    }
}

impl Fleet {
    /// Of a server that has just started: every runner's lease begins now.
    pub(crate) fn new(known: Vec<KnownRunner>, used: &BTreeMap<RunnerId, Room>) -> Self {
        let entry = |known: KnownRunner| {
            let used = used.get(&known.id).copied().unwrap_or_default();
            (known.id.clone(), Entry { known, used, link: None, heard: Instant::now(), lost: false })
        };
        let runners = known.into_iter().map(entry).collect();
        Self {
            entries: Mutex::new(Entries { runners, credentials: HashMap::new(), links: 0 }),
            room_changed: Notify::new(),
            attached: Notify::new(),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Entries) -> T) -> T {
        f(&mut self.entries.lock().expect("no holder panics"))
    }

    /// Whether a runner is on the server's own machine; `None` for one that is not known.
    pub(crate) fn is_local(&self, runner: &RunnerId) -> Option<bool> {
        self.with(|entries| entries.runners.get(runner).map(|entry| entry.known.facts.embedded))
    }

    /// Those on the server's own machine.
    pub(crate) fn local_runners(&self) -> Vec<RunnerId> {
        self.with(|entries| {
            let local = entries.runners.values().filter(|entry| entry.known.facts.embedded);
            local.map(|entry| entry.known.id.clone()).collect()
        })
    }

    /// The runner of a credential that was seen before.
    pub(crate) fn of_credential(&self, hash: &str) -> Option<RunnerId> {
        self.with(|entries| entries.credentials.get(hash).cloned())
    }

    /// A credential was found in the database.
    pub(crate) fn keep_credential(&self, hash: String, runner: RunnerId) {
        self.with(|entries| entries.credentials.insert(hash, runner));
    }

    /// Takes the link of a runner; an older link of the same runner is ended. The number names this link.
    pub(crate) fn attach(&self, known: KnownRunner, handle: LinkHandle) -> u64 {
        let serial = self.with(|entries| {
            entries.links += 1;
            let serial = entries.links;
            let entry = entries.runners.entry(known.id.clone()).or_insert_with(|| Entry {
                known: known.clone(),
                used: Room::default(),
                link: None,
                heard: Instant::now(),
                lost: false,
            });
            if let Some(old) = entry.link.replace(Link { serial, handle }) {
                old.handle.cancel.cancel();
            }
            // A link knows nothing of what the operator wants.
            let (mode, joined_at) = (entry.known.mode, entry.known.joined_at);
            entry.known = KnownRunner { mode, joined_at, ..known };
            entry.heard = Instant::now();
            entry.lost = false;
            serial
        });
        self.room_changed.notify_one();
        self.attached.notify_waiters();
        serial
    }

    /// Returns when a runner is connected.
    pub(crate) async fn any_connected(&self) {
        loop {
            let mut attached = std::pin::pin!(self.attached.notified());
            attached.as_mut().enable();
            if self.with(|entries| entries.runners.values().any(|entry| entry.link.is_some())) {
                return;
            }
            attached.await;
        }
    }

    /// Forgets a link, unless a newer one has taken its place.
    pub(crate) fn detach(&self, id: &RunnerId, serial: u64) {
        self.with(|entries| {
            if let Some(entry) = entries.runners.get_mut(id)
                && entry.link.as_ref().is_some_and(|link| link.serial == serial)
            {
                entry.link = None;
                entry.heard = Instant::now();
            }
        });
    }

    /// A message came over a link.
    pub(crate) fn heard(&self, id: &RunnerId, now_micros: i64) {
        self.with(|entries| {
            if let Some(entry) = entries.runners.get_mut(id) {
                entry.heard = Instant::now();
                entry.known.last_seen_at = now_micros;
            }
        });
    }

    /// Sends a message to a connected runner; `false` when it is not connected. A runner that takes no
    /// messages is cut off: it gets everything again when it is back.
    pub(crate) fn send(&self, id: &RunnerId, message: ServerMessage) -> bool {
        self.with(|entries| entries.link(id).is_some_and(|link| link.send(id, message)))
    }

    /// The same over one link: `false` also when the runner has come back over another.
    pub(crate) fn send_over(&self, id: &RunnerId, serial: u64, message: ServerMessage) -> bool {
        self.with(|entries| {
            let link = entries.link(id).filter(|link| link.serial == serial);
            link.is_some_and(|link| link.send(id, message))
        })
    }

    /// Which link a runner has, of all that there were.
    pub(crate) fn link(&self, id: &RunnerId) -> Option<u64> {
        self.with(|entries| entries.link(id).map(|link| link.serial))
    }

    /// Whether a runner has a link.
    pub(crate) fn is_connected(&self, id: &RunnerId) -> bool {
        self.link(id).is_some()
    }

    /// Chooses a runner and takes the room on it; [`Fleet::release`] gives it back.
    pub(crate) fn reserve(&self, spec: &Spec, except: &[RunnerId]) -> Result<RunnerId, Vec<(RunnerId, Misfit)>> {
        self.with(|entries| {
            let others = entries.runners.values().filter(|entry| !except.contains(&entry.known.id));
            let candidates: Vec<Candidate> = others.map(candidate).collect();
            let id = placement::place(spec, &candidates)?;
            if let Some(entry) = entries.runners.get_mut(&id) {
                entry.used = entry.used.plus(Room::of(spec));
            }
            Ok(id)
        })
    }

    /// Gives room back.
    pub(crate) fn release(&self, id: &RunnerId, spec: &Spec) {
        self.with(|entries| {
            if let Some(entry) = entries.runners.get_mut(id) {
                entry.used = entry.used.minus(Room::of(spec));
            }
        });
        self.room_changed.notify_one();
    }

    /// Why no runner fits now; empty when one does.
    pub(crate) fn misfits(&self, spec: &Spec) -> Vec<(RunnerId, String, Misfit)> {
        let candidates: Vec<Candidate> = self.with(|entries| entries.runners.values().map(candidate).collect());
        let name = |id: &RunnerId| {
            let found = candidates.iter().find(|candidate| candidate.id == *id);
            found.map(|candidate| candidate.name.clone()).unwrap_or_default()
        };
        let misfits = placement::place(spec, &candidates).err().unwrap_or_default();
        misfits.into_iter().map(|(id, misfit)| (id.clone(), name(&id), misfit)).collect()
    }

    /// What an operator wants of a runner.
    pub(crate) fn mode(&self, id: &RunnerId) -> Option<Mode> {
        self.with(|entries| entries.runners.get(id).map(|entry| entry.known.mode))
    }

    /// An operator wants something else of a runner.
    pub(crate) fn set_mode(&self, id: &RunnerId, mode: Mode) {
        self.with(|entries| {
            if let Some(entry) = entries.runners.get_mut(id) {
                entry.known.mode = mode;
            }
        });
        self.room_changed.notify_one();
    }

    /// What a runner said of itself last, looked at.
    pub(crate) fn look<T>(&self, id: &RunnerId, at: impl FnOnce(&Facts) -> T) -> Option<T> {
        self.with(|entries| entries.runners.get(id).map(|entry| at(&entry.known.facts)))
    }

    /// Templates of all runners.
    pub(crate) fn templates(&self) -> Vec<String> {
        let mut templates: Vec<String> = self.with(|entries| {
            entries.runners.values().flat_map(|entry| entry.known.facts.templates.iter().cloned()).collect()
        });
        templates.sort();
        templates.dedup();
        templates
    }

    /// Runners whose lease has ended since the last time, and when each was heard last; their links are cut.
    pub(crate) fn newly_lost(&self) -> Vec<(RunnerId, i64)> {
        self.with(|entries| {
            let mut lost = Vec::new();
            for (id, entry) in &mut entries.runners {
                if entry.lost || entry.heard.elapsed() < LEASE {
                    continue;
                }
                entry.lost = true;
                if let Some(link) = entry.link.take() {
                    link.handle.cancel.cancel();
                }
                lost.push((id.clone(), entry.known.last_seen_at));
            }
            lost
        })
    }

    /// Every runner, by name.
    pub(crate) fn list(&self) -> Vec<RunnerView> {
        let mut views: Vec<RunnerView> = self.with(|entries| entries.runners.values().map(view).collect());
        views.sort_by(|a, b| (&a.known.facts.name, &a.known.id).cmp(&(&b.known.facts.name, &b.known.id)));
        views
    }

    /// The runner of an id or name; ids win.
    pub(crate) fn find(&self, wanted: &str) -> Result<RunnerView, Error> {
        let runners = self.list();
        let by_id = runners.iter().find(|view| view.known.id.as_str() == wanted);
        let found = by_id.or_else(|| runners.iter().find(|view| view.known.facts.name == wanted));
        found.cloned().ok_or_else(|| unknown_runner(wanted))
    }

    /// Ends every link, for the shutdown.
    pub(crate) fn disconnect(&self) {
        self.with(|entries| {
            for entry in entries.runners.values_mut() {
                if let Some(link) = entry.link.take() {
                    link.handle.cancel.cancel();
                }
            }
        });
    }
}

fn candidate(entry: &Entry) -> Candidate {
    let facts = &entry.known.facts;
    Candidate {
        id: entry.known.id.clone(),
        name: facts.name.clone(),
        local: entry.known.facts.embedded,
        connected: entry.link.is_some(),
        open: entry.known.mode == Mode::Open,
        labels: facts.labels.clone(),
        templates: facts.templates.clone(),
        networks: facts.networks.clone(),
        source_roots: facts.source_roots.clone(),
        unenforced: facts.unenforced.clone(),
        capacity: facts.capacity,
        used: entry.used,
    }
}

fn view(entry: &Entry) -> RunnerView {
    let capacity = entry.known.facts.capacity;
    let full = entry.used.sandboxes >= capacity.sandboxes
        || entry.used.cpu_millis >= capacity.cpu_millis
        || entry.used.memory_bytes >= capacity.memory_bytes;
    let status = match (&entry.link, entry.known.mode, full) {
        (None, ..) => RunnerStatus::Offline,
        (Some(_), Mode::Cordoned | Mode::Draining, _) => RunnerStatus::Draining,
        (Some(_), Mode::Open, true) => RunnerStatus::Busy,
        (Some(_), Mode::Open, false) => RunnerStatus::Available,
    };
    RunnerView { known: entry.known.clone(), status, used: entry.used }
}
