//! One change of one sandbox: the row that was read, what the policy makes of it, the row and the job that are
//! written, all in one transaction.

use dispense_api::id::{Generation, JobId, RunnerId};
use sqlx::AnyConnection;

use super::Sandbox;
use super::lifecycle::{BoxFact, Denied, Desired, Effect, Fact, Request, State};
use crate::fleet::BoxReport;
use crate::job::{Attempt, Job, JobType};
use crate::store::{StoreError, events, jobs, sandboxes};

/// What one change came to.
#[derive(Debug, Clone)]
pub(super) struct Applied {
    pub(super) sandbox: Sandbox,
    pub(super) before: State,
    pub(super) order: bool,
    pub(super) changed: bool,
}

/// A request or a fact, with what goes with it.
#[derive(Debug, Clone)]
pub(super) enum Cause {
    Request(Request, JobType),
    Box(BoxReport),
    Placed(RunnerId),
    RunnerLost,
    AgentSilent,
    AgentHeard(Generation),
    /// Its box could not be made, and another runner was chosen.
    Moved {
        generation: Generation,
        why: String,
        to: RunnerId,
    },
    /// This job's time is over.
    Overdue(JobId),
}

/// Of a job whose time is over.
const OVERDUE: &str = "it has not come about within an hour";

/// Applies a cause to a row, in the transaction that read it. A refusal writes nothing.
pub(super) async fn apply(
    tx: &mut AnyConnection,
    mut sandbox: Sandbox,
    cause: Cause,
    now: i64,
) -> Result<Result<Applied, (String, Denied)>, StoreError> {
    let before = sandbox.clone();
    let effects = match &cause {
        Cause::Request(request, _) => match sandbox.life.request(*request) {
            Ok(effects) => effects,
            Err(why) => return Ok(Err((sandbox.name, why))),
        },
        Cause::Box(report) => sandbox.life.fact(Fact::Box { generation: report.generation, fact: report.fact }),
        Cause::Placed(_) => sandbox.life.fact(Fact::Placed),
        Cause::RunnerLost => sandbox.life.fact(Fact::RunnerLost),
        Cause::AgentSilent => sandbox.life.fact(Fact::AgentSilent),
        Cause::AgentHeard(generation) => sandbox.life.fact(Fact::AgentHeard { generation: *generation }),
        Cause::Moved { generation, .. } => sandbox.life.fact(Fact::Moved { generation: *generation }),
        // A newer request has taken its place.
        Cause::Overdue(job) if *job != sandbox.job => vec![],
        Cause::Overdue(_) => sandbox.life.fact(Fact::Overdue),
    };
    describe(&mut sandbox, &before, &cause, now);
    if let (Cause::Request(_, kind), true) = (&cause, sandbox.life != before.life) {
        let job = Job::new(*kind, &sandbox.id, sandbox.runner.as_ref(), now);
        jobs::open(tx, &job, Some(&before.job)).await?;
        sandbox.job = job.id;
    }
    if let Cause::Placed(runner) = &cause
        && sandbox.life.placed
        && !before.life.placed
    {
        sandbox.runner = Some(runner.clone());
        jobs::begin(tx, &sandbox.job, runner, now).await?;
    }
    if let Cause::Moved { why, to, .. } = &cause
        && sandbox.life.generation != before.life.generation
    {
        let from = sandbox.runner.replace(to.clone()).map(|runner| runner.to_string()).unwrap_or_default();
        jobs::tried(tx, &sandbox.job, Attempt { at: now, runner: from, error: why.clone() }, to).await?;
    }
    for effect in &effects {
        match effect {
            Effect::CompleteJob => jobs::finish(tx, &sandbox.job, None, now).await?,
            Effect::FailJob => {
                let why = if sandbox.reason.is_empty() { OVERDUE } else { &sandbox.reason };
                jobs::finish(tx, &sandbox.job, Some(why), now).await?;
            }
            Effect::Order => {}
        }
    }
    let changed = sandbox != before;
    if changed {
        sandbox.revision += 1;
        sandboxes::update(&mut *tx, &sandbox).await?;
        events::append(tx, &sandbox, now).await?;
    }
    let order = effects.contains(&Effect::Order);
    Ok(Ok(Applied { sandbox, before: before.life.observed, order, changed }))
}

/// Times, reason and the like, which follow from the new state.
fn describe(sandbox: &mut Sandbox, before: &Sandbox, cause: &Cause, now: i64) {
    let (was, is) = (before.life.observed, sandbox.life.observed);
    if let Cause::Box(report) = cause
        && report.generation == sandbox.life.generation
    {
        if !report.unenforced.is_empty() {
            sandbox.unenforced = report.unenforced.clone();
        }
        if matches!(report.fact, BoxFact::Gone | BoxFact::Missing) && is == State::Deleted {
            sandbox.box_gone = true;
        }
        if report.fact == BoxFact::Failed {
            sandbox.reason = report.message.clone();
        }
    }
    if was == is {
        // How far its runner is.
        if let Cause::Box(report) = cause
            && report.fact == BoxFact::Starting
            && report.generation == sandbox.life.generation
            && is == State::Starting
        {
            sandbox.reason = report.message.clone();
        }
        return;
    }
    match is {
        State::Running => {
            sandbox.started_at = Some(now);
            sandbox.reason.clear();
        }
        State::Stopped | State::Failed => sandbox.stopped_at = Some(now),
        State::Deleted => {
            sandbox.deleted_at = Some(now);
            // Nothing expires any more, so the sweep need not look at this row again.
            (sandbox.expires_at, sandbox.lease_until) = (None, None);
            sandbox.box_gone |= sandbox.runner.is_none();
        }
        // What has not passed by now is not why it is deleted.
        State::Deleting => {
            sandbox.expires_at = sandbox.expires_at.filter(|at| *at <= now);
            sandbox.lease_until = sandbox.lease_until.filter(|at| *at <= now);
        }
        State::Pending | State::Starting | State::Paused | State::Stopping | State::Lost => {}
    }
    if let Some(reason) = reason(sandbox, before, cause, now) {
        sandbox.reason = reason.to_owned();
    }
}

/// Why it is in its new state; `None` where what was said holds.
fn reason(sandbox: &Sandbox, before: &Sandbox, cause: &Cause, now: i64) -> Option<&'static str> {
    let (was, is) = (before.life.observed, sandbox.life.observed);
    let is_over = |time: Option<i64>| time.is_some_and(|time| time <= now);
    match (cause, is) {
        (Cause::RunnerLost, _) => Some("its runner is offline"),
        (Cause::AgentSilent, _) => Some("its agent does not report"),
        (Cause::Box(report), State::Failed) if report.fact == BoxFact::Missing => {
            Some("its runner does not have it any more")
        }
        (Cause::Box(_), State::Stopped) if before.life.desired == Desired::Running && was != State::Stopping => {
            Some("its machine was restarted")
        }
        (Cause::Overdue(_), State::Failed) => Some(OVERDUE),
        (Cause::Request(Request::Park, _), _) => {
            Some("nobody used it, or its runner is drained: it starts when it is used")
        }
        (_, State::Deleted) if is_over(before.expires_at) => Some("its time (--ttl) had passed"),
        (_, State::Deleted) if is_over(before.lease_until) => Some("the command that it was made for had gone"),
        // What was said when it began to stop.
        (Cause::Box(_), State::Stopped) if sandbox.life.asleep => None,
        (
            Cause::Box(_) | Cause::AgentHeard(_) | Cause::Request(..) | Cause::Placed(_) | Cause::Moved { .. },
            State::Failed,
        ) => None,
        _ => Some(""),
    }
}
