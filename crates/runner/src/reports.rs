//! What the server should know, as state and not as events: the latest report of each sandbox. A link that
//! was away for long sends what is, and nothing piles up meanwhile. Visits alone are events: who is not taken soon goes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use dispense_api::id::SandboxId;
use dispense_api::runner::{AgentReport, Box as BoxMessage, BoxState, RunnerMessage, Visit, runner_message::Kind};
use tokio::sync::Notify;

/// Visits that wait for the link; the oldest goes first.
const VISITS_MAX: usize = 1024;

#[derive(Default)]
struct Latest {
    boxes: BTreeMap<SandboxId, BoxMessage>,
    changed: BTreeSet<SandboxId>,
    agents: BTreeMap<SandboxId, AgentReport>,
    visits: VecDeque<Visit>,
}

/// Shared by the owners of the boxes, who write, and the link, which reads.
#[derive(Default)]
pub(crate) struct Reports {
    latest: Mutex<Latest>,
    something: Notify,
}

impl Reports {
    /// Replaces what is known of a box.
    pub(crate) fn put_box(&self, sandbox: &SandboxId, report: BoxMessage) {
        let mut latest = self.lock();
        latest.boxes.insert(sandbox.clone(), report);
        latest.changed.insert(sandbox.clone());
        drop(latest);
        self.something.notify_one();
    }

    /// Replaces what an agent last said.
    pub(crate) fn put_agent(&self, sandbox: &SandboxId, report: AgentReport) {
        self.lock().agents.insert(sandbox.clone(), report);
        self.something.notify_one();
    }

    /// Somebody has come to a service of an agent.
    pub(crate) fn put_visit(&self, visit: Visit) {
        let mut latest = self.lock();
        if latest.visits.len() >= VISITS_MAX {
            latest.visits.pop_front();
        }
        latest.visits.push_back(visit);
        drop(latest);
        self.something.notify_one();
    }

    /// Everything there is, for a hello. Later calls of [`Reports::next`] tell only what changed since.
    pub(crate) fn all_boxes(&self) -> Vec<BoxMessage> {
        let mut latest = self.lock();
        latest.changed.clear();
        // They waited for a link that was away.
        latest.visits.clear();
        // A box that is gone was told by this hello; the server needs no second word.
        let all = latest.boxes.values().cloned().collect();
        latest.boxes.retain(|_, report| report.state != BoxState::Gone as i32);
        all
    }

    /// Waits for something to tell.
    ///
    /// CANCEL SAFETY: nothing is taken before the return.
    pub(crate) async fn next(&self) -> Vec<RunnerMessage> {
        loop {
            let messages = self.take();
            if !messages.is_empty() {
                return messages;
            }
            self.something.notified().await;
        }
    }

    fn take(&self) -> Vec<RunnerMessage> {
        let mut latest = self.lock();
        let changed = std::mem::take(&mut latest.changed);
        let mut kinds: Vec<Kind> = Vec::new();
        for sandbox in changed {
            let Some(report) = latest.boxes.get(&sandbox).cloned() else { continue };
            if report.state == BoxState::Gone as i32 {
                latest.boxes.remove(&sandbox);
                latest.agents.remove(&sandbox);
            }
            kinds.push(Kind::Box(report));
        }
        kinds.extend(std::mem::take(&mut latest.agents).into_values().map(Kind::Agent));
        kinds.extend(latest.visits.drain(..).map(Kind::Visit));
        kinds.into_iter().map(|kind| RunnerMessage { kind: Some(kind) }).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(sandbox: &SandboxId, state: BoxState) -> BoxMessage {
        BoxMessage { sandbox_id: sandbox.to_string(), state: state as i32, ..BoxMessage::default() }
    }

    #[tokio::test]
    async fn only_the_latest_state_is_told_and_a_gone_box_is_forgotten() {
        let (reports, sandbox) = (Reports::default(), SandboxId::random());
        for state in [BoxState::Starting, BoxState::Running, BoxState::Gone] {
            reports.put_box(&sandbox, report(&sandbox, state));
        }
        let told = reports.next().await;
        assert_eq!(told.len(), 1);
        assert!(matches!(&told[0].kind, Some(Kind::Box(report)) if report.state == BoxState::Gone as i32));
        assert!(reports.all_boxes().is_empty());
    }

    #[tokio::test]
    async fn a_hello_tells_all_and_the_rest_follows_only_on_change() {
        let (reports, sandbox) = (Reports::default(), SandboxId::random());
        reports.put_box(&sandbox, report(&sandbox, BoxState::Running));
        assert_eq!(reports.all_boxes().len(), 1);
        assert!(reports.take().is_empty());
        assert_eq!(reports.all_boxes().len(), 1, "it is still there");
    }
}
