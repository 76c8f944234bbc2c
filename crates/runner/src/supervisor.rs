//! One owner task for each sandbox that has a box here or an order.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use dispense_api::id::{Generation, SandboxId};
use dispense_api::runner::{Box as BoxMessage, BoxState as BoxStateMessage};
use dispense_backend::{Backend, BackendError, BoxReport, BoxState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::content::Contents;
use crate::logs::Logs;
use crate::owner::{Order, Owner, Phase};
use crate::plan::{self, Observed, Wanted};
use crate::reports::Reports;

struct Handle {
    orders: watch::Sender<Option<Order>>,
    phase: watch::Sender<Phase>,
}

impl Handle {
    /// Gives the owner an order. A session that comes behind it waits for it, whatever the owner is at: for a box that
    /// is to run, and for one whose processes are to have other variables.
    fn take(&self, order: &Order) {
        // Both at once: an owner that was quicker with the order would let sessions in before they are kept waiting.
        self.phase.send_if_modified(|phase| {
            let mut renews = false;
            self.orders.send_if_modified(|current| {
                let newest = current.as_ref().map(|current| current.generation);
                let taken = plan::supersedes(newest, order.generation);
                if taken {
                    let former = current.as_ref().and_then(Order::environment);
                    renews = order.environment().is_some_and(|wanted| former != Some(wanted));
                    *current = Some(order.clone());
                }
                taken
            });
            let waits = match phase {
                Phase::Closed(..) => order.wanted == Wanted::Running,
                Phase::Dialable(_) => renews,
                Phase::Waiting => false,
            };
            if waits {
                *phase = Phase::Waiting;
            }
            waits
        });
    }
}

struct Inner {
    backend: Arc<dyn Backend>,
    reports: Arc<Reports>,
    logs: Arc<Logs>,
    contents: Arc<Contents>,
    owners: Mutex<HashMap<SandboxId, Handle>>,
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

/// A cloneable handle to all owners.
#[derive(Clone)]
pub(crate) struct Supervisor(Arc<Inner>);

impl Supervisor {
    /// Takes over every box that the backend has.
    pub(crate) async fn start(
        backend: Arc<dyn Backend>,
        reports: Arc<Reports>,
        logs: Arc<Logs>,
        contents: Arc<Contents>,
    ) -> Result<Self, BackendError> {
        let boxes = backend.list().await?;
        let inner = Inner {
            backend,
            reports,
            logs,
            contents,
            owners: Mutex::default(),
            tracker: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        };
        let supervisor = Self(Arc::new(inner));
        for found in boxes {
            supervisor.adopt(found).await;
        }
        Ok(supervisor)
    }

    async fn adopt(&self, found: BoxReport) {
        let mut message = BoxMessage {
            sandbox_id: found.sandbox.to_string(),
            generation: found.generation.0,
            unenforced_limits: found.unenforced_limits.clone(),
            ..BoxMessage::default()
        };
        let observed = match &found.state {
            BoxState::Running => match self.adopt_running(&found.sandbox).await {
                Ok(false) => {
                    message.set_state(BoxStateMessage::Stopped);
                    Observed::Stopped(found.generation)
                }
                Ok(true) => {
                    message.set_state(BoxStateMessage::Running);
                    Observed::Started(found.generation)
                }
                Err(error) => {
                    message.set_state(BoxStateMessage::Failed);
                    message.message = error.to_string();
                    Observed::Failed(found.generation)
                }
            },
            BoxState::Stopped => {
                message.set_state(BoxStateMessage::Stopped);
                Observed::Stopped(found.generation)
            }
            BoxState::Broken(why) => {
                message.set_state(BoxStateMessage::Failed);
                message.message = format!("its box on this runner is damaged ({why}): delete the sandbox");
                Observed::Broken
            }
        };
        tracing::info!(sandbox = %found.sandbox, generation = %found.generation, state = ?found.state, "found a box");
        let damage = message.message.clone();
        self.0.reports.put_box(&found.sandbox, message);
        self.spawn(&found.sandbox, None, observed, found.unenforced_limits, damage);
    }

    /// Takes a running box over; `false` when the runner died while it filled it: then it is stopped, and its order
    /// starts it and fills it again.
    async fn adopt_running(&self, sandbox: &SandboxId) -> Result<bool, BackendError> {
        self.0.backend.adopt(sandbox).await?;
        if !self.0.contents.is_filling(sandbox) {
            return Ok(true);
        }
        self.0.backend.stop(sandbox).await?;
        Ok(false)
    }

    /// Takes an order. One of an older generation than the newest is ignored.
    pub(crate) fn order(&self, sandbox: &SandboxId, order: Order) {
        tracing::debug!(%sandbox, wanted = ?order.wanted, generation = %order.generation, "order");
        let owners = self.0.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = owners.get(sandbox) {
            let mut alive = !handle.orders.is_closed();
            if alive {
                handle.take(&order);
                // The owner may have ended between the look and the order: then the order starts a new one.
                alive = !handle.orders.is_closed();
            }
            if alive {
                return;
            }
        }
        drop(owners);
        let unenforced =
            order.spec.as_ref().map(|_| self.0.backend.capabilities().unenforced_limits).unwrap_or_default();
        self.spawn(sandbox, Some(order), Observed::Absent, unenforced, String::new());
    }

    fn spawn(
        &self,
        sandbox: &SandboxId,
        order: Option<Order>,
        observed: Observed,
        unenforced: BTreeMap<String, String>,
        damage: String,
    ) {
        let first = match observed {
            Observed::Started(generation) => Phase::Dialable(generation),
            _ => Phase::Waiting,
        };
        let (orders, receiver) = watch::channel(order);
        let phase = watch::channel(first).0;
        let owner = Owner {
            sandbox: sandbox.clone(),
            backend: self.0.backend.clone(),
            reports: self.0.reports.clone(),
            logs: self.0.logs.clone(),
            contents: self.0.contents.clone(),
            orders: receiver,
            phase: phase.clone(),
            shutdown: self.0.shutdown.clone(),
            observed,
            unenforced,
            damage,
            made_with: None,
            told: None,
        };
        let mut owners = self.0.owners.lock().unwrap_or_else(PoisonError::into_inner);
        // Owners that ended are forgotten here, so that the map is no longer than what lives, and one.
        owners.retain(|_, handle| !handle.orders.is_closed());
        owners.insert(sandbox.clone(), Handle { orders, phase });
        drop(owners);
        self.0.tracker.spawn(owner.run());
    }

    /// The phase of a sandbox's box; `None` when nothing was ever ordered for it.
    pub(crate) fn phase(&self, sandbox: &SandboxId) -> Option<watch::Receiver<Phase>> {
        let owners = self.0.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.get(sandbox).map(|handle| handle.phase.subscribe())
    }

    /// The newest generation that was ordered.
    pub(crate) fn generation(&self, sandbox: &SandboxId) -> Option<Generation> {
        let owners = self.0.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.get(sandbox).and_then(|handle| handle.orders.borrow().as_ref().map(|order| order.generation))
    }

    /// Ends the owners; the boxes live on.
    pub(crate) async fn stop(&self) {
        self.0.shutdown.cancel();
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }
}
