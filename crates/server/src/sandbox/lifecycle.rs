//! The policy of one sandbox: what a request or a fact does to it. Pure: no IO, no clock, no runner.
//!
//! ```text
//!                    Placed          Box(Running)
//!  Pending ─────────► Starting ─────────► Running ◄────────► Lost
//!     ▲                  │  ▲                │        silence, news
//!     │          failure │  │ Start          │ Stop
//!     │                  ▼  │                ▼
//!     │               Failed│◄─────────── Stopping ────► Stopped
//!     └──────── Start of one never placed ──────────────────┘
//!  Delete from every state: Deleting ──► Deleted (at once when there is no box)
//! ```
//!
//! INVARIANT: a fact of a generation that is not the present one changes nothing. `Deleted` is final.

use dispense_api::id::Generation;

use crate::planted::{self, Bug};

/// What was asked for last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Desired {
    /// Processes run.
    Running,
    /// Files only.
    Stopped,
    /// Nothing.
    Deleted,
}

/// What is, as far as the server knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum State {
    /// Waits for a runner that fits.
    Pending,
    /// Its runner makes or boots it.
    Starting,
    /// Its agent answers.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its processes are being ended.
    Stopping,
    /// Files only.
    Stopped,
    /// The reason says why.
    Failed,
    /// Its runner or agent stopped reporting.
    Lost,
    /// Its runner is removing it.
    Deleting,
    /// Nothing is left.
    Deleted,
}

impl State {
    /// Whether a caller who waits for `wanted` has nothing more to wait for.
    pub(crate) fn settles(self, wanted: Desired) -> bool {
        match wanted {
            Desired::Running => {
                matches!(self, Self::Running | Self::Failed | Self::Stopped | Self::Deleting | Self::Deleted)
            }
            Desired::Stopped => matches!(self, Self::Stopped | Self::Failed | Self::Deleting | Self::Deleted),
            Desired::Deleted => self == Self::Deleted,
        }
    }
}

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Start,
    Stop,
    /// Nobody uses it, or its runner is drained.
    Park,
    /// `forget`: the runner is away and the caller does not want to wait for it.
    Delete {
        forget: bool,
    },
}

/// What a runner says of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BoxFact {
    Starting,
    Running,
    Stopping,
    Stopped,
    Failed,
    Gone,
    /// A runner that told all it has did not tell this one.
    Missing,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fact {
    /// A runner was chosen.
    Placed,
    /// Its runner said so.
    Box { generation: Generation, fact: BoxFact },
    /// Its runner's lease ended.
    RunnerLost,
    /// Its agent has not reported for three intervals.
    AgentSilent,
    /// Its agent reported.
    AgentHeard { generation: Generation },
    /// It could not be made, and another runner was chosen.
    Moved { generation: Generation },
    /// What was asked for last has not come about in time.
    Overdue,
}

/// What is to be done after the new state is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Tell the runner what is wanted.
    Order,
    /// The change that was asked for last has come about.
    CompleteJob,
    /// It cannot come about.
    FailJob,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// Deletion has begun.
    #[error("it is being deleted")]
    Deleting,
}

/// What a runner should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Running,
    Stopped,
    Absent,
}

/// The state of one sandbox, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifecycle {
    pub(crate) desired: Desired,
    pub(crate) observed: State,
    pub(crate) generation: Generation,
    /// A runner was chosen.
    pub(crate) placed: bool,
    /// It ran once, so that there are files to keep.
    pub(crate) started: bool,
    /// It was stopped, or is being stopped, and nobody asked for that: it starts again when it is used.
    pub(crate) asleep: bool,
}

impl Lifecycle {
    /// Of a sandbox that was just asked for.
    pub(crate) fn new() -> Self {
        Self {
            desired: Desired::Running,
            observed: State::Pending,
            generation: Generation(1),
            placed: false,
            started: false,
            asleep: false,
        }
    }

    /// What its runner should have; `None` without one.
    pub(crate) fn wanted(&self) -> Option<Wanted> {
        if !self.placed || self.observed == State::Deleted {
            return None;
        }
        Some(match (self.desired, self.observed) {
            (Desired::Deleted, _) => Wanted::Absent,
            // A restart after a failure cleans up first.
            (Desired::Stopped, _) | (Desired::Running, State::Stopping) => Wanted::Stopped,
            (Desired::Running, _) => Wanted::Running,
        })
    }

    /// Applies a request; a repeated one is `Ok` and changes nothing.
    pub(crate) fn request(&mut self, request: Request) -> Result<Vec<Effect>, Denied> {
        match (request, self.desired) {
            (Request::Delete { forget }, _) => Ok(self.delete(forget)),
            (Request::Start | Request::Stop | Request::Park, Desired::Deleted) => Err(Denied::Deleting),
            (Request::Start, Desired::Running | Desired::Stopped) => {
                self.asleep = false;
                Ok(self.start())
            }
            (Request::Stop, Desired::Running | Desired::Stopped) => {
                self.asleep = false;
                Ok(self.stop())
            }
            (Request::Park, Desired::Running) if matches!(self.observed, State::Starting | State::Running) => {
                self.asleep = true;
                Ok(self.stop())
            }
            // Somebody asked for something else meanwhile.
            (Request::Park, Desired::Running | Desired::Stopped) => Ok(vec![]),
        }
    }

    fn start(&mut self) -> Vec<Effect> {
        let before = self.desired;
        self.desired = Desired::Running;
        match self.observed {
            // Repeated, or on the way.
            State::Pending | State::Starting | State::Paused => vec![],
            State::Running if before == Desired::Running => vec![Effect::CompleteJob],
            // The order to stop is overtaken.
            State::Running => vec![Effect::Order, Effect::CompleteJob],
            // It starts when its runner has said that it stopped.
            State::Stopping => vec![],
            State::Lost => vec![Effect::Order],
            State::Stopped if self.placed => self.enter(State::Starting),
            State::Stopped => {
                self.observed = State::Pending;
                vec![]
            }
            State::Failed if self.started => self.enter(State::Stopping),
            // Nothing is lost with a box that never ran: it is made anew, in a generation of its own.
            State::Failed if self.placed => {
                self.generation.0 += 1;
                self.enter(State::Starting)
            }
            State::Failed => {
                self.observed = State::Pending;
                vec![]
            }
            State::Deleting | State::Deleted => vec![],
        }
    }

    fn stop(&mut self) -> Vec<Effect> {
        match self.observed {
            State::Pending => {
                self.desired = Desired::Stopped;
                self.observed = State::Stopped;
                vec![Effect::CompleteJob]
            }
            State::Failed if !self.placed => {
                self.desired = Desired::Stopped;
                self.observed = State::Stopped;
                vec![Effect::CompleteJob]
            }
            // What is left of a failed one is cleaned up.
            State::Starting | State::Running | State::Paused | State::Stopping | State::Failed => {
                self.desired = Desired::Stopped;
                self.enter(State::Stopping)
            }
            State::Lost => {
                self.desired = Desired::Stopped;
                vec![Effect::Order]
            }
            State::Stopped => vec![Effect::CompleteJob],
            State::Deleting | State::Deleted => vec![],
        }
    }

    fn delete(&mut self, forget: bool) -> Vec<Effect> {
        if self.observed == State::Deleted {
            return vec![];
        }
        self.desired = Desired::Deleted;
        if self.placed && !forget {
            return self.enter(State::Deleting);
        }
        self.observed = State::Deleted;
        vec![Effect::CompleteJob]
    }

    fn enter(&mut self, state: State) -> Vec<Effect> {
        self.observed = state;
        vec![Effect::Order]
    }

    /// Applies a fact.
    pub(crate) fn fact(&mut self, fact: Fact) -> Vec<Effect> {
        if self.observed == State::Deleted {
            return vec![];
        }
        match fact {
            Fact::Placed => self.placed_now(),
            Fact::Box { generation, .. } | Fact::AgentHeard { generation }
                if generation != self.generation && !planted::has(Bug::SkipFencing) =>
            {
                vec![]
            }
            Fact::Box { fact, .. } if self.placed => match self.desired {
                Desired::Deleted => self.box_while_deleting(fact),
                Desired::Running | Desired::Stopped => self.box_fact(fact),
            },
            Fact::Box { .. } => vec![],
            Fact::RunnerLost => self.silence(&[State::Starting, State::Running, State::Paused, State::Stopping]),
            Fact::AgentSilent => self.silence(&[State::Running, State::Paused]),
            Fact::AgentHeard { .. } if self.observed == State::Lost => self.box_fact(BoxFact::Running),
            Fact::AgentHeard { .. } => vec![],
            Fact::Moved { generation } if generation == self.generation && self.can_move() => {
                self.generation.0 += 1;
                self.enter(State::Starting)
            }
            Fact::Moved { .. } => vec![],
            Fact::Overdue => self.overdue(),
        }
    }

    /// Whether a failure to make it may be tried elsewhere: nothing is lost with it.
    pub(crate) fn can_move(&self) -> bool {
        self.placed && !self.started && self.desired == Desired::Running && self.observed == State::Starting
    }

    fn overdue(&mut self) -> Vec<Effect> {
        if matches!(self.observed, State::Pending | State::Starting) {
            self.observed = State::Failed;
        }
        // The others go on: their runner tells when they are done.
        vec![Effect::FailJob]
    }

    fn placed_now(&mut self) -> Vec<Effect> {
        if self.observed != State::Pending || self.placed {
            return vec![];
        }
        self.placed = true;
        self.enter(State::Starting)
    }

    fn silence(&mut self, states: &[State]) -> Vec<Effect> {
        if states.contains(&self.observed) {
            self.observed = State::Lost;
        }
        vec![]
    }

    fn box_while_deleting(&mut self, fact: BoxFact) -> Vec<Effect> {
        match fact {
            BoxFact::Gone | BoxFact::Missing => {
                self.observed = State::Deleted;
                vec![Effect::CompleteJob]
            }
            // It goes on trying; the reason is shown.
            BoxFact::Starting | BoxFact::Running | BoxFact::Stopping | BoxFact::Stopped | BoxFact::Failed => vec![],
        }
    }

    fn box_fact(&mut self, fact: BoxFact) -> Vec<Effect> {
        match (fact, self.desired) {
            (BoxFact::Starting, Desired::Stopped) => vec![],
            (BoxFact::Starting, _) => {
                if self.observed != State::Stopping {
                    self.observed = State::Starting;
                }
                vec![]
            }
            (BoxFact::Running, Desired::Stopped) => {
                self.started = true;
                self.enter(State::Stopping)
            }
            (BoxFact::Running, _) => {
                self.started = true;
                self.observed = State::Running;
                vec![Effect::CompleteJob]
            }
            (BoxFact::Stopping, _) => {
                self.observed = State::Stopping;
                vec![]
            }
            (BoxFact::Stopped, Desired::Running) => match self.observed {
                State::Pending | State::Starting | State::Stopping => self.enter(State::Starting),
                // Nobody asked: its machine was restarted. It is started again when it is asked for.
                State::Running | State::Paused | State::Stopped | State::Failed | State::Lost => {
                    self.desired = Desired::Stopped;
                    self.observed = State::Stopped;
                    self.asleep = true;
                    vec![Effect::CompleteJob]
                }
                State::Deleting | State::Deleted => vec![],
            },
            (BoxFact::Stopped, _) => {
                self.observed = State::Stopped;
                vec![Effect::CompleteJob]
            }
            (BoxFact::Failed, _) => self.fail(),
            (BoxFact::Gone | BoxFact::Missing, _) => self.missing(),
        }
    }

    /// Its runner does not have it.
    fn missing(&mut self) -> Vec<Effect> {
        match (self.started, self.desired) {
            // The order was never carried out: it is given again.
            (false, Desired::Running) if self.observed != State::Failed => self.enter(State::Starting),
            (false, Desired::Stopped) => {
                self.observed = State::Stopped;
                vec![Effect::CompleteJob]
            }
            _ => self.fail(),
        }
    }

    fn fail(&mut self) -> Vec<Effect> {
        self.observed = State::Failed;
        vec![Effect::FailJob]
    }
}

#[cfg(test)]
mod tests;
