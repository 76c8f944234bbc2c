//! What REST sends and takes: one struct for each JSON object.

use std::collections::BTreeMap;

use dispense_api::error::Error;
use dispense_api::v1;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::fleet::RunnerView;
use crate::job::Job;
use crate::placement::Room;
use crate::sandbox::Sandbox;
use crate::sandbox::service::Sandboxes;
use crate::sandbox::spec::invalid;

#[derive(Serialize, JsonSchema)]
pub(super) struct ErrorJson<'a> {
    pub(super) code: &'a str,
    pub(super) reason: &'a str,
    pub(super) message: &'a str,
    pub(super) details: &'a BTreeMap<String, String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SandboxesJson {
    pub(super) sandboxes: Vec<SandboxJson>,
    pub(super) next_page_token: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SandboxJson {
    id: String,
    name: String,
    state: &'static str,
    reason: String,
    group: String,
    labels: BTreeMap<String, String>,
    spec: SpecJson,
    runner_id: String,
    generation: u64,
    revision: u64,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_info: Option<AgentJson>,
    unenforced_limits: BTreeMap<String, String>,
    /// Why its disk is in memory, so that its files are lost when it stops; empty where they are kept.
    disk_in_memory: String,
    waiting_for: BTreeMap<String, String>,
    job_id: String,
}

/// Of a request and of an answer; what is not given is the server's default.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct SpecJson {
    template: String,
    cpu_millis: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    pids: u32,
    network: String,
    env: BTreeMap<String, String>,
    workdir: String,
    user: String,
    ttl_secs: u32,
    lease_secs: u32,
    require_limits: bool,
    /// Neither SSH nor the workspace.
    skip_services: bool,
    target: String,
    auto_stop_mins: u32,
    #[serde(default)]
    locality: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<ContentJson>,
}

/// What is in the workspace at first: a directory of the runner's machine.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ContentJson {
    directory: String,
    branch: String,
    reset_branch: bool,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct AgentJson {
    last_heartbeat: String,
    hostname: String,
    ip_address: String,
    metrics: MetricsJson,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct MetricsJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_percent: Option<f64>,
    #[serde(rename = "memoryMB", skip_serializing_if = "Option::is_none")]
    memory_mb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_count: Option<u32>,
}

/// The body of a create.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CreateJson {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) spec: SpecJson,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) group: String,
    #[serde(default)]
    pub(super) wait: bool,
    #[serde(default)]
    pub(super) timeout_secs: u32,
}

impl TryFrom<SpecJson> for v1::SandboxSpec {
    type Error = Error;

    fn try_from(json: SpecJson) -> Result<Self, Error> {
        let network = match json.network.as_str() {
            "" => v1::Network::Unspecified,
            "none" => v1::Network::None,
            "nat" => v1::Network::Nat,
            _ => return Err(invalid("spec.network", "use `none` or `nat`")),
        };
        Ok(Self {
            template: json.template,
            resources: Some(v1::Resources {
                cpu_millis: json.cpu_millis,
                memory_bytes: json.memory_bytes,
                disk_bytes: json.disk_bytes,
                pids: json.pids,
            }),
            network: network.into(),
            env: json.env.into_iter().collect(),
            workdir: json.workdir,
            user: json.user,
            ttl_secs: json.ttl_secs,
            lease_secs: json.lease_secs,
            require_limits: json.require_limits,
            skip_services: json.skip_services,
            target: json.target,
            auto_stop_mins: json.auto_stop_mins,
            locality: match json.locality.as_str() {
                "" => v1::Locality::Unspecified,
                "local" => v1::Locality::Local,
                "remote" => v1::Locality::Remote,
                _ => return Err(invalid("spec.locality", "use `local` or `remote`")),
            }
            .into(),
            content: json.content.map(|ContentJson { directory, branch, reset_branch }| v1::Content {
                directory,
                branch,
                reset_branch,
            }),
        })
    }
}

impl SandboxJson {
    pub(super) fn new(sandboxes: &Sandboxes, sandbox: &Sandbox) -> Self {
        let spec = &sandbox.spec;
        let agent = sandboxes.agents.info(&sandbox.id).map(|info| AgentJson {
            last_heartbeat: time(info.at),
            hostname: info.report.hostname,
            ip_address: info.report.ip_address,
            metrics: MetricsJson {
                cpu_percent: info.report.cpu_percent,
                memory_mb: info.report.memory_mb,
                session_count: info.report.session_count,
            },
        });
        Self {
            id: sandbox.id.to_string(),
            name: sandbox.name.clone(),
            state: sandbox.life.observed.as_str(),
            reason: sandbox.reason.clone(),
            group: sandbox.group.clone(),
            labels: sandbox.labels.clone(),
            spec: SpecJson {
                template: spec.template.clone(),
                cpu_millis: spec.cpu_millis,
                memory_bytes: spec.memory_bytes,
                disk_bytes: spec.disk_bytes,
                pids: spec.pids,
                network: spec.network.as_str().to_owned(),
                env: spec.env.clone(),
                workdir: spec.workdir.clone(),
                user: spec.user.clone(),
                ttl_secs: spec.ttl_secs,
                lease_secs: spec.lease_secs,
                require_limits: spec.require_limits,
                skip_services: spec.skip_services,
                target: spec.target.clone(),
                auto_stop_mins: spec.auto_stop_mins,
                locality: spec.locality.as_str().to_owned(),
                content: spec.content.as_ref().map(|content| ContentJson {
                    directory: content.directory.clone(),
                    branch: content.branch.clone(),
                    reset_branch: content.reset_branch,
                }),
            },
            runner_id: sandbox.runner.as_ref().map(ToString::to_string).unwrap_or_default(),
            generation: sandbox.life.generation.0,
            revision: sandbox.revision,
            created_at: time(sandbox.created_at),
            started_at: sandbox.started_at.map(time),
            stopped_at: sandbox.stopped_at.map(time),
            expires_at: sandbox.expires_at.map(time),
            agent_info: agent,
            unenforced_limits: sandboxes.unenforced(sandbox),
            disk_in_memory: sandboxes.disk_in_memory(sandbox),
            waiting_for: sandboxes.waiting_for(sandbox).into_iter().collect(),
            job_id: sandbox.job.to_string(),
        }
    }
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct JobsJson {
    pub(super) jobs: Vec<JobJson>,
    pub(super) next_page_token: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct JobJson {
    id: String,
    r#type: &'static str,
    sandbox_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    runner_id: Option<String>,
    status: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(default)]
    error: String,
    created_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
}

impl From<&Job> for JobJson {
    fn from(job: &Job) -> Self {
        Self {
            id: job.id.to_string(),
            r#type: job.kind.as_str(),
            sandbox_id: job.sandbox.to_string(),
            runner_id: job.runner.as_ref().map(ToString::to_string),
            status: job.status.as_str(),
            error: job.error.clone(),
            created_at: time(job.created_at),
            started_at: job.started_at.map(time),
            finished_at: job.finished_at.map(time),
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub(super) struct RunnersJson {
    pub(super) runners: Vec<RunnerJson>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunnerJson {
    id: String,
    name: String,
    status: &'static str,
    address: String,
    capacity: RoomJson,
    used: RoomJson,
    labels: BTreeMap<String, String>,
    backends: Vec<String>,
    templates: Vec<String>,
    networks: Vec<&'static str>,
    version: String,
    last_heartbeat: String,
    joined_at: String,
    unenforced_limits: BTreeMap<String, String>,
    /// Why a disk with a limit is in memory, and lost when its sandbox stops; empty where it is kept.
    disk_in_memory: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RoomJson {
    cpu_millis: u64,
    memory_bytes: u64,
    disk_bytes: u64,
    sandboxes: u64,
}

impl From<Room> for RoomJson {
    fn from(room: Room) -> Self {
        Self {
            cpu_millis: room.cpu_millis,
            memory_bytes: room.memory_bytes,
            disk_bytes: room.disk_bytes,
            sandboxes: room.sandboxes,
        }
    }
}

impl From<RunnerView> for RunnerJson {
    fn from(view: RunnerView) -> Self {
        let facts = view.known.facts;
        Self {
            id: view.known.id.to_string(),
            name: facts.name,
            status: view.status.as_str(),
            address: facts.address,
            capacity: facts.capacity.into(),
            used: view.used.into(),
            labels: facts.labels,
            backends: facts.backends,
            templates: facts.templates,
            networks: facts.networks.iter().map(|network| network.as_str()).collect(),
            version: facts.version,
            last_heartbeat: time(view.known.last_seen_at),
            joined_at: time(view.known.joined_at),
            unenforced_limits: facts.unenforced,
            disk_in_memory: facts.disk_in_memory,
        }
    }
}

/// RFC 3339.
pub(super) fn time(micros: i64) -> String {
    let nanos = i128::from(micros) * 1000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}
