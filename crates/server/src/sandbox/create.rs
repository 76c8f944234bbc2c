//! The birth of a sandbox: parsed, placed, recorded in one transaction, ordered from its runner at once.

use std::collections::BTreeMap;

use dispense_api::error::{Code, Error, reason};
use dispense_api::id::{JobId, RunnerId, SandboxId};
use dispense_api::name::Name;
use dispense_api::v1;

use super::lifecycle::{Fact, Lifecycle};
use super::service::Sandboxes;
use super::spec::{self, Spec, invalid};
use super::{Sandbox, names};
use crate::clock::MICROS_PER_SEC;
use crate::job::{Job, JobType};
use crate::placement::Misfit;
use crate::planted::{self, Bug};
use crate::store::{StoreError, events, jobs, sandboxes};

/// Made-up names that are tried: with 100 million of them one is nearly always enough.
const NAME_ATTEMPTS: u32 = 5;

/// A parsed request.
#[derive(Debug, Clone)]
pub(crate) struct NewSandbox {
    pub(crate) name: Option<Name>,
    pub(crate) spec: Spec,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) group: String,
    /// The account that it belongs to.
    pub(crate) owner: String,
    /// The trace context of the request; empty where nobody traces.
    pub(crate) trace: String,
}

impl NewSandbox {
    /// Parses what came from outside.
    pub(crate) fn parse(
        name: String,
        spec: v1::SandboxSpec,
        labels: BTreeMap<String, String>,
        group: String,
    ) -> Result<Self, Error> {
        let name: Option<Name> = match name.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error| invalid("name", error))?),
        };
        // Ids win over names, so a name that looks like one could never be reached.
        if let Some(name) = &name
            && name.as_str().parse::<SandboxId>().is_ok()
        {
            return Err(invalid("name", format_args!("`{name}` has the form of an id: choose another")));
        }
        let (spec, labels, group) = (Spec::parse(spec)?, spec::labels(labels)?, spec::group(group)?);
        Ok(Self { name, spec, labels, group, owner: String::new(), trace: String::new() })
    }
}

impl Sandboxes {
    /// Accepts a new sandbox. On the answer it is recorded and, if a runner fits, ordered.
    pub(crate) async fn create(&self, new: NewSandbox) -> Result<Sandbox, Error> {
        let runner = match self.fleet.reserve(&new.spec, &[]) {
            Ok(runner) => Some(runner),
            Err(misfits) => {
                self.refuse_if_hopeless(&new.spec, &misfits)?;
                None
            }
        };
        let created = self.record(&new, runner.clone()).await;
        if created.is_err()
            && let Some(runner) = &runner
        {
            self.fleet.release(runner, &new.spec);
        }
        created
    }

    async fn record(&self, new: &NewSandbox, runner: Option<RunnerId>) -> Result<Sandbox, Error> {
        for attempt in 1.. {
            let name = new.name.as_ref().map_or_else(names::random, ToString::to_string);
            match self.insert(row(new, name.clone(), runner.clone(), self.clock.now()), &new.trace).await {
                Ok(sandbox) => return Ok(sandbox),
                Err(StoreError::Taken) if new.name.is_none() && attempt < NAME_ATTEMPTS => {}
                Err(StoreError::Taken) => {
                    let message = format!(
                        "a sandbox with the name `{name}` exists: choose another name, or delete it with `dispense delete {name}`"
                    );
                    return Err(Error::new(Code::AlreadyExists, reason::NAME_TAKEN, message).with("name", name));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::new(Code::Internal, "names", "no free name was found: give one"))
    }

    async fn insert(&self, sandbox: Sandbox, trace: &str) -> Result<Sandbox, StoreError> {
        let mut job = Job::new(JobType::Create, &sandbox.id, sandbox.runner.as_ref(), sandbox.created_at);
        job.id = sandbox.job.clone();
        if planted::has(Bug::ActBeforePersisting)
            && let Some(runner) = &sandbox.runner
        {
            self.fleet.send(runner, self.orders.of(&sandbox));
        }
        planted::arm(sandbox.id.as_str());
        let (fleet, orders, live) = (self.fleet.clone(), self.orders.clone(), self.live.clone());
        let (ticker, trace) = (self.ticker.clone(), trace.to_owned());
        let write = self.store.write_then(
            move |tx| {
                let (sandbox, job) = (sandbox.clone(), job.clone());
                Box::pin(async move {
                    sandboxes::insert(&mut *tx, &sandbox).await?;
                    events::append(&mut *tx, &sandbox, sandbox.created_at).await?;
                    jobs::open(tx, &job, None).await?;
                    Ok(sandbox)
                })
            },
            move |sandbox| {
                ticker.tick();
                live.follow(sandbox);
                if let Some(runner) = &sandbox.runner {
                    // A runner that left meanwhile gets the order when it is back.
                    fleet.send(runner, orders.traced(sandbox, trace));
                }
            },
        );
        write.await
    }

    /// Refuses what could not be created, before anything is given up for it.
    pub(super) fn check(&self, new: &NewSandbox) -> Result<(), Error> {
        let misfits = self.fleet.misfits(&new.spec).into_iter().map(|(id, _, misfit)| (id, misfit));
        self.refuse_if_hopeless(&new.spec, &misfits.collect::<Vec<_>>())
    }

    /// What no waiting can mend is refused at once, so that nothing pending is left behind.
    fn refuse_if_hopeless(&self, spec: &Spec, misfits: &[(RunnerId, Misfit)]) -> Result<(), Error> {
        let templates = self.fleet.templates();
        if misfits.is_empty() || misfits.iter().any(|(_, misfit)| misfit.is_passing()) {
            return Ok(());
        }
        if !templates.contains(&spec.template) {
            let list = templates.join(", ");
            let message = format!(
                "spec.template: `{}` does not exist on any runner: there are {list}; an operator offers another with \
                 `--template NAME=PATH`",
                spec.template
            );
            return Err(Error::new(Code::InvalidArgument, reason::TEMPLATE_UNKNOWN, message)
                .with("templates", list)
                .with("field", "spec.template"));
        }
        let named = self.fleet.misfits(spec);
        let list: Vec<String> = named.iter().map(|(_, name, misfit)| format!("{name} {misfit}")).collect();
        let message = format!("no runner fits: {}; {}", list.join("; "), next_step(spec, misfits));
        let unenforced = named.iter().any(|(_, _, misfit)| matches!(misfit, Misfit::Unenforced(..)));
        let why = if unenforced { reason::LIMITS_UNENFORCED } else { reason::NO_RUNNER_FITS };
        let mut error = Error::new(Code::FailedPrecondition, why, message);
        for (id, name, misfit) in named {
            error = error.with(format!("{name} ({id})"), misfit.to_string());
        }
        Err(error)
    }
}

/// What helps who asked for what no runner has.
fn next_step(spec: &Spec, misfits: &[(RunnerId, Misfit)]) -> String {
    if misfits.iter().any(|(_, misfit)| matches!(misfit, Misfit::Content(_)))
        && let Some(content) = &spec.content
    {
        // What is shared is a directory, or the beginning of a URL, without what stands behind `#`.
        let place = content.directory.split('#').next().unwrap_or_default();
        let is_archive = [".tar", ".tar.gz", ".tgz"].iter().any(|end| place.ends_with(end));
        let place = match std::path::Path::new(place).parent() {
            Some(folder) if is_archive && place.starts_with('/') => folder.to_string_lossy(),
            _ => place.into(),
        };
        return format!("the operator of a runner shares more with `--source-root`, e.g. `--source-root {place}`");
    }
    if misfits.iter().all(|(_, misfit)| matches!(misfit, Misfit::NotTarget)) {
        let target = spec::clip(&spec.target);
        return format!("`{target}` is no runner's: `dispense runner list` shows their names, regions and labels");
    }
    "ask for less, or join a larger runner (`dispense runner --join`)".to_owned()
}

pub(super) fn row(new: &NewSandbox, name: String, runner: Option<RunnerId>, now: i64) -> Sandbox {
    let mut life = Lifecycle::new();
    if runner.is_some() {
        life.fact(Fact::Placed);
    }
    let seconds = |secs: u32| (secs > 0).then(|| after(now, secs));
    Sandbox {
        id: SandboxId::random(),
        name,
        group: new.group.clone(),
        owner: new.owner.clone(),
        labels: new.labels.clone(),
        life,
        reason: String::new(),
        revision: 1,
        runner,
        unenforced: BTreeMap::new(),
        job: JobId::random(),
        created_at: now,
        started_at: None,
        stopped_at: None,
        deleted_at: None,
        expires_at: seconds(new.spec.ttl_secs),
        lease_until: seconds(new.spec.lease_secs),
        box_gone: false,
        spec: new.spec.clone(),
    }
}

/// A time some seconds later, in microseconds.
pub(super) fn after(now: i64, secs: u32) -> i64 {
    now.saturating_add(i64::from(secs) * MICROS_PER_SEC)
}
