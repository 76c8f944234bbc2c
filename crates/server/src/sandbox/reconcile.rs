//! What runners report, brought together with the rows: one box at a time, and all of a runner that has just
//! connected.

use std::collections::{HashMap, HashSet};

use dispense_api::error::Error;
use dispense_api::id::{RunnerId, SandboxId};
use dispense_api::runner::ServerMessage;
use sqlx::AnyConnection;

use super::Sandbox;
use super::change::{Applied, Cause, apply};
use super::lifecycle::{BoxFact, State};
use super::service::Sandboxes;
use crate::fleet::{BoxReport, KnownRunner, LinkHandle};
use crate::planted::{self, Bug};
use crate::store::{StoreError, jobs, sandboxes};

impl Sandboxes {
    /// A runner reported a box.
    pub(crate) async fn box_reported(&self, runner: &RunnerId, report: BoxReport) -> Result<(), Error> {
        tracing::debug!(%runner, sandbox = %report.sandbox, generation = %report.generation, fact = ?report.fact, "box");
        let Some(sandbox) = self.find(report.sandbox.as_str()).await? else {
            if report.fact != BoxFact::Gone {
                // It is kept: a server with an old copy of its database must not destroy what it has forgotten.
                tracing::warn!(%runner, sandbox = %report.sandbox, "runner has a box that this server does not know");
            }
            return Ok(());
        };
        let stale = sandbox.runner.as_ref() != Some(runner) || report.generation != sandbox.life.generation;
        if sandbox.life.observed == State::Deleted || (stale && !planted::has(Bug::SkipFencing)) {
            return self.stale_box(runner, &sandbox, &report).await;
        }
        let id = report.sandbox.clone();
        if report.fact == BoxFact::Failed && sandbox.life.can_move() && self.moved(runner, &sandbox, &report).await? {
            return Ok(());
        }
        self.change(&id, Cause::Box(report)).await.map(drop)
    }

    /// A box that could not be made is made by another runner, if there is one that has not tried it.
    async fn moved(&self, runner: &RunnerId, sandbox: &Sandbox, report: &BoxReport) -> Result<bool, Error> {
        let job = jobs::find(self.store.readers(), &sandbox.job).await?;
        let mut tried: Vec<RunnerId> = job
            .map(|job| job.attempts)
            .unwrap_or_default()
            .iter()
            .filter_map(|attempt| attempt.runner.parse().ok())
            .collect();
        tried.push(runner.clone());
        let Ok(next) = self.fleet.reserve(&sandbox.spec, &tried) else { return Ok(false) };
        let cause = Cause::Moved { generation: report.generation, why: report.message.clone(), to: next.clone() };
        let moved = self.change(&sandbox.id, cause).await;
        let taken = matches!(&moved, Ok(now) if now.runner.as_ref() == Some(&next));
        if !taken {
            self.fleet.release(&next, &sandbox.spec);
            return moved.map(|_| false);
        }
        tracing::info!(sandbox = %sandbox.id, from = %runner, to = %next, why = %report.message, "sandbox moved");
        self.fleet.release(runner, &sandbox.spec);
        self.fleet.send(runner, self.orders.absent(&sandbox.id, report.generation.0));
        Ok(true)
    }

    /// A box that is not the sandbox's present one: its runner is told again what is wanted.
    async fn stale_box(&self, runner: &RunnerId, sandbox: &Sandbox, report: &BoxReport) -> Result<(), Error> {
        let forgotten = sandbox.life.observed == State::Deleted && sandbox.runner.as_ref() == Some(runner);
        if report.fact == BoxFact::Gone {
            if forgotten && !sandbox.box_gone {
                self.mark_gone(&sandbox.id).await?;
            }
            return Ok(());
        }
        let mut wanted = self.orders.of(sandbox);
        if sandbox.runner.as_ref() != Some(runner) || forgotten {
            wanted = self.orders.absent(&sandbox.id, sandbox.life.generation.max(report.generation).0);
        }
        self.fleet.send(runner, wanted);
        Ok(())
    }

    async fn mark_gone(&self, id: &SandboxId) -> Result<(), Error> {
        let id = id.clone();
        let write = self.store.write(move |tx| {
            let id = id.clone();
            Box::pin(async move {
                if let Some(mut sandbox) = sandboxes::get(tx, &id).await? {
                    sandbox.box_gone = true;
                    sandboxes::update(tx, &sandbox).await?;
                }
                Ok(())
            })
        });
        Ok(write.await?)
    }

    /// Brings the rows and a runner that has just connected together, and takes its link. Returns the
    /// link's number and what is wanted of each of its sandboxes.
    pub(crate) async fn reconcile(
        &self,
        known: KnownRunner,
        boxes: Vec<BoxReport>,
        handle: LinkHandle,
    ) -> Result<(u64, Vec<ServerMessage>), Error> {
        for report in &boxes {
            tracing::debug!(runner = %known.id, sandbox = %report.sandbox, generation = %report.generation, fact = ?report.fact, "box in hello");
        }
        let (runner, reports) = (known.id.clone(), boxes.clone());
        let (written, clock) = (self.orders.clone(), self.clock.clone());
        let (fleet, follow_up) = (self.fleet.clone(), self.follow_up());
        let result = self.store.write_then(
            move |tx| {
                let (runner, reports, now) = (runner.clone(), reports.clone(), clock.now());
                Box::pin(async move { reconciled(tx, &runner, reports, now).await.map(|applied| (0, applied, vec![])) })
            },
            move |(serial, applied, orders)| {
                for change in applied.iter() {
                    // The orders go with the welcome, before anything that is sent through the link.
                    follow_up(&Applied { order: false, ..change.clone() });
                    if change.sandbox.life.wanted().is_some() {
                        orders.push(written.of(&change.sandbox));
                    }
                }
                *serial = fleet.attach(known, handle);
            },
        );
        let (serial, applied, mut orders) = result.await?;
        let here: HashSet<&SandboxId> = applied
            .iter()
            .filter(|change| change.sandbox.life.observed != State::Deleted)
            .map(|change| &change.sandbox.id)
            .collect();
        for report in boxes.iter().filter(|report| !here.contains(&report.sandbox)) {
            match self.find(report.sandbox.as_str()).await {
                Ok(Some(sandbox)) => {
                    orders.push(self.orders.absent(&sandbox.id, sandbox.life.generation.max(report.generation).0));
                }
                Ok(None) | Err(StoreError::Row { .. }) => {
                    tracing::warn!(sandbox = %report.sandbox, "runner has a box that this server does not know: it is kept");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((serial, orders))
    }
}

async fn reconciled(
    tx: &mut AnyConnection,
    runner: &RunnerId,
    reports: Vec<BoxReport>,
    now: i64,
) -> Result<Vec<Applied>, StoreError> {
    let mut reports: HashMap<SandboxId, BoxReport> =
        reports.into_iter().map(|report| (report.sandbox.clone(), report)).collect();
    let mut applied = Vec::new();
    for sandbox in sandboxes::of_runner(tx, runner).await? {
        let report = reports.remove(&sandbox.id).unwrap_or_else(|| BoxReport {
            sandbox: sandbox.id.clone(),
            generation: sandbox.life.generation,
            fact: BoxFact::Missing,
            message: String::new(),
            unenforced: Default::default(),
        });
        if sandbox.life.observed == State::Deleted {
            // Forgotten while its runner was away; now it is known that nothing is left.
            if report.fact == BoxFact::Missing {
                sandboxes::update(tx, &Sandbox { box_gone: true, ..sandbox }).await?;
            }
            continue;
        }
        if let Ok(change) = apply(tx, sandbox, Cause::Box(report), now).await? {
            applied.push(change);
        }
    }
    Ok(applied)
}
