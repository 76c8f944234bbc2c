//! Results as tables for people, and as JSON for programs: camelCase names, as REST has them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use comfy_table::{Table, presets};
use dispense_client::v1;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::units::show_bytes;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxJson {
    id: String,
    name: String,
    state: &'static str,
    reason: String,
    group: String,
    labels: BTreeMap<String, String>,
    template: String,
    cpu_millis: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    pids: u32,
    network: &'static str,
    runner_id: String,
    generation: u64,
    revision: u64,
    created_at: Option<String>,
    started_at: Option<String>,
    stopped_at: Option<String>,
    expires_at: Option<String>,
    agent_info: Option<AgentJson>,
    unenforced_limits: BTreeMap<String, String>,
    disk_in_memory: String,
    waiting_for: BTreeMap<String, String>,
    job_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AgentJson {
    last_heartbeat: Option<String>,
    hostname: String,
    ip_address: String,
    cpu_percent: Option<f64>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<u64>,
    session_count: Option<u32>,
    uptime_secs: u64,
}

impl From<v1::Sandbox> for SandboxJson {
    fn from(sandbox: v1::Sandbox) -> Self {
        let state = state(sandbox.state());
        let spec = sandbox.spec.unwrap_or_default();
        let network = match spec.network() {
            v1::Network::Nat => "nat",
            v1::Network::None | v1::Network::Unspecified => "none",
        };
        let resources = spec.resources.unwrap_or_default();
        Self {
            id: sandbox.id,
            name: sandbox.name,
            state,
            reason: sandbox.reason,
            group: sandbox.group,
            labels: sandbox.labels,
            template: spec.template,
            cpu_millis: resources.cpu_millis,
            memory_bytes: resources.memory_bytes,
            disk_bytes: resources.disk_bytes,
            pids: resources.pids,
            network,
            runner_id: sandbox.runner_id,
            generation: sandbox.generation,
            revision: sandbox.revision,
            created_at: sandbox.created_at.as_ref().map(rfc3339),
            started_at: sandbox.started_at.as_ref().map(rfc3339),
            stopped_at: sandbox.stopped_at.as_ref().map(rfc3339),
            expires_at: sandbox.expires_at.as_ref().map(rfc3339),
            agent_info: sandbox.agent.map(|agent| AgentJson {
                last_heartbeat: agent.last_heartbeat.as_ref().map(rfc3339),
                hostname: agent.hostname,
                ip_address: agent.ip_address,
                cpu_percent: agent.cpu_percent,
                memory_mb: agent.memory_mb,
                session_count: agent.session_count,
                uptime_secs: agent.uptime_secs,
            }),
            unenforced_limits: sandbox.unenforced_limits,
            disk_in_memory: sandbox.disk_in_memory,
            waiting_for: sandbox.waiting_for,
            job_id: sandbox.job_id,
        }
    }
}

/// Prints a line on stdout.
macro_rules! say {
    ($($part:tt)*) => {
        $crate::show::line(&format!($($part)*))
    };
}
pub(crate) use say;

/// Exit code of a program whose reader has left: as if SIGPIPE had ended it.
const READER_GONE: i32 = 128 + 13;

/// Writes a line on stdout. When nobody reads it the program ends quietly, as others do in a pipe.
pub(crate) fn line(text: &str) {
    if writeln!(io::stdout(), "{text}").is_err() {
        std::process::exit(READER_GONE);
    }
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) {
    say!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
}

/// A table without frames.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table
}

/// Prints a table without trailing blanks.
pub(crate) fn print(table: &Table) {
    for line in table.to_string().lines() {
        say!("{}", line.trim_end().trim_start_matches(' '));
    }
}

/// A table of sandboxes.
pub(crate) fn sandboxes(rows: &[v1::Sandbox]) {
    let mut table = table(&["NAME", "STATE", "TEMPLATE", "CPU", "MEMORY", "AGE", "ID"]);
    for row in rows {
        let spec = row.spec.clone().unwrap_or_default();
        let resources = spec.resources.unwrap_or_default();
        table.add_row([
            row.name.clone(),
            state(row.state()).to_owned(),
            spec.template,
            cores(resources.cpu_millis),
            show_bytes(resources.memory_bytes),
            row.created_at.as_ref().map(age).unwrap_or_default(),
            row.id.clone(),
        ]);
    }
    print(&table);
}

/// One sandbox, a line a fact.
pub(crate) fn sandbox(row: &v1::Sandbox) {
    let spec = row.spec.clone().unwrap_or_default();
    let resources = spec.resources.unwrap_or_default();
    let disk = if resources.disk_bytes == 0 { "-".to_owned() } else { show_bytes(resources.disk_bytes) };
    let reason = if row.reason.is_empty() { String::new() } else { format!(": {}", row.reason) };
    let mut facts = vec![
        ("name", row.name.clone()),
        ("id", row.id.clone()),
        ("state", format!("{}{reason}", state(row.state()))),
        ("template", spec.template),
        (
            "limits",
            format!(
                "{} cores, {} memory, {disk} disk, {} processes",
                cores(resources.cpu_millis),
                show_bytes(resources.memory_bytes),
                resources.pids
            ),
        ),
        ("runner", row.runner_id.clone()),
        ("created", row.created_at.as_ref().map(|at| format!("{} ago", age(at))).unwrap_or_default()),
        ("expires", row.expires_at.as_ref().map(rfc3339).unwrap_or_default()),
        ("group", row.group.clone()),
        ("labels", row.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")),
    ];
    if let Some(agent) = &row.agent {
        let memory = agent.memory_mb.map(|mb| format!("{mb} MB")).unwrap_or_default();
        let cpu = agent.cpu_percent.map(|cpu| format!("{cpu:.1} % cpu, ")).unwrap_or_default();
        facts.push(("uses", format!("{cpu}{memory}")));
    }
    facts.extend(row.unenforced_limits.iter().map(|(limit, why)| ("not enforced", format!("{limit}: {why}"))));
    if !row.disk_in_memory.is_empty() {
        facts.push(("disk", format!("in memory, lost when the sandbox stops: {}", row.disk_in_memory)));
    }
    facts.extend(row.waiting_for.iter().map(|(runner, why)| ("waits", format!("{runner} {why}"))));
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        say!("{name:<13} {value}");
    }
}

/// The name of a state.
pub(crate) fn state(state: v1::SandboxState) -> &'static str {
    match state {
        v1::SandboxState::Unspecified => "unknown",
        v1::SandboxState::Pending => "pending",
        v1::SandboxState::Starting => "starting",
        v1::SandboxState::Running => "running",
        v1::SandboxState::Paused => "paused",
        v1::SandboxState::Stopping => "stopping",
        v1::SandboxState::Stopped => "stopped",
        v1::SandboxState::Failed => "failed",
        v1::SandboxState::Lost => "lost",
        v1::SandboxState::Deleting => "deleting",
        v1::SandboxState::Deleted => "deleted",
    }
}

/// Cores, e.g. `0.5`.
pub(crate) fn cores(millis: u32) -> String {
    format!("{}", f64::from(millis) / 1000.0)
}

/// RFC 3339.
pub(crate) fn rfc3339(at: &prost_types::Timestamp) -> String {
    let nanos = i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

/// How long ago, in the largest unit.
pub(crate) fn age(at: &prost_types::Timestamp) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let secs = now.saturating_sub(Duration::from_secs(at.seconds.try_into().unwrap_or(0))).as_secs();
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}
