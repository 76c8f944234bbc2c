//! Everything that changes or reads sandboxes. Each change reads the row, asks the policy, writes the row
//! and its job in one transaction; what follows from it is told in the order of the commits.

use std::sync::Arc;
use std::time::Duration;

use dispense_api::error::{Code, Error, reason};
use dispense_api::id::{JobId, RunnerId, SandboxId};

use super::agents::{Agents, Report};
use super::change::{Applied, Cause, apply};
use super::lifecycle::{Denied, Request, State};
use super::live::Live;
use super::notices::Notices;
use super::order::Orders;
use super::usage::Meter;
use super::{Sandbox, lifecycle::Desired};
use crate::audit::Audit;
use crate::auth::secret::ServerSecret;
use crate::clock::Clock;
use crate::events::Ticker;
use crate::fleet::{Fleet, Mode, RunnerView};
use crate::job::{Job, JobType};
use crate::refusal::{denied, unknown_job, unknown_sandbox};
use crate::relay::Route;
use crate::store::{Store, StoreError, jobs, runners, sandboxes};

/// The parts that a sandbox touches.
pub(crate) struct Sandboxes {
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) secret: Arc<ServerSecret>,
    pub(crate) orders: Orders,
    pub(crate) audit: Arc<Audit>,
    pub(crate) ticker: Arc<Ticker>,
    pub(crate) notices: Arc<Notices>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) live: Arc<Live>,
}

impl Sandboxes {
    /// The sandbox of an id or name.
    pub(crate) async fn get(&self, id_or_name: &str) -> Result<Sandbox, Error> {
        if id_or_name.is_empty() {
            return Err(super::spec::invalid("sandbox", "an id or name is missing"));
        }
        self.find(id_or_name).await?.ok_or_else(|| unknown_sandbox(id_or_name))
    }

    /// The same, if there is one.
    pub(super) async fn find(&self, id_or_name: &str) -> Result<Option<Sandbox>, StoreError> {
        match self.live.get(id_or_name) {
            Some(sandbox) => Ok(Some(sandbox)),
            None => sandboxes::find(self.store.readers(), id_or_name).await,
        }
    }

    /// The job of an id.
    pub(crate) async fn job(&self, wanted: &str) -> Result<Job, Error> {
        let id = wanted.parse().map_err(|error| super::spec::invalid("job", error))?;
        jobs::find(self.store.readers(), &id).await?.ok_or_else(|| unknown_job(wanted))
    }

    /// Wants it running.
    pub(crate) async fn start(&self, id_or_name: &str) -> Result<Sandbox, Error> {
        self.request(id_or_name, Request::Start, JobType::Start).await
    }

    /// Wants its processes ended and its files kept.
    pub(crate) async fn stop(&self, id_or_name: &str) -> Result<Sandbox, Error> {
        self.request(id_or_name, Request::Stop, JobType::Stop).await
    }

    /// Wants it gone. With `force` a sandbox whose runner is away is forgotten; its box is removed when the
    /// runner is back.
    pub(crate) async fn delete(&self, id_or_name: &str, force: bool) -> Result<Sandbox, Error> {
        // A repeated delete finds the one that had the name last.
        let found = sandboxes::find_any(self.store.readers(), id_or_name).await?;
        let sandbox = found.ok_or_else(|| unknown_sandbox(id_or_name))?;
        let away = sandbox.runner.as_ref().is_some_and(|runner| !self.fleet.is_connected(runner));
        self.change(&sandbox.id, Cause::Request(Request::Delete { forget: force && away }, JobType::Delete)).await
    }

    async fn request(&self, id_or_name: &str, request: Request, job: JobType) -> Result<Sandbox, Error> {
        let sandbox = self.get(id_or_name).await?;
        let is_draining = |runner: &RunnerId| self.fleet.mode(runner) == Some(Mode::Draining);
        if request == Request::Start && sandbox.runner.as_ref().is_some_and(is_draining) {
            let message = format!(
                "sandbox `{}` is on a runner that is being drained: let it take sandboxes again with `dispense runner uncordon`",
                sandbox.name
            );
            return Err(Error::new(Code::FailedPrecondition, "runner_draining", message));
        }
        self.change(&sandbox.id, Cause::Request(request, job)).await
    }

    /// Stops one that nobody uses, or whose runner is drained; it starts again when it is used.
    pub(crate) async fn park(&self, id: &SandboxId) -> Result<(), Error> {
        self.change(id, Cause::Request(Request::Park, JobType::Stop)).await.map(drop)
    }

    /// A job's time is over.
    pub(crate) async fn overdue(&self, id: &SandboxId, job: JobId) -> Result<(), Error> {
        match self.change(id, Cause::Overdue(job)).await {
            // Its row has been removed meanwhile.
            Err(error) if error.code == Code::NotFound => Ok(()),
            result => result.map(drop),
        }
    }

    /// Extends the lease.
    pub(crate) async fn renew(&self, id_or_name: &str) -> Result<Sandbox, Error> {
        let sandbox = self.get(id_or_name).await?;
        if sandbox.life.desired == Desired::Deleted {
            return Err(denied(&sandbox.id, &sandbox.name, Denied::Deleting));
        }
        if sandbox.spec.lease_secs == 0 {
            let message = format!("sandbox `{}` was created without a lease: there is nothing to renew", sandbox.name);
            return Err(Error::new(Code::FailedPrecondition, "no_lease", message));
        }
        let id = sandbox.id.clone();
        let clock = self.clock.clone();
        let live = self.live.clone();
        let renewed = self.store.write_then(
            move |tx| {
                let (id, now) = (id.clone(), clock.now());
                Box::pin(async move {
                    let Some(mut sandbox) = sandboxes::get(tx, &id).await? else { return Ok(None) };
                    sandbox.lease_until = Some(super::create::after(now, sandbox.spec.lease_secs));
                    sandboxes::update(tx, &sandbox).await?;
                    Ok(Some(sandbox))
                })
            },
            move |renewed| {
                if let Some(sandbox) = renewed {
                    live.follow(sandbox);
                }
            },
        );
        renewed.await?.ok_or_else(|| unknown_sandbox(id_or_name))
    }

    /// A runner's control stream brought its agent's report.
    pub(crate) async fn agent_reported_by(
        &self,
        runner: &RunnerId,
        id: &SandboxId,
        report: Report,
    ) -> Result<(), Error> {
        let Some(sandbox) = self.find(id.as_str()).await? else { return Ok(()) };
        if sandbox.runner.as_ref() != Some(runner) || report.generation != sandbox.life.generation {
            return Ok(());
        }
        self.agent_reported(id, report).await
    }

    /// A sandbox's agent reported.
    pub(crate) async fn agent_reported(&self, id: &SandboxId, report: Report) -> Result<(), Error> {
        let generation = report.generation;
        if report.stopped {
            // Its runner tells when it has stopped; until then it is not silent.
            return Ok(());
        }
        let interval = match self.agents.interval(id) {
            Some(interval) => interval,
            // The first one since this server began.
            None => match self.find(id.as_str()).await? {
                Some(sandbox) => sandbox.spec.report_interval(),
                None => return Ok(()),
            },
        };
        let now = self.clock.now();
        self.meter.note(id, &report, now);
        if self.agents.heard(id, report, interval, now) {
            self.change(id, Cause::AgentHeard(generation)).await?;
        }
        Ok(())
    }

    /// A runner's lease has ended.
    pub(crate) async fn runner_lost(&self, runner: &RunnerId, last_seen_at: i64) -> Result<(), Error> {
        let id = runner.clone();
        let rows = self.store.write(move |tx| {
            let id = id.clone();
            Box::pin(async move {
                runners::seen(&mut *tx, &id, last_seen_at).await?;
                sandboxes::of_runner(tx, &id).await
            })
        });
        for sandbox in rows.await? {
            self.change(&sandbox.id, Cause::RunnerLost).await?;
            self.agents.mark_silent(&sandbox.id);
        }
        Ok(())
    }

    /// An operator wants something else of a runner.
    pub(crate) async fn set_runner_mode(&self, id_or_name: &str, mode: Mode) -> Result<RunnerView, Error> {
        let id = self.fleet.find(id_or_name)?.known.id;
        let (row, fleet) = (id.clone(), self.fleet.clone());
        let write = self.store.write_then(
            move |tx| {
                let id = row.clone();
                Box::pin(async move {
                    runners::set_mode(tx, &id, mode).await?;
                    Ok(id)
                })
            },
            move |id| fleet.set_mode(id, mode),
        );
        write.await?;
        self.fleet.find(id.as_str())
    }

    /// An agent has been silent for too long.
    pub(crate) async fn agent_silent(&self, id: &SandboxId) -> Result<(), Error> {
        self.change(id, Cause::AgentSilent).await.map(drop)
    }

    /// Places a sandbox that waits; `false` when no runner fits.
    pub(crate) async fn place(&self, id: &SandboxId) -> Result<bool, Error> {
        let Some(sandbox) = self.find(id.as_str()).await? else { return Ok(true) };
        if sandbox.life.observed != State::Pending {
            return Ok(true);
        }
        let Ok(runner) = self.fleet.reserve(&sandbox.spec, &[]) else { return Ok(false) };
        let placed = self.change(id, Cause::Placed(runner.clone())).await;
        // Somebody else was quicker, or it was deleted meanwhile.
        if !matches!(&placed, Ok(now) if now.runner.as_ref() == Some(&runner) && now.revision > sandbox.revision) {
            self.fleet.release(&runner, &sandbox.spec);
        }
        placed.map(|_| true)
    }

    pub(super) async fn change(&self, id: &SandboxId, cause: Cause) -> Result<Sandbox, Error> {
        let (wanted, clock) = (id.clone(), self.clock.clone());
        let after = self.follow_up();
        let applied = self.store.write_then(
            move |tx| {
                let (id, cause, now) = (wanted.clone(), cause.clone(), clock.now());
                Box::pin(async move {
                    match sandboxes::get(&mut *tx, &id).await? {
                        Some(sandbox) => apply(tx, sandbox, cause, now).await.map(Some),
                        None => Ok(None),
                    }
                })
            },
            move |applied| {
                if let Some(Ok(applied)) = applied {
                    after(applied);
                }
            },
        );
        let applied = applied.await?.ok_or_else(|| unknown_sandbox(id.as_str()))?;
        if let Ok(applied) = &applied {
            let life = &applied.sandbox.life;
            tracing::debug!(sandbox = %id, from = ?applied.before, to = ?life.observed, desired = ?life.desired, "sandbox");
        }
        applied.map(|applied| applied.sandbox).map_err(|(name, why)| denied(id, &name, why))
    }

    /// What follows from a committed change: told in the order of the commits.
    pub(super) fn follow_up(&self) -> impl Fn(&Applied) + Send + 'static {
        let (fleet, notices, agents, orders) =
            (self.fleet.clone(), self.notices.clone(), self.agents.clone(), self.orders.clone());
        let (live, ticker) = (self.live.clone(), self.ticker.clone());
        move |applied| {
            let sandbox = &applied.sandbox;
            live.follow(sandbox);
            // One that was forgotten while its runner came back is removed there.
            let forgotten = sandbox.life.observed == State::Deleted && !sandbox.box_gone;
            if (applied.order || forgotten)
                && let Some(runner) = &sandbox.runner
            {
                fleet.send(runner, orders.of(sandbox));
            }
            if !applied.changed {
                return;
            }
            let now = sandbox.life.observed;
            match now {
                State::Running if applied.before != State::Running => {
                    agents.expect(&sandbox.id, sandbox.spec.report_interval())
                }
                State::Running | State::Lost => {}
                _ => agents.forget(&sandbox.id),
            }
            if now == State::Deleted
                && applied.before != State::Deleted
                && let Some(runner) = &sandbox.runner
            {
                fleet.release(runner, &sandbox.spec);
            }
            notices.publish(&sandbox.id);
            ticker.tick();
        }
    }

    /// Where its agent is, once it is placed. Waits for a sandbox that is pending; one that sleeps is woken by a
    /// caller who `wakes`.
    pub(crate) async fn route(&self, id_or_name: &str, wakes: bool, timeout: Duration) -> Result<Route, Error> {
        if let Some(route) = self.live.route(id_or_name) {
            self.agents.used(&route.sandbox);
            return Ok(route);
        }
        let mut sandbox = self.get(id_or_name).await?;
        self.agents.used(&sandbox.id);
        if wakes && sandbox.life.asleep && sandbox.life.desired == Desired::Stopped {
            sandbox = self.wake(&sandbox, timeout).await?;
        }
        let placed = |sandbox: &Sandbox| sandbox.life.observed != State::Pending;
        let sandbox = if placed(&sandbox) { sandbox } else { self.wait(&sandbox.id, timeout, placed).await? };
        let not_running = |next: &str| {
            let why = if sandbox.reason.is_empty() { String::new() } else { format!(" ({})", sandbox.reason) };
            let message = format!("sandbox `{}` is {}{why}: {next}", sandbox.name, sandbox.life.observed.as_str());
            Err(Error::new(Code::FailedPrecondition, reason::SANDBOX_NOT_RUNNING, message))
        };
        match (sandbox.life.observed, &sandbox.runner) {
            (State::Starting | State::Running | State::Lost, Some(runner)) => Ok(Route::to(&sandbox, runner)),
            (State::Deleting | State::Deleted, _) => not_running("create another one"),
            _ => not_running(&format!("start it with `dispense start {}`", sandbox.name)),
        }
    }

    /// The id of a sandbox, if there is one.
    pub(crate) async fn id_of(&self, id_or_name: &str) -> Result<Option<SandboxId>, Error> {
        let found = self.find(id_or_name).await?;
        Ok(found.filter(|sandbox| sandbox.life.observed != State::Deleted).map(|sandbox| sandbox.id))
    }

    /// Starts one that was stopped, and waits until it is on its way.
    pub(super) async fn wake(&self, sandbox: &Sandbox, timeout: Duration) -> Result<Sandbox, Error> {
        // One that is still stopping starts when it has stopped.
        let started = self.start(sandbox.id.as_str()).await?;
        tracing::info!(sandbox = %sandbox.id, "sandbox is used and starts");
        let on_the_way = |row: &Sandbox| !matches!(row.life.observed, State::Stopping | State::Stopped);
        if on_the_way(&started) { Ok(started) } else { self.wait(&sandbox.id, timeout, on_the_way).await }
    }

    /// Waits, for a caller who asked to, until nothing more is on the way to what was asked for.
    pub(crate) async fn settled(
        &self,
        sandbox: Sandbox,
        wanted: Desired,
        timeout: Option<Duration>,
    ) -> Result<Sandbox, Error> {
        let Some(timeout) = timeout else { return Ok(sandbox) };
        self.wait(&sandbox.id, timeout, |row| row.life.observed.settles(wanted)).await
    }

    /// Waits until the row satisfies `done`.
    pub(crate) async fn wait(
        &self,
        id: &SandboxId,
        timeout: Duration,
        done: impl Fn(&Sandbox) -> bool,
    ) -> Result<Sandbox, Error> {
        let deadline = tokio::time::Instant::now() + timeout;
        let subscription = self.notices.subscribe(id);
        loop {
            let mut changed = std::pin::pin!(subscription.changed.notified());
            // From here on a notice counts, so the row that is read next is not older than it.
            changed.as_mut().enable();
            let sandbox = self.get(id.as_str()).await?;
            if done(&sandbox) {
                return Ok(sandbox);
            }
            tokio::select! {
                () = changed => {}
                () = self.notices.closed() => return Err(goes_on(&sandbox)),
                () = tokio::time::sleep_until(deadline) => return Err(self.waited_too_long(&sandbox, timeout)),
            }
        }
    }

    fn waited_too_long(&self, sandbox: &Sandbox, timeout: Duration) -> Error {
        let mut why = sandbox.reason.clone();
        if sandbox.life.observed == State::Pending {
            why = self
                .waiting_for(sandbox)
                .into_iter()
                .map(|(name, why)| format!("{name} {why}"))
                .collect::<Vec<_>>()
                .join("; ");
        }
        let why = if why.is_empty() { why } else { format!(" ({why})") };
        let message = format!(
            "sandbox `{}` is still {}{why} after {:.0} s: it goes on, `dispense get {}` shows how far it is",
            sandbox.name,
            sandbox.life.observed.as_str(),
            timeout.as_secs_f64(),
            sandbox.name
        );
        Error::new(Code::DeadlineExceeded, "wait_timeout", message)
    }

    /// Of a pending one: each runner and why it does not fit.
    pub(crate) fn waiting_for(&self, sandbox: &Sandbox) -> Vec<(String, String)> {
        if sandbox.life.observed != State::Pending {
            return vec![];
        }
        let misfits = self.fleet.misfits(&sandbox.spec);
        misfits.into_iter().map(|(_, name, misfit)| (name, misfit.to_string())).collect()
    }
}

/// Nobody waits any more, since the server is about to end. What was asked for is recorded.
fn goes_on(sandbox: &Sandbox) -> Error {
    let (name, state) = (&sandbox.name, sandbox.life.observed.as_str());
    let message = format!(
        "this server is about to end: sandbox `{name}` is {state}, and what was asked for goes on: `dispense get {name}` shows it"
    );
    Error::new(Code::Unavailable, "draining", message).with("sandbox", sandbox.id.to_string())
}
