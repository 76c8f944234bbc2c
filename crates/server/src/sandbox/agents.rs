//! What agents report of themselves: kept in memory, since it is told again each interval.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use dispense_api::id::{Generation, SandboxId};
use dispense_api::runner::AgentReport;
use tokio::time::Instant;

/// Reports that may be missing before the sandbox counts as lost.
const MISSED_MAX: u32 = 3;

/// One report.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    pub(crate) generation: Generation,
    pub(crate) hostname: String,
    pub(crate) ip_address: String,
    pub(crate) cpu_percent: Option<f64>,
    pub(crate) memory_mb: Option<u64>,
    pub(crate) session_count: Option<u32>,
    pub(crate) uptime_secs: u64,
    /// Absent when it does not say.
    pub(crate) idle: Option<Duration>,
    /// The agent is about to end.
    pub(crate) stopped: bool,
}

impl From<AgentReport> for Report {
    fn from(report: AgentReport) -> Self {
        Self {
            generation: Generation(report.generation),
            hostname: super::spec::clip(&report.hostname),
            ip_address: String::new(),
            cpu_percent: report.cpu_percent,
            memory_mb: report.memory_mb,
            session_count: report.session_count,
            uptime_secs: report.uptime_secs,
            idle: Some(Duration::from_secs(report.idle_secs)),
            stopped: report.status == "stopped",
        }
    }
}

/// The last report of a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct AgentInfo {
    pub(crate) report: Report,
    /// Microseconds since 1970.
    pub(crate) at: i64,
}

struct Entry {
    info: Option<AgentInfo>,
    heard: Instant,
    /// A session was asked for, or it began to run.
    used: Instant,
    /// Between its reports.
    interval: Duration,
    /// The sandbox was told lost for want of reports.
    silent: bool,
}

/// The last report of every sandbox that runs.
#[derive(Default)]
pub(crate) struct Agents {
    entries: Mutex<HashMap<SandboxId, Entry>>,
}

impl Agents {
    /// The sandbox runs: from now on its agent is expected to report.
    pub(crate) fn expect(&self, sandbox: &SandboxId, interval: Duration) {
        let mut entries = self.entries.lock().expect("no holder panics");
        let entry = entries.entry(sandbox.clone()).or_insert_with(|| Entry {
            info: None,
            heard: Instant::now(),
            used: Instant::now(),
            interval,
            silent: false,
        });
        entry.interval = interval;
        entry.heard = Instant::now();
        entry.used = Instant::now();
        entry.silent = false;
    }

    /// How often it reports, where it is expected to.
    pub(crate) fn interval(&self, sandbox: &SandboxId) -> Option<Duration> {
        self.entries.lock().expect("no holder panics").get(sandbox).map(|entry| entry.interval)
    }

    /// A report came, as one does each interval. Answers whether the sandbox had been told lost.
    pub(crate) fn heard(&self, sandbox: &SandboxId, report: Report, interval: Duration, at: i64) -> bool {
        let mut entries = self.entries.lock().expect("no holder panics");
        let info = Some(AgentInfo { report, at });
        let now = Instant::now();
        let used = entries.get(sandbox).map_or(now, |before| before.used);
        let entry = Entry { info, heard: now, used, interval, silent: false };
        entries.insert(sandbox.clone(), entry).is_some_and(|before| before.silent)
    }

    /// Somebody wants a session.
    pub(crate) fn used(&self, sandbox: &SandboxId) {
        if let Some(entry) = self.entries.lock().expect("no holder panics").get_mut(sandbox) {
            entry.used = Instant::now();
        }
    }

    /// For how long nobody has used it, as far as is known; `None` before its first report.
    pub(crate) fn idle(&self, sandbox: &SandboxId) -> Option<Duration> {
        let entries = self.entries.lock().expect("no holder panics");
        let entry = entries.get(sandbox)?;
        Some(entry.info.as_ref()?.report.idle?.min(entry.used.elapsed()))
    }

    /// Its runner's lease has ended: the next report brings it back.
    pub(crate) fn mark_silent(&self, sandbox: &SandboxId) {
        if let Some(entry) = self.entries.lock().expect("no holder panics").get_mut(sandbox) {
            entry.silent = true;
        }
    }

    /// It does not run any more.
    pub(crate) fn forget(&self, sandbox: &SandboxId) {
        self.entries.lock().expect("no holder panics").remove(sandbox);
    }

    /// The last report.
    pub(crate) fn info(&self, sandbox: &SandboxId) -> Option<AgentInfo> {
        self.entries.lock().expect("no holder panics").get(sandbox)?.info.clone()
    }

    /// Those that have become silent since the last time.
    pub(crate) fn newly_silent(&self) -> Vec<SandboxId> {
        let mut entries = self.entries.lock().expect("no holder panics");
        let overdue = |entry: &Entry| !entry.silent && entry.heard.elapsed() > entry.interval * MISSED_MAX;
        let mut silent = Vec::new();
        for (sandbox, entry) in entries.iter_mut().filter(|(_, entry)| overdue(entry)) {
            entry.silent = true;
            silent.push(sandbox.clone());
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_is_silent_when_three_of_its_own_intervals_have_passed() {
        let (agents, often, seldom) = (Agents::default(), SandboxId::random(), SandboxId::random());
        agents.expect(&often, Duration::from_secs(2));
        agents.expect(&seldom, Duration::from_secs(600));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(agents.newly_silent().is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(agents.newly_silent(), [often]);
        tokio::time::advance(Duration::from_secs(1793)).await;
        assert!(agents.newly_silent().is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(agents.newly_silent(), [seldom]);
    }
}
