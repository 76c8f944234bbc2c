//! Sessions that wait for the next call to the same agent: opening one takes an order, a dial and three wake-ups.
//!
//! INVARIANT: a session carries calls of one revision of its sandbox, while the link lives over which it was asked for. What a
//! runner is told of a change goes before the sessions that are opened later; one from before would overtake it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dispense_api::id::SandboxId;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::session::Frames;

/// A session that waits longer is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of one agent, as many as call it at the same time.
const IDLE_PER_AGENT_MAX: usize = 16;
/// In all: each has a stream and a socket of its runner. With more agents in use, sessions are opened as they are needed.
const IDLE_MAX: usize = 512;
/// Whether an agent keeps sessions is asked again when it was not called for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// An agent, as its sandbox was when it was called.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    pub(super) sandbox: SandboxId,
    /// Revision of its row, and link of its runner. Both only grow, the link as long as the runner is the same.
    pub(super) version: (u64, u64),
}

/// The waiting sessions of the agents that are known to keep them.
#[derive(Default)]
pub(crate) struct Kept(Mutex<State>);

#[derive(Default)]
struct State {
    agents: HashMap<SandboxId, Sessions>,
    /// In all.
    idle: usize,
    /// Nothing is kept any more.
    closed: bool,
    /// Somebody looks for those that wait too long.
    swept: bool,
}

struct Sessions {
    version: (u64, u64),
    /// Oldest first.
    idle: Vec<Idle>,
    used: Instant,
}

struct Idle {
    frames: Frames,
    since: Instant,
}

impl State {
    /// The sessions of an agent, none where anything has changed since; and the count of all that wait.
    fn of(&mut self, agent: &Agent) -> Option<(&mut Sessions, &mut usize)> {
        let sessions = self.agents.get_mut(&agent.sandbox)?;
        (sessions.version == agent.version).then_some((sessions, &mut self.idle))
    }

    fn count(&mut self) {
        self.idle = self.agents.values().map(|sessions| sessions.idle.len()).sum();
    }
}

impl Kept {
    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().expect("no holder panics"))
    }

    /// A session for a call, and whether the agent is known to keep it after.
    pub(super) fn take(&self, agent: &Agent) -> (Option<Frames>, bool) {
        self.with(|state| {
            let Some((sessions, total)) = state.of(agent) else { return (None, false) };
            sessions.used = Instant::now();
            while let Some(Idle { mut frames, .. }) = sessions.idle.pop() {
                *total -= 1;
                // Between two calls an agent says nothing: this one has ended, or is not honest.
                if frames.inbound.next().now_or_never().is_none() && !frames.outbound.is_closed() {
                    return (Some(frames), true);
                }
            }
            (None, true)
        })
    }

    /// Notes that an agent keeps sessions.
    pub(super) fn keeps(self: &Arc<Self>, agent: &Agent) {
        let begins = self.with(|state| {
            if state.closed {
                return false;
            }
            let fresh = Sessions { version: agent.version, idle: vec![], used: Instant::now() };
            match state.agents.get_mut(&agent.sandbox) {
                Some(known) if known.version >= agent.version => {}
                Some(known) => state.idle -= std::mem::replace(known, fresh).idle.len(),
                None => drop(state.agents.insert(agent.sandbox.clone(), fresh)),
            }
            !std::mem::replace(&mut state.swept, true)
        });
        if begins {
            let kept = self.clone();
            tokio::spawn(async move { kept.sweep_task().await });
        }
    }

    /// Keeps a session of an agent that is known to.
    pub(super) fn put(&self, agent: &Agent, frames: Frames) {
        self.with(|state| {
            if let Some((sessions, total)) = state.of(agent)
                && sessions.idle.len() < IDLE_PER_AGENT_MAX
                && *total < IDLE_MAX
            {
                sessions.idle.push(Idle { frames, since: Instant::now() });
                *total += 1;
            }
        });
    }

    /// Ends those of a sandbox that runs no more.
    pub(super) fn end(&self, sandbox: &SandboxId) {
        self.with(|state| {
            if let Some(sessions) = state.agents.remove(sandbox) {
                state.idle -= sessions.idle.len();
            }
        });
    }

    /// Ends those that were asked for over a link.
    pub(super) fn forget(&self, link: u64) {
        self.with(|state| {
            state.agents.retain(|_, sessions| sessions.version.1 != link);
            state.count();
        });
    }

    /// Ends those that wait, for good.
    pub(crate) fn close(&self) {
        self.with(|state| *state = State { closed: true, ..State::default() });
    }

    /// Closes what waits too long, as long as anybody is known.
    async fn sweep_task(&self) {
        loop {
            tokio::time::sleep(IDLE_TIMEOUT / 2).await;
            let over = self.with(|state| {
                state.agents.retain(|_, sessions| {
                    sessions.idle.retain(|idle| idle.since.elapsed() < IDLE_TIMEOUT);
                    !sessions.idle.is_empty() || sessions.used.elapsed() < FORGOTTEN_AFTER
                });
                state.count();
                state.swept = !state.agents.is_empty();
                !state.swept
            });
            if over {
                return;
            }
        }
    }
}
