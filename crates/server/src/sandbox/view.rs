//! From rows to what clients of `dispense.v1` see.

use dispense_api::v1;
use prost_types::Timestamp;

use super::Sandbox;
use super::agents::AgentInfo;
use super::lifecycle::State;
use super::service::Sandboxes;
use crate::clock::MICROS_PER_SEC;
use crate::fleet::{RunnerStatus, RunnerView};
use crate::metrics::Census;
use crate::store::{StoreError, jobs, sandboxes};

impl Sandboxes {
    /// One sandbox, with what is known of it now.
    pub(crate) fn view(&self, sandbox: &Sandbox) -> v1::Sandbox {
        v1::Sandbox {
            id: sandbox.id.to_string(),
            name: sandbox.name.clone(),
            state: wire_state(sandbox.life.observed).into(),
            reason: sandbox.reason.clone(),
            group: sandbox.group.clone(),
            labels: sandbox.labels.clone().into_iter().collect(),
            spec: Some(sandbox.spec.wire()),
            runner_id: sandbox.runner.as_ref().map(ToString::to_string).unwrap_or_default(),
            generation: sandbox.life.generation.0,
            revision: sandbox.revision,
            created_at: Some(timestamp(sandbox.created_at)),
            started_at: sandbox.started_at.map(timestamp),
            stopped_at: sandbox.stopped_at.map(timestamp),
            expires_at: sandbox.expires_at.map(timestamp),
            agent: self.agents.info(&sandbox.id).map(agent),
            unenforced_limits: self.unenforced(sandbox),
            waiting_for: self.waiting_for(sandbox).into_iter().collect(),
            job_id: sandbox.job.to_string(),
            owner: sandbox.owner.clone(),
            disk_in_memory: self.disk_in_memory(sandbox),
        }
    }

    /// How many there are, of everything.
    pub(crate) async fn census(&self) -> Result<Census, StoreError> {
        let readers = self.store.readers();
        let now = self.clock.now();
        let silence = |at: i64| (now.saturating_sub(at).max(0) as f64) / 1e6;
        let runner = |view: RunnerView| {
            let connected = view.status != RunnerStatus::Offline;
            (view.known.id.to_string(), view.known.facts.name, connected, silence(view.known.last_seen_at))
        };
        Ok(Census {
            sandboxes: sandboxes::count(readers).await?,
            jobs: jobs::count(readers).await?,
            runners: self.fleet.list().into_iter().map(runner).collect(),
        })
    }

    /// What its runner cannot enforce: as its box was told, or as the runner says of itself.
    pub(crate) fn unenforced(&self, sandbox: &Sandbox) -> std::collections::BTreeMap<String, String> {
        let known = &sandbox.unenforced;
        if !known.is_empty() {
            return known.clone();
        }
        let runner =
            sandbox.runner.as_ref().and_then(|runner| self.fleet.look(runner, |facts| facts.unenforced.clone()));
        let asked = |limit: &String| limit != "disk" || sandbox.spec.disk_bytes > 0;
        runner.unwrap_or_default().into_iter().filter(|(limit, _)| asked(limit)).collect()
    }

    /// Why its disk is in memory; empty where its files outlive a stop.
    pub(crate) fn disk_in_memory(&self, sandbox: &Sandbox) -> String {
        if sandbox.spec.disk_bytes == 0 {
            return String::new();
        }
        let runner = sandbox.runner.as_ref();
        runner.and_then(|runner| self.fleet.look(runner, |facts| facts.disk_in_memory.clone())).unwrap_or_default()
    }
}

/// The state on the wire.
pub(crate) fn wire_state(state: State) -> v1::SandboxState {
    match state {
        State::Pending => v1::SandboxState::Pending,
        State::Starting => v1::SandboxState::Starting,
        State::Running => v1::SandboxState::Running,
        State::Paused => v1::SandboxState::Paused,
        State::Stopping => v1::SandboxState::Stopping,
        State::Stopped => v1::SandboxState::Stopped,
        State::Failed => v1::SandboxState::Failed,
        State::Lost => v1::SandboxState::Lost,
        State::Deleting => v1::SandboxState::Deleting,
        State::Deleted => v1::SandboxState::Deleted,
    }
}

/// The state of a wire value; `None` for one that does not exist.
pub(crate) fn parse_state(value: i32) -> Option<State> {
    Some(match v1::SandboxState::try_from(value).ok()? {
        v1::SandboxState::Unspecified => return None,
        v1::SandboxState::Pending => State::Pending,
        v1::SandboxState::Starting => State::Starting,
        v1::SandboxState::Running => State::Running,
        v1::SandboxState::Paused => State::Paused,
        v1::SandboxState::Stopping => State::Stopping,
        v1::SandboxState::Stopped => State::Stopped,
        v1::SandboxState::Failed => State::Failed,
        v1::SandboxState::Lost => State::Lost,
        v1::SandboxState::Deleting => State::Deleting,
        v1::SandboxState::Deleted => State::Deleted,
    })
}

fn agent(info: AgentInfo) -> v1::AgentInfo {
    v1::AgentInfo {
        last_heartbeat: Some(timestamp(info.at)),
        hostname: info.report.hostname,
        ip_address: info.report.ip_address,
        cpu_percent: info.report.cpu_percent,
        memory_mb: info.report.memory_mb,
        session_count: info.report.session_count,
        uptime_secs: info.report.uptime_secs,
    }
}

/// A time from the wire.
pub(crate) fn micros(at: &Timestamp) -> i64 {
    at.seconds.saturating_mul(MICROS_PER_SEC).saturating_add(i64::from(at.nanos) / 1000)
}

/// A time on the wire.
pub(crate) fn timestamp(micros: i64) -> Timestamp {
    let nanos = micros.rem_euclid(MICROS_PER_SEC) * 1000;
    Timestamp { seconds: micros.div_euclid(MICROS_PER_SEC), nanos: i32::try_from(nanos).unwrap_or(0) }
}
