//! The owner of one box: one task a sandbox, the only one that acts on it.
//!
//! It takes orders from the supervisor, asks [`plan`](crate::plan) for the next step, performs it on the
//! backend, watches the agent while the box runs, and reports what is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dispense_api::agent::{Report, watch_response};
use dispense_api::error::reason;
use dispense_api::id::{Generation, SandboxId};
use dispense_api::runner::{AgentReport, Box as BoxMessage, BoxState, SandboxLog, Visit};
use dispense_api::trace::Span;
use dispense_api::v1::ProcessLog;
use dispense_backend::{Backend, BackendError, BoxExit, BoxSpec};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::{self, AgentError, Watch};
use crate::content::{Content, Contents};
use crate::logs::Logs;
use crate::plan::{self, Observed, Step, Wanted};
use crate::reports::Reports;
use crate::wanted;

/// A backend's step that takes longer hangs: a cold template is unpacked in less.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// An agent that has not answered by then will not: it boots in milliseconds.
const AGENT_BOOT_TIMEOUT: Duration = Duration::from_secs(30);
/// Between SIGTERM and SIGKILL of a stop.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// The agent ends itself within the grace; this much later it is killed with the box.
const STOP_SLACK: Duration = Duration::from_secs(2);
/// For the last words of the processes of a box that is removed.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(500);
/// For a step that is under way when the runner ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Before a step that failed is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Before a lost watch is opened again.
const WATCH_RETRY_DELAY: Duration = Duration::from_millis(500);

/// What the server wants of this sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) wanted: Wanted,
    pub(crate) generation: Generation,
    /// With [`Wanted::Running`].
    pub(crate) spec: Option<BoxSpec>,
    /// What the box is filled with, before it counts as running.
    pub(crate) content: Option<Content>,
    /// Of each stream of a process that has ended, for the server; 0 for none.
    pub(crate) log_tail_bytes: u32,
    /// The trace context of who asked; empty where nobody did.
    pub(crate) trace: String,
}

impl Order {
    /// What processes inherit; `None` when none are to run.
    pub(crate) fn environment(&self) -> Option<Environment> {
        self.spec.as_ref().map(wanted::environment)
    }
}

/// Variables by name.
pub(crate) type Environment = BTreeMap<String, String>;

/// Whether sessions can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not yet: a step is under way, or none was ordered.
    Waiting,
    /// The agent can be dialled.
    Dialable(Generation),
    /// Not until something else is ordered; with the stable reason and a sentence.
    Closed(&'static str, String),
}

/// The task and what it owns.
pub(crate) struct Owner {
    pub(crate) sandbox: SandboxId,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) reports: Arc<Reports>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) contents: Arc<Contents>,
    pub(crate) orders: watch::Receiver<Option<Order>>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) observed: Observed,
    pub(crate) unenforced: BTreeMap<String, String>,
    /// Of a box that is [`Observed::Broken`]: what is the matter with it.
    pub(crate) damage: String,
    /// What its agent is started with, where this runner's process has made it.
    pub(crate) made_with: Option<Environment>,
    /// What the agent that runs is known to have.
    pub(crate) told: Option<Environment>,
}

/// Why the owner stopped watching a running box.
enum Watched {
    NewOrder,
    Ended(BoxExit),
    Silent,
    Shutdown,
}

impl Owner {
    /// Runs until the box is gone, or the runner shuts down (then the box lives on).
    pub(crate) async fn run(mut self) {
        loop {
            let order = self.orders.borrow_and_update().clone();
            let step = order
                .as_ref()
                .map_or(Step::Nothing, |order| plan::next_step(order.wanted, order.generation, self.observed));
            if let (Some(order), true) = (&order, step != Step::Nothing) {
                let shutdown = self.shutdown.clone();
                let too_long = async {
                    shutdown.cancelled().await;
                    tokio::time::sleep(SHUTDOWN_GRACE).await;
                };
                tokio::select! {
                    () = self.perform(step, order) => continue,
                    // A step that is cut is repaired at the next start, as after a crash.
                    () = too_long => return,
                }
            }
            if self.observed == Observed::Absent && order.as_ref().is_some_and(|order| order.wanted == Wanted::Absent) {
                self.report(BoxState::Gone, Generation::default(), None);
                return;
            }
            if let (Some(order), Observed::Absent | Observed::Stopped(_)) = (&order, self.observed)
                && order.wanted == Wanted::Stopped
            {
                // It was to be stopped before it was made, or before it was started.
                self.report(BoxState::Stopped, order.generation, None);
            }
            if let (Some(order), Observed::Broken) = (&order, self.observed) {
                let failure = Failure { reason: "box_damaged", message: self.damage.clone(), out_of_memory: false };
                self.report(BoxState::Failed, order.generation, Some(failure));
            }
            let watched = match self.observed {
                Observed::Started(generation) => self.watch(generation).await,
                _ => self.idle().await,
            };
            match watched {
                Watched::NewOrder => {}
                Watched::Shutdown => return,
                Watched::Ended(exit) => self.ended(exit).await,
                Watched::Silent => self.silent().await,
            }
        }
    }

    async fn idle(&mut self) -> Watched {
        tokio::select! {
            () = self.shutdown.cancelled() => Watched::Shutdown,
            changed = self.orders.changed() => if changed.is_ok() { Watched::NewOrder } else { Watched::Shutdown },
        }
    }

    async fn perform(&mut self, step: Step, order: &Order) {
        let generation = order.generation;
        let mut span = Span::below(step.name(), &order.trace);
        let result = match step {
            Step::Create => match &order.spec {
                Some(spec) => self.create(spec).await,
                None => Err(BackendError::failed("start a box without a spec", "the server sent none")),
            },
            Step::Start => self.start(order).await,
            Step::Stop => self.stop(generation).await,
            Step::Destroy => self.destroy().await,
            Step::Nothing => Ok(()),
        };
        if let Err(error) = result {
            if let Some(span) = &mut span {
                span.fail(error.to_string());
            }
            self.failed(step, generation, &error);
            if matches!(step, Step::Stop | Step::Destroy) {
                // What could not be ended or removed is tried again, not reported as done.
                self.pause().await;
            }
        }
    }

    async fn create(&mut self, spec: &BoxSpec) -> Result<(), BackendError> {
        self.report(BoxState::Starting, spec.generation, None);
        within("make the box", self.backend.create(spec)).await?;
        self.observed = Observed::Stopped(spec.generation);
        self.made_with = Some(wanted::environment(spec));
        Ok(())
    }

    async fn start(&mut self, order: &Order) -> Result<(), BackendError> {
        let generation = order.generation;
        self.report(BoxState::Starting, generation, None);
        within("start the box", self.backend.start(&self.sandbox)).await?;
        self.observed = Observed::Started(generation);
        self.told = self.made_with.clone();
        if let Some(content) = order.content.as_ref().filter(|_| !self.contents.is_filled(&self.sandbox)) {
            let disk_bytes = order.spec.as_ref().map_or(0, |spec| spec.limits.disk_bytes);
            let filled = tokio::select! {
                filled = self.contents.fill(&*self.backend, &self.sandbox, content, disk_bytes, |how_far| {
                    let message = Failure { message: how_far, ..Failure::default() };
                    self.report(BoxState::Starting, generation, Some(message));
                }) => Some(filled),
                () = overtaken(self.orders.clone()) => None,
            };
            if filled.as_ref().is_none_or(Result::is_err) {
                within("stop a box that is not filled", self.backend.stop(&self.sandbox)).await?;
                self.observed = Observed::Stopped(generation);
                // What is wanted instead comes next.
                return filled.unwrap_or(Ok(()));
            }
        }
        self.open(generation);
        Ok(())
    }

    /// Lets sessions in, unless they come behind variables that the agent has not been told.
    fn open(&self, generation: Generation) {
        // With the phase in hand, as the supervisor has it when it gives an order.
        self.phase.send_modify(|phase| {
            let wanted = self.orders.borrow().as_ref().and_then(Order::environment);
            let is_told = wanted.is_none() || wanted == self.told;
            *phase = if is_told { Phase::Dialable(generation) } else { Phase::Waiting };
        });
    }

    /// Tells the agent what processes inherit, where it may have something else.
    async fn tell_environment(&mut self, generation: Generation) -> Result<(), AgentError> {
        let wanted = self.orders.borrow().as_ref().and_then(Order::environment);
        let Some(wanted) = wanted.filter(|wanted| self.told.as_ref() != Some(wanted)) else { return Ok(()) };
        match agent::set_environment(&*self.backend, &self.sandbox, &wanted).await {
            Ok(()) => {}
            // An agent of an older version: its processes have the new ones when it is started again.
            Err(AgentError::Refused(why)) => {
                tracing::warn!(sandbox = %self.sandbox, %why, "agent does not take variables");
            }
            Err(error) => return Err(error),
        }
        self.told = Some(wanted);
        self.open(generation);
        Ok(())
    }

    async fn stop(&mut self, generation: Generation) -> Result<(), BackendError> {
        self.report(BoxState::Stopping, generation, None);
        self.phase
            .send_replace(Phase::Closed(reason::SANDBOX_NOT_RUNNING, format!("sandbox {} is stopping", self.sandbox)));
        if matches!(self.observed, Observed::Started(_)) {
            let graceful = async {
                self.shut_agent_down(generation, STOP_GRACE).await;
                self.backend.wait(&self.sandbox).await
            };
            let _ = tokio::time::timeout(STOP_GRACE + STOP_SLACK, graceful).await;
        }
        self.observed = match within("stop the box", self.backend.stop(&self.sandbox)).await {
            Ok(()) => Observed::Stopped(generation),
            // Its making failed and left nothing.
            Err(BackendError::Unknown(_)) => Observed::Absent,
            Err(error) => return Err(error),
        };
        self.report(BoxState::Stopped, generation, None);
        Ok(())
    }

    async fn destroy(&mut self) -> Result<(), BackendError> {
        self.phase
            .send_replace(Phase::Closed(reason::SANDBOX_NOT_RUNNING, format!("sandbox {} is deleted", self.sandbox)));
        if let Observed::Started(generation) = self.observed {
            // Only for the last words of its processes: one that does not answer is killed all the same.
            let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, self.shut_agent_down(generation, Duration::ZERO)).await;
        }
        within("remove the box", self.backend.destroy(&self.sandbox)).await?;
        self.contents.forget(&self.sandbox);
        self.observed = Observed::Absent;
        Ok(())
    }

    async fn shut_agent_down(&self, generation: Generation, grace: Duration) {
        match agent::shut_down(&*self.backend, &self.sandbox, grace, self.log_tail_bytes()).await {
            Ok(logs) => logs.into_iter().for_each(|log| self.keep(generation, log)),
            Err(error) => tracing::debug!(sandbox = %self.sandbox, %error, "agent did not shut down"),
        }
    }

    fn log_tail_bytes(&self) -> u32 {
        self.orders.borrow().as_ref().map_or(0, |order| order.log_tail_bytes)
    }

    fn keep(&self, generation: Generation, log: ProcessLog) {
        self.logs.put(SandboxLog { sandbox_id: self.sandbox.to_string(), generation: generation.0, log: Some(log) });
    }

    /// Watches a running box until something happens.
    async fn watch(&mut self, generation: Generation) -> Watched {
        let (backend, sandbox) = (self.backend.clone(), self.sandbox.clone());
        let mut ended = std::pin::pin!(async move { backend.wait(&sandbox).await });
        let mut hello_deadline = Some(tokio::time::Instant::now() + AGENT_BOOT_TIMEOUT);
        let (mut orders, shutdown) = (self.orders.clone(), self.shutdown.clone());
        loop {
            let messages = self.read_agent(generation, &mut hello_deadline);
            let lost = tokio::select! {
                () = shutdown.cancelled() => return Watched::Shutdown,
                changed = orders.changed() => return if changed.is_ok() { Watched::NewOrder } else { Watched::Shutdown },
                exit = &mut ended => return Watched::Ended(exit.unwrap_or_default()),
                lost = messages => lost,
            };
            if let Some(deadline) = hello_deadline
                && tokio::time::Instant::now() >= deadline
            {
                return Watched::Silent;
            }
            tracing::debug!(sandbox = %self.sandbox, error = %lost, "watch of the agent was lost");
            tokio::select! {
                () = self.shutdown.cancelled() => return Watched::Shutdown,
                exit = &mut ended => return Watched::Ended(exit.unwrap_or_default()),
                () = tokio::time::sleep(WATCH_RETRY_DELAY) => {}
            }
        }
    }

    /// Forwards what the agent says until its stream ends.
    async fn read_agent(
        &mut self,
        generation: Generation,
        hello_deadline: &mut Option<tokio::time::Instant>,
    ) -> AgentError {
        if let Err(error) = self.tell_environment(generation).await {
            return error;
        }
        let mut watch = match Watch::open(&*self.backend, &self.sandbox, self.log_tail_bytes()).await {
            Ok(watch) => watch,
            Err(error) => return error,
        };
        loop {
            let next = match *hello_deadline {
                Some(deadline) => match tokio::time::timeout_at(deadline, watch.next()).await {
                    Ok(next) => next,
                    Err(_) => return AgentError::Timeout,
                },
                None => watch.next().await,
            };
            match next {
                Err(error) => return error,
                Ok(message) => match message.kind {
                    Some(watch_response::Kind::Hello(_)) if hello_deadline.take().is_some() => {
                        self.report(BoxState::Running, generation, None);
                    }
                    // After a lost watch.
                    Some(watch_response::Kind::Hello(_)) => {}
                    Some(watch_response::Kind::Report(report)) => {
                        self.reports.put_agent(&self.sandbox, agent_report(&self.sandbox, generation, report));
                    }
                    Some(watch_response::Kind::Log(log)) => self.keep(generation, log),
                    Some(watch_response::Kind::Visit(visit)) => self.reports.put_visit(Visit {
                        sandbox_id: self.sandbox.to_string(),
                        generation: generation.0,
                        service: visit.service,
                        connection: visit.connection,
                    }),
                    // Of a newer agent.
                    None => {}
                },
            }
        }
    }

    async fn ended(&mut self, exit: BoxExit) {
        let Observed::Started(generation) = self.observed else { return };
        // The first process is gone; what is left of the box is taken down before it is reported stopped.
        if let Err(error) = within("clean up after the box", self.backend.stop(&self.sandbox)).await {
            return self.failed(Step::Stop, generation, &error);
        }
        self.observed = Observed::Failed(generation);
        let message = if exit.out_of_memory {
            "the sandbox ran out of memory and its agent was killed: start it again, with a higher memory limit"
        } else {
            "the agent of the sandbox ended: start it again"
        };
        self.phase.send_replace(Phase::Closed(reason::SANDBOX_NOT_RUNNING, message.to_owned()));
        let failure = Failure {
            reason: reason::AGENT_UNREACHABLE,
            message: message.to_owned(),
            out_of_memory: exit.out_of_memory,
        };
        self.report(BoxState::Failed, generation, Some(failure));
    }

    async fn silent(&mut self) {
        let Observed::Started(generation) = self.observed else { return };
        if let Err(error) = within("stop a box whose agent is silent", self.backend.stop(&self.sandbox)).await {
            tracing::warn!(sandbox = %self.sandbox, error = &error as &dyn std::error::Error, "box could not be stopped");
        }
        self.observed = Observed::Failed(generation);
        let message =
            format!("the agent did not answer within {} s: see the runner's log", AGENT_BOOT_TIMEOUT.as_secs());
        self.phase.send_replace(Phase::Closed(reason::AGENT_UNREACHABLE, message.clone()));
        self.report(
            BoxState::Failed,
            generation,
            Some(Failure { reason: reason::AGENT_UNREACHABLE, message, out_of_memory: false }),
        );
    }

    fn failed(&mut self, step: Step, generation: Generation, error: &BackendError) {
        tracing::warn!(sandbox = %self.sandbox, ?step, error = error as &dyn std::error::Error, "step failed");
        let (reason, message) = match error {
            BackendError::Refused { reason, message } => (*reason, message.clone()),
            // The source is told too: it is what the operator must mend, and names no secret.
            BackendError::Failed { source, .. } => ("backend", format!("{error}: {source}")),
            BackendError::Unknown(_) | BackendError::Exists(..) | BackendError::NotRunning(_) => {
                ("backend", error.to_string())
            }
        };
        self.observed = match (step, self.observed) {
            // A refused create left nothing behind.
            (Step::Destroy, observed) => observed,
            _ => Observed::Failed(generation),
        };
        self.phase.send_replace(Phase::Closed(reason, message.clone()));
        self.report(BoxState::Failed, generation, Some(Failure { reason, message, out_of_memory: false }));
    }

    /// Before a step that failed is tried again, unless something else is ordered.
    async fn pause(&mut self) {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            _ = self.orders.changed() => {}
            () = tokio::time::sleep(RETRY_DELAY) => {}
        }
    }

    fn report(&self, state: BoxState, generation: Generation, failure: Option<Failure>) {
        let failure = failure.unwrap_or_default();
        let generation = self.orders.borrow().as_ref().map_or(generation, |order| generation.max(order.generation));
        self.reports.put_box(
            &self.sandbox,
            BoxMessage {
                sandbox_id: self.sandbox.to_string(),
                generation: generation.0,
                state: state.into(),
                reason: failure.reason.to_owned(),
                message: failure.message,
                unenforced_limits: self.unenforced.clone(),
                out_of_memory: failure.out_of_memory,
            },
        );
    }
}

#[derive(Default)]
struct Failure {
    reason: &'static str,
    message: String,
    out_of_memory: bool,
}

/// Returns when something else than a running box is wanted.
async fn overtaken(mut orders: watch::Receiver<Option<Order>>) {
    let running = |order: &Option<Order>| order.as_ref().is_some_and(|order| order.wanted == Wanted::Running);
    if orders.wait_for(|order| !running(order)).await.is_err() {
        std::future::pending().await
    }
}

async fn within<T>(action: &str, step: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
    match tokio::time::timeout(STEP_TIMEOUT, step).await {
        Ok(result) => result,
        Err(_) => {
            Err(BackendError::failed(action, format!("the backend did not answer within {} s", STEP_TIMEOUT.as_secs())))
        }
    }
}

fn agent_report(sandbox: &SandboxId, generation: Generation, report: Report) -> AgentReport {
    AgentReport {
        sandbox_id: sandbox.to_string(),
        generation: generation.0,
        hostname: report.hostname,
        cpu_percent: report.cpu_percent,
        memory_mb: report.memory_mb,
        session_count: Some(report.session_count),
        uptime_secs: report.uptime_secs,
        status: report.status,
        idle_secs: report.idle_secs,
    }
}
