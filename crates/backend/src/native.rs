//! The native backend: boxes of Linux namespaces, as root or as an ordinary user.
//!
//! ```text
//! create: record and directories
//! start:  cgroups → socket → spawner (clone) → its child: mounts, ids, filter → exec of the agent
//! stop:   kill the first process, which takes all others with it → cgroups removed
//! destroy: stop → the directory is renamed into the trash, which is emptied in the background
//! ```
//!
//! A box is a directory below `native/boxes`; what a crash leaves half done there is repaired by [`Native::open`].

mod boxes;
mod cgroup;
mod disk;
mod machine;
mod nat;
mod record;
mod seccomp;
mod spawner;
mod sys;
mod template;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use dispense_api::error::reason;
use dispense_api::id::{Generation, SandboxId};
use dispense_spawner::{Instruction, Users};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::{Backend, BackendError, BoxExit, BoxReport, BoxSpec, BoxState, ByteStream, Capabilities, Network};
use boxes::Live;
use cgroup::Cgroups;
use disk::Images;
use nat::Nat;
use record::{Record, Stage};
use spawner::Spawner;
use template::Templates;

pub use machine::{Finding, Verdict, diagnose};

/// With less free space than this no box is made: those that live need it.
pub(crate) const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// How the backend is set up.
#[derive(Debug, Clone)]
pub struct NativeConfig {
    /// Boxes, templates and trash.
    pub state_dir: PathBuf,
    /// Templates by name, beside those in `<state_dir>/templates`.
    pub templates: BTreeMap<String, PathBuf>,
}

/// What is known of a box.
enum Known {
    /// With the process, while it lives.
    Box(Record, Option<Arc<Live>>),
    Broken(String),
}

/// The backend.
pub struct Native {
    folder: PathBuf,
    unusable: Option<String>,
    unenforced: BTreeMap<String, String>,
    as_root: bool,
    cgroups: Cgroups,
    /// Or why there is none.
    nat: Result<Nat, String>,
    templates: Templates,
    /// For disk limits, or why they are in memory.
    images: Result<Images, String>,
    filter: Vec<Instruction>,
    spawner: Arc<Spawner>,
    first_slot: u32,
    boxes: Mutex<HashMap<SandboxId, Known>>,
    background: TaskTracker,
}

impl Native {
    /// Opens the state directory, repairs what a crash left, and takes over the boxes that live.
    pub async fn open(config: NativeConfig) -> Result<Self, BackendError> {
        let failed = |error: io::Error| BackendError::failed(format!("open {}", config.state_dir.display()), error);
        let folder = config.state_dir.join("native");
        for name in ["boxes", "trash"] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join(name)).map_err(failed)?;
        }
        let folder = fs::canonicalize(folder).map_err(failed)?;
        let instance = instance(&folder);
        let as_root = machine::is_root();
        // Beside the rest, since it tries.
        let mut probe = JoinSet::new();
        let of = instance.clone();
        probe.spawn(async move { Nat::probe(&of, as_root).await });
        let (cgroups, unenforced) = Cgroups::probe(&instance);
        let mut native = Self {
            unusable: machine::unusable(),
            unenforced,
            as_root,
            cgroups,
            nat: Err("network `nat` was not tried".to_owned()),
            templates: Templates::open(&config.state_dir, config.templates, as_root)?,
            images: Images::probe(as_root),
            filter: seccomp::compile()?,
            spawner: Arc::new(Spawner::start(&folder)?),
            first_slot: u32::from_str_radix(&instance[..3], 16).unwrap_or(0) % machine::SLOTS,
            boxes: Mutex::default(),
            background: TaskTracker::new(),
            folder,
        };
        if let Some(Ok(nat)) = probe.join_next().await {
            native.nat = nat;
        }
        native.load().await?;
        native.empty_trash();
        Ok(native)
    }

    fn boxes(&self) -> MutexGuard<'_, HashMap<SandboxId, Known>> {
        self.boxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn box_dir(&self, sandbox: &SandboxId) -> PathBuf {
        self.folder.join("boxes").join(sandbox.as_str())
    }

    fn record(&self, sandbox: &SandboxId) -> Result<Record, BackendError> {
        match self.boxes().get(sandbox) {
            Some(Known::Box(record, _)) => Ok(record.clone()),
            Some(Known::Broken(why)) => Err(BackendError::failed(format!("use the box of {sandbox}"), why.clone())),
            None => Err(BackendError::Unknown(sandbox.clone())),
        }
    }

    fn live(&self, sandbox: &SandboxId) -> Option<Arc<Live>> {
        match self.boxes().get(sandbox) {
            Some(Known::Box(_, live)) => live.clone(),
            _ => None,
        }
    }

    /// Writes a record, then knows it.
    fn keep(&self, sandbox: &SandboxId, record: Record, live: Option<Arc<Live>>) -> Result<(), BackendError> {
        record
            .write(&self.box_dir(sandbox))
            .map_err(|error| BackendError::failed(format!("write the record of {sandbox}"), error))?;
        self.boxes().insert(sandbox.clone(), Known::Box(record, live));
        Ok(())
    }

    /// Ids of a new box; as root the first free range.
    fn users(&self) -> Result<(Users, Option<u32>), BackendError> {
        if !self.as_root {
            return Ok((machine::ordinary_users(), None));
        }
        let boxes = self.boxes();
        let used: BTreeSet<u32> = boxes
            .values()
            .filter_map(|known| match known {
                Known::Box(record, _) => record.slot,
                Known::Broken(_) => None,
            })
            .collect();
        let mut slots = (0..machine::SLOTS).map(|step| (self.first_slot + step) % machine::SLOTS);
        let slot = slots.find(|slot| !used.contains(slot));
        let slot = slot.ok_or_else(|| BackendError::Refused {
            reason: "runner_full",
            message: format!("this runner has {} sandboxes, which is all it has ids for: delete some", machine::SLOTS),
        })?;
        Ok((machine::root_users(slot), Some(slot)))
    }

    fn check(&self, spec: &BoxSpec) -> Result<BTreeMap<String, String>, BackendError> {
        let refused = |reason, message| Err(BackendError::Refused { reason, message });
        if let Some(why) = &self.unusable {
            return refused(reason::USER_NAMESPACES_OFF, why.clone());
        }
        self.templates.layers(&spec.template)?;
        if let (Network::Nat, Err(why)) = (spec.network, &self.nat) {
            return refused("network_unavailable", why.clone());
        }
        if spec.require_limits && !self.unenforced.is_empty() {
            let limits: Vec<String> = self.unenforced.iter().map(|(limit, why)| format!("{limit} ({why})")).collect();
            return refused(
                reason::LIMITS_UNENFORCED,
                format!("limits cannot be enforced on this runner: {}", limits.join("; ")),
            );
        }
        let free =
            rustix::fs::statvfs(&self.folder).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        if free < DISK_RESERVE_BYTES {
            return refused(
                reason::DISK_FULL,
                format!(
                    "the runner's disk is nearly full ({} MiB free in {}): free some space",
                    free >> 20,
                    self.folder.display()
                ),
            );
        }
        Ok(self.unenforced.clone())
    }
}

#[async_trait]
impl Backend for Native {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            backend: "native".to_owned(),
            templates: self.templates.names(),
            networks: if self.nat.is_ok() { vec![Network::None, Network::Nat] } else { vec![Network::None] },
            unenforced_limits: self.unenforced.clone(),
            disk_in_memory: self.images.as_ref().err().cloned(),
            unusable: self.unusable.clone(),
        }
    }

    async fn create(&self, spec: &BoxSpec) -> Result<(), BackendError> {
        if let Some(Known::Box(record, _)) = self.boxes().get(&spec.sandbox) {
            let there = Generation(record.generation);
            let same = record.spec(spec.sandbox.clone()) == *spec;
            return if same { Ok(()) } else { Err(BackendError::Exists(spec.sandbox.clone(), there)) };
        }
        let unenforced = self.check(spec)?;
        let (users, slot) = self.users()?;
        let folder = self.box_dir(&spec.sandbox);
        let made = (|| {
            fs::DirBuilder::new().mode(0o700).create(&folder)?;
            fs::create_dir(folder.join("root"))
        })();
        if let Err(error) = made {
            let _ = fs::remove_dir_all(&folder);
            return Err(BackendError::failed(format!("make the box of {}", spec.sandbox), error));
        }
        if let (Ok(images), bytes @ 1..) = (&self.images, spec.limits.disk_bytes)
            && let Err(error) = images.make(&folder, bytes).await
        {
            let _ = fs::remove_dir_all(&folder);
            return Err(BackendError::failed(format!("make the disk of {}", spec.sandbox), error));
        }
        let kept = self.keep(&spec.sandbox, Record::new(spec, users, slot, unenforced), None);
        if kept.is_err() {
            let _ = fs::remove_dir_all(&folder);
        }
        kept
    }

    async fn adopt(&self, sandbox: &SandboxId) -> Result<(), BackendError> {
        self.record(sandbox)?;
        self.live(sandbox).map(drop).ok_or_else(|| BackendError::NotRunning(sandbox.clone()))
    }

    async fn start(&self, sandbox: &SandboxId) -> Result<(), BackendError> {
        let record = self.record(sandbox)?;
        if self.live(sandbox).is_some_and(|live| !live.has_ended()) {
            return Ok(());
        }
        self.start_box(sandbox, record).await
    }

    async fn stop(&self, sandbox: &SandboxId) -> Result<(), BackendError> {
        let mut record = self.record(sandbox)?;
        self.kill(sandbox).await?;
        self.detach(sandbox, &record).await;
        if record.stage != Stage::Stopped {
            record.stage = Stage::Stopped;
            self.keep(sandbox, record, None)?;
        }
        self.cgroups.remove(sandbox).await
    }

    async fn destroy(&self, sandbox: &SandboxId) -> Result<(), BackendError> {
        if !self.boxes().contains_key(sandbox) {
            return Ok(());
        }
        let mut errors = Vec::new();
        // Teardown goes on to the end; what could not be done is told together.
        for result in [self.kill(sandbox).await, self.cgroups.remove(sandbox).await] {
            errors.extend(result.err().map(|error| error.to_string()));
        }
        let record = self.record(sandbox).ok();
        if let Some(record) = &record {
            self.detach(sandbox, record).await;
        }
        let users = record.map_or_else(machine::ordinary_users, |record| record.users);
        match self.discard(sandbox, users) {
            Ok(()) if errors.is_empty() => {
                self.boxes().remove(sandbox);
                Ok(())
            }
            result => {
                errors.extend(result.err().map(|error| error.to_string()));
                Err(BackendError::failed(format!("remove the box of {sandbox}"), errors.join("; ")))
            }
        }
    }

    async fn list(&self) -> Result<Vec<BoxReport>, BackendError> {
        let boxes = self.boxes();
        let reports = boxes.iter().map(|(sandbox, known)| match known {
            Known::Box(record, live) => BoxReport {
                sandbox: sandbox.clone(),
                generation: Generation(record.generation),
                state: if live.as_ref().is_some_and(|live| !live.has_ended()) {
                    BoxState::Running
                } else {
                    BoxState::Stopped
                },
                unenforced_limits: record.unenforced.clone(),
            },
            Known::Broken(why) => BoxReport {
                sandbox: sandbox.clone(),
                generation: Generation::default(),
                state: BoxState::Broken(why.clone()),
                unenforced_limits: BTreeMap::new(),
            },
        });
        Ok(reports.collect())
    }

    async fn dial(&self, sandbox: &SandboxId) -> Result<Box<dyn ByteStream>, BackendError> {
        let live = self.live(sandbox).filter(|live| !live.has_ended());
        if live.is_none() {
            self.record(sandbox)?;
            return Err(BackendError::NotRunning(sandbox.clone()));
        }
        let failed = |error: io::Error| BackendError::failed(format!("dial the agent of {sandbox}"), error);
        let folder = fs::File::open(self.box_dir(sandbox)).map_err(failed)?;
        let stream = UnixStream::connect(boxes::socket_path(folder.as_raw_fd())).await.map_err(failed)?;
        Ok(Box::new(stream))
    }

    async fn wait(&self, sandbox: &SandboxId) -> Result<BoxExit, BackendError> {
        self.record(sandbox)?;
        if let Some(live) = self.live(sandbox) {
            live.ended().await;
        }
        Ok(BoxExit { out_of_memory: self.cgroups.out_of_memory(sandbox) })
    }

    async fn close(&self) {
        // Boxes have left theirs when their files go into the trash.
        self.cgroups.close();
        self.background.close();
        self.background.wait().await;
    }
}

/// A short name of a state directory, stable over restarts: leaks can be told by it.
pub(crate) fn instance(folder: &Path) -> String {
    use sha2::{Digest, Sha256};
    use std::os::unix::ffi::OsStrExt;
    let digest = Sha256::digest(folder.as_os_str().as_bytes());
    digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}
