//! Sandboxes: the row, its policy, and everything that changes it.

pub(crate) mod agents;
mod change;
pub(crate) mod create;
pub(crate) mod environment;
pub(crate) mod lifecycle;
pub(crate) mod live;
pub(crate) mod logs;
pub(crate) mod names;
pub(crate) mod notices;
pub(crate) mod order;
pub(crate) mod reconcile;
pub(crate) mod service;
pub(crate) mod spec;
pub(crate) mod usage;
pub(crate) mod view;
pub(crate) mod visible;

use std::collections::BTreeMap;

use dispense_api::id::{JobId, RunnerId, SandboxId};

use lifecycle::Lifecycle;
use spec::Spec;

/// One sandbox, as the store keeps it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) name: String,
    pub(crate) group: String,
    /// The account that created it.
    pub(crate) owner: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) spec: Spec,
    pub(crate) life: Lifecycle,
    /// One sentence: why it is failed, lost or pending.
    pub(crate) reason: String,
    /// Grows with every published change.
    pub(crate) revision: u64,
    pub(crate) runner: Option<RunnerId>,
    pub(crate) unenforced: BTreeMap<String, String>,
    /// The record of the last wanted change.
    pub(crate) job: JobId,
    pub(crate) created_at: i64,
    pub(crate) started_at: Option<i64>,
    pub(crate) stopped_at: Option<i64>,
    pub(crate) deleted_at: Option<i64>,
    pub(crate) expires_at: Option<i64>,
    pub(crate) lease_until: Option<i64>,
    /// Nothing of it is left on any runner.
    pub(crate) box_gone: bool,
}
