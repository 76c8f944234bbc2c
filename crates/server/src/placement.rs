//! Where a sandbox goes: a pure function of what it needs and what the runners have.
//!
//! Spread: of those that fit, the runner whose tightest share would be least used. Ties go to the smaller
//! id, so that the same problem has the same solution.

use std::collections::BTreeMap;

use dispense_api::id::RunnerId;
use dispense_api::location;

use crate::sandbox::spec::{Locality, Network, Spec};

/// Room in four dimensions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Room {
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) sandboxes: u64,
}

impl Room {
    /// What one sandbox takes.
    pub(crate) fn of(spec: &Spec) -> Self {
        Self {
            cpu_millis: spec.cpu_millis.into(),
            memory_bytes: spec.memory_bytes,
            disk_bytes: spec.disk_bytes,
            sandboxes: 1,
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_add(other.disk_bytes),
            sandboxes: self.sandboxes.saturating_add(other.sandboxes),
        }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(other.disk_bytes),
            sandboxes: self.sandboxes.saturating_sub(other.sandboxes),
        }
    }

    /// The first dimension in which `self` is more than `room`, with both values.
    fn over(&self, room: &Self) -> Option<(&'static str, u64, u64)> {
        let dimensions = [
            ("thousandths of a core", self.cpu_millis, room.cpu_millis),
            ("bytes of memory", self.memory_bytes, room.memory_bytes),
            ("bytes of disk", self.disk_bytes, room.disk_bytes),
            ("sandboxes", self.sandboxes, room.sandboxes),
        ];
        dimensions.into_iter().find(|(_, wanted, there)| wanted > there)
    }

    /// The tightest share of `whole` that is used, in millionths.
    fn share(&self, whole: &Self) -> u128 {
        let share = |part: u64, whole: u64| u128::from(part) * 1_000_000 / u128::from(whole.max(1));
        share(self.cpu_millis, whole.cpu_millis)
            .max(share(self.memory_bytes, whole.memory_bytes))
            .max(share(self.sandboxes, whole.sandboxes))
    }
}

/// The label that says where a runner is.
const REGION: &str = "region";

/// Which runner a caller insists on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Any,
    /// A runner's id or name, its region, which is the value of its label `region`, or a label that it has.
    Named(String),
    Label(String, String),
}

impl Target {
    /// Parses `spec.target`.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const TARGET_MAX_BYTES: usize = 512;
        if text.len() > TARGET_MAX_BYTES || text.chars().any(char::is_control) {
            return Err("is neither a runner's id or name, nor a region, nor a label `key` or `key=value`");
        }
        Ok(match text.split_once('=') {
            _ if text.is_empty() => Self::Any,
            Some((key, value)) => Self::Label(key.to_owned(), value.to_owned()),
            None => Self::Named(text.to_owned()),
        })
    }
}

/// A runner, as placement sees it.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) id: RunnerId,
    pub(crate) name: String,
    /// On the server's own machine.
    pub(crate) local: bool,
    pub(crate) connected: bool,
    /// It takes new sandboxes.
    pub(crate) open: bool,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) templates: Vec<String>,
    pub(crate) networks: Vec<Network>,
    /// Directories that sandboxes may be filled from.
    pub(crate) source_roots: Vec<String>,
    pub(crate) unenforced: BTreeMap<String, String>,
    pub(crate) capacity: Room,
    pub(crate) used: Room,
}

/// Why a runner does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// It is not what the target says.
    NotTarget,
    /// It is on the server's machine, or is not, and the other was asked for.
    Elsewhere(Locality),
    Offline,
    /// It takes nothing new.
    Closed,
    /// It does not have the template.
    Template,
    /// It does not share the directory that the workspace is filled from; with those that it shares.
    Content(Vec<String>),
    /// It cannot make that network.
    Network(&'static str),
    /// It cannot enforce limits that must be, each with the reason.
    Unenforced(Vec<(String, String)>),
    /// It will never have the room.
    TooLarge(&'static str, u64, u64),
    /// It does not have the room now.
    Full(&'static str, u64, u64),
}

impl Misfit {
    /// Whether waiting can help.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Offline | Self::Closed | Self::Full(..) => true,
            Self::NotTarget
            | Self::Elsewhere(_)
            | Self::Template
            | Self::Content(_)
            | Self::Network(_)
            | Self::Unenforced(..)
            | Self::TooLarge(..) => false,
        }
    }
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotTarget => write!(f, "has not that name, region or label"),
            Self::Elsewhere(Locality::Remote) => write!(f, "is on the server's machine"),
            Self::Elsewhere(_) => write!(f, "is not on the server's machine"),
            Self::Offline => write!(f, "is offline"),
            Self::Closed => write!(f, "takes nothing new (cordoned or draining)"),
            Self::Template => write!(f, "does not have the template"),
            Self::Content(roots) if roots.is_empty() => {
                write!(f, "shares nothing")
            }
            Self::Content(roots) => write!(f, "shares only {}", roots.join(", ")),
            Self::Network(network) => write!(f, "cannot make network `{network}`"),
            Self::Unenforced(limits) => {
                // Mostly it is one reason for all.
                let groups = limits.chunk_by(|one, next| one.1 == next.1).map(|group| {
                    let names: Vec<&str> = group.iter().map(|(limit, _)| limit.as_str()).collect();
                    format!("{} ({})", names.join(", "), group[0].1)
                });
                write!(f, "cannot enforce the limits of {}", groups.collect::<Vec<_>>().join(", "))
            }
            Self::TooLarge(what, wanted, there) => {
                write!(f, "has {} in all, {} is asked for", amount(*there, what), amount(*wanted, what))
            }
            Self::Full(what, wanted, there) => {
                write!(f, "has {} left, {} is asked for", amount(*there, what), amount(*wanted, what))
            }
        }
    }
}

/// An amount as people read it.
fn amount(value: u64, what: &str) -> String {
    const GIB: u64 = 1 << 30;
    match what.strip_prefix("bytes of ") {
        Some(kind) if value >= GIB => format!("{} GiB of {kind}", value / GIB),
        Some(kind) => format!("{} MiB of {kind}", value >> 20),
        None => format!("{value} {what}"),
    }
}

/// Places one sandbox, or says of each runner why it does not fit.
pub(crate) fn place(spec: &Spec, runners: &[Candidate]) -> Result<RunnerId, Vec<(RunnerId, Misfit)>> {
    let mut misfits = Vec::new();
    let mut best: Option<(u128, &RunnerId)> = None;
    for runner in runners {
        match misfit(spec, runner) {
            Some(misfit) => misfits.push((runner.id.clone(), misfit)),
            None => {
                let share = runner.used.plus(Room::of(spec)).share(&runner.capacity);
                if best.is_none_or(|best| (share, &runner.id) < best) {
                    best = Some((share, &runner.id));
                }
            }
        }
    }
    best.map(|(_, id)| id.clone()).ok_or(misfits)
}

fn misfit(spec: &Spec, runner: &Candidate) -> Option<Misfit> {
    let on_target = match Target::parse(&spec.target) {
        Ok(Target::Any) => true,
        Ok(Target::Named(target)) => {
            let is_runner = target == runner.id.as_str() || target == runner.name;
            is_runner || runner.labels.get(REGION) == Some(&target) || runner.labels.contains_key(&target)
        }
        Ok(Target::Label(key, value)) => runner.labels.get(&key) == Some(&value),
        Err(_) => false,
    };
    if !on_target {
        return Some(Misfit::NotTarget);
    }
    if (spec.locality == Locality::Local && !runner.local) || (spec.locality == Locality::Remote && runner.local) {
        return Some(Misfit::Elsewhere(spec.locality));
    }
    if !runner.templates.contains(&spec.template) {
        return Some(Misfit::Template);
    }
    let within = |directory: &str| runner.source_roots.iter().any(|root| location::is_within(directory, root));
    if spec.content.as_ref().is_some_and(|content| !within(&content.directory)) {
        return Some(Misfit::Content(runner.source_roots.clone()));
    }
    if !runner.networks.contains(&spec.network) {
        return Some(Misfit::Network(spec.network.as_str()));
    }
    let unenforced = || {
        let asked = runner.unenforced.iter().filter(|(limit, _)| *limit != "disk" || spec.disk_bytes > 0);
        asked.map(|(limit, why)| (limit.clone(), why.clone())).collect::<Vec<_>>()
    };
    if spec.require_limits && !unenforced().is_empty() {
        return Some(Misfit::Unenforced(unenforced()));
    }
    let wanted = Room::of(spec);
    if let Some((what, wanted, there)) = wanted.over(&runner.capacity) {
        return Some(Misfit::TooLarge(what, wanted, there));
    }
    if !runner.connected {
        return Some(Misfit::Offline);
    }
    if !runner.open {
        return Some(Misfit::Closed);
    }
    let left = runner.capacity.minus(runner.used);
    wanted.over(&left).map(|(what, wanted, there)| Misfit::Full(what, wanted, there))
}

#[cfg(test)]
mod tests;
