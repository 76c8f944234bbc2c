//! `SandboxInfo` from a row.

use std::collections::BTreeMap;

use dispense_api::service::{SandboxInfo, SandboxType};

use crate::sandbox::Sandbox;
use crate::sandbox::service::Sandboxes;
use crate::sandbox::spec::Locality;
use crate::sandbox::view::timestamp;

/// A row as this service tells it; `verbose` adds what only some want.
pub(super) fn info(sandboxes: &Sandboxes, row: &Sandbox, verbose: bool) -> SandboxInfo {
    SandboxInfo {
        id: row.id.to_string(),
        name: row.name.clone(),
        r#type: kind(sandboxes, row).into(),
        state: row.life.observed.as_str().to_owned(),
        shell_command: format!("dispense shell {}", row.name),
        created_at: Some(timestamp(row.created_at)),
        group: row.group.clone(),
        metadata: if verbose { metadata(sandboxes, row) } else { BTreeMap::new() },
    }
}

/// Where it is; of one that waits, where it is to be.
fn kind(sandboxes: &Sandboxes, row: &Sandbox) -> SandboxType {
    let local = match (&row.runner, row.spec.locality) {
        (Some(runner), _) => sandboxes.fleet.is_local(runner),
        (None, Locality::Local) => Some(true),
        (None, Locality::Remote) => Some(false),
        (None, Locality::Any) => None,
    };
    match local {
        Some(true) => SandboxType::Local,
        Some(false) => SandboxType::Remote,
        None => SandboxType::Unspecified,
    }
}

fn metadata(sandboxes: &Sandboxes, row: &Sandbox) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> =
        row.labels.iter().map(|(key, value)| (format!("label.{key}"), value.clone())).collect();
    let mut tell = |key: &str, value: String| {
        if !value.is_empty() {
            all.insert(key.to_owned(), value);
        }
    };
    tell("generation", row.life.generation.to_string());
    tell("revision", row.revision.to_string());
    tell("template", row.spec.template.clone());
    tell("cpu_millis", row.spec.cpu_millis.to_string());
    tell("memory_bytes", row.spec.memory_bytes.to_string());
    tell("network", row.spec.network.as_str().to_owned());
    tell("reason", row.reason.clone());
    tell("runner", row.runner.as_ref().map(ToString::to_string).unwrap_or_default());
    tell("owner", row.owner.clone());
    for (runner, why) in sandboxes.waiting_for(row) {
        tell(&format!("waiting_for.{runner}"), why);
    }
    all
}
