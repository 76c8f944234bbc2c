//! What the backend keeps of each box: `record.json` in the box's directory, written before acting.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use dispense_api::id::{Generation, SandboxId};
use dispense_spawner::Users;
use serde::{Deserialize, Serialize};

use crate::{BoxSpec, Limits, Network};

const FILE: &str = "record.json";

/// The first process of a started box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// In clock ticks since the machine's start: with the pid it names one process for ever.
    pub(super) started_ticks: u64,
}

/// How far a box is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// Made, or stopped.
    Stopped,
    /// The spawner is being asked: a crash here leaves processes that no record names.
    Starting,
    Started(Process),
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) sandbox: String,
    pub(super) generation: u64,
    pub(super) stage: Stage,
    pub(super) users: Users,
    /// Its place in the range of ids, as root.
    pub(super) slot: Option<u32>,
    /// Started at least once: files in memory are lost by now.
    pub(super) was_started: bool,
    pub(super) unenforced: BTreeMap<String, String>,
    template: String,
    hostname: String,
    env: BTreeMap<String, String>,
    pub(super) nat: bool,
    cpu_millis: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    pids: u32,
    require_limits: bool,
}

impl Record {
    pub(super) fn new(spec: &BoxSpec, users: Users, slot: Option<u32>, unenforced: BTreeMap<String, String>) -> Self {
        Self {
            sandbox: spec.sandbox.to_string(),
            generation: spec.generation.0,
            stage: Stage::Stopped,
            users,
            slot,
            was_started: false,
            unenforced,
            template: spec.template.clone(),
            hostname: spec.hostname.clone(),
            env: spec.env.clone(),
            nat: spec.network == Network::Nat,
            cpu_millis: spec.limits.cpu_millis,
            memory_bytes: spec.limits.memory_bytes,
            disk_bytes: spec.limits.disk_bytes,
            pids: spec.limits.pids,
            require_limits: spec.require_limits,
        }
    }

    /// What was asked for.
    pub(super) fn spec(&self, sandbox: SandboxId) -> BoxSpec {
        BoxSpec {
            sandbox,
            generation: Generation(self.generation),
            template: self.template.clone(),
            limits: Limits {
                cpu_millis: self.cpu_millis,
                memory_bytes: self.memory_bytes,
                disk_bytes: self.disk_bytes,
                pids: self.pids,
            },
            require_limits: self.require_limits,
            network: if self.nat { Network::Nat } else { Network::None },
            hostname: self.hostname.clone(),
            env: self.env.clone(),
        }
    }

    /// Writes it. A crash leaves the old record or the new one.
    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        let fresh = folder.join("record.new");
        let mut file = fs::File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&fresh, folder.join(FILE))
    }

    /// Reads the record of a box's directory.
    pub(super) fn read(folder: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(folder.join(FILE))?)?)
    }
}

impl Process {
    /// The process of this pid as it is now.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Fields are counted behind the name, which may have anything in it.
        let started_ticks = text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, started_ticks })
    }

    /// Whether it still lives.
    pub(super) fn lives(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now == *self)
    }
}
