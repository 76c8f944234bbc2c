//! What sandboxes use over time: the reports of their agents by the minute for a day, and by the quarter of an hour for a
//! month. Reports gather in memory for some minutes before they are written, so that a fleet's history costs few
//! writes; a server that is killed loses those minutes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use dispense_api::error::Error;
use dispense_api::id::SandboxId;

use super::Sandbox;
use super::agents::Report;
use super::service::Sandboxes;
use super::spec::invalid;
use crate::clock::MICROS_PER_SEC;
use crate::refusal::unknown_sandbox;
use crate::store::{sandboxes, usage};

/// What a sandbox gathers before it is written.
const WRITE_AFTER_SECS: i64 = 300;
/// Sandboxes of one write: other writes wait for it.
const WRITE_MAX_SANDBOXES: usize = 500;
const DAY_SECS: i64 = 24 * 3600;

/// How fine samples are, and how long they are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tier {
    pub(crate) step_secs: i64,
    /// Of one row of the store.
    pub(crate) row_secs: i64,
    pub(crate) kept_secs: i64,
}

pub(crate) const FINE: Tier = Tier { step_secs: 60, row_secs: 3600, kept_secs: DAY_SECS };
pub(crate) const COARSE: Tier = Tier { step_secs: 900, row_secs: DAY_SECS, kept_secs: 30 * DAY_SECS };

/// One step of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// Its begin in seconds since 1970, a multiple of the step.
    pub(crate) at: i64,
    /// The mean; absent when no report said it.
    pub(crate) cpu_percent: Option<f64>,
    /// The highest.
    pub(crate) memory_mb: Option<u64>,
    /// The highest.
    pub(crate) session_count: u32,
    /// How many it was made of.
    pub(crate) reports: u32,
}

impl Sample {
    fn of(report: &Report, at: i64) -> Self {
        Self {
            at,
            cpu_percent: report.cpu_percent,
            memory_mb: report.memory_mb,
            session_count: report.session_count.unwrap_or(0),
            reports: 1,
        }
    }

    fn add(&mut self, other: &Self) {
        self.cpu_percent = match (self.cpu_percent, other.cpu_percent) {
            (Some(mine), Some(theirs)) => {
                let (weight, all) = (f64::from(other.reports), f64::from(self.reports) + f64::from(other.reports));
                Some(mine + (theirs - mine) * weight / all)
            }
            (mine, theirs) => mine.or(theirs),
        };
        self.memory_mb = self.memory_mb.max(other.memory_mb);
        self.session_count = self.session_count.max(other.session_count);
        self.reports = self.reports.saturating_add(other.reports);
    }
}

/// Adds samples to others, both in the order of time; those of one step become one.
pub(crate) fn merge(samples: &mut Vec<Sample>, more: &[Sample], tier: Tier) {
    for sample in more {
        let sample = Sample { at: sample.at - sample.at.rem_euclid(tier.step_secs), ..*sample };
        match samples.binary_search_by_key(&sample.at, |known| known.at) {
            Ok(index) => samples[index].add(&sample),
            Err(index) => samples.insert(index, sample),
        }
    }
}

/// What was reported and not yet written.
#[derive(Default)]
pub(crate) struct Meter {
    pending: Mutex<HashMap<SandboxId, Vec<Sample>>>,
}

impl Meter {
    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, Vec<Sample>>> {
        self.pending.lock().expect("no holder panics")
    }

    /// A report came, at a time in microseconds.
    pub(crate) fn note(&self, sandbox: &SandboxId, report: &Report, at: i64) {
        let sample = Sample::of(report, at.div_euclid(MICROS_PER_SEC));
        merge(self.lock().entry(sandbox.clone()).or_default(), &[sample], FINE);
    }

    fn of(&self, sandbox: &SandboxId) -> Vec<Sample> {
        self.lock().get(sandbox).cloned().unwrap_or_default()
    }

    /// Takes what has gathered long enough, or all.
    fn take(&self, now_secs: i64, all: bool) -> Vec<(SandboxId, Vec<Sample>)> {
        let is_due = |samples: &[Sample]| {
            // A clock that was set back does not keep them forever.
            let oldest = samples.first().map_or(now_secs, |sample| sample.at);
            all || !(0..WRITE_AFTER_SECS).contains(&(now_secs - oldest))
        };
        self.lock().extract_if(|_, samples| is_due(samples)).collect()
    }

    fn put_back(&self, taken: &[(SandboxId, Vec<Sample>)]) {
        let mut pending = self.lock();
        for (sandbox, samples) in taken {
            merge(pending.entry(sandbox.clone()).or_default(), samples, FINE);
        }
    }
}

impl Sandboxes {
    /// Writes what has gathered, and removes what is too old.
    pub(crate) async fn write_usage(&self, all: bool) -> Result<(), Error> {
        let now_secs = self.clock.now().div_euclid(MICROS_PER_SEC);
        let taken = self.meter.take(now_secs, all);
        let mut parts = taken.chunks(WRITE_MAX_SANDBOXES);
        while let Some(part) = parts.next() {
            let rows = part.to_vec();
            let write = self.store.write(move |tx| {
                let rows = rows.clone();
                Box::pin(async move {
                    for (sandbox, samples) in &rows {
                        usage::add(&mut *tx, sandbox, samples).await?;
                    }
                    Ok(())
                })
            });
            if let Err(error) = write.await {
                self.meter.put_back(part);
                parts.for_each(|part| self.meter.put_back(part));
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// What a sandbox used between two times in microseconds, also a deleted one, as fine as it is kept.
    pub(super) async fn usage(
        &self,
        id_or_name: &str,
        from: i64,
        to: i64,
    ) -> Result<(Sandbox, Tier, Vec<Sample>), Error> {
        let readers = self.store.readers();
        let found = sandboxes::find_any(readers, id_or_name).await?;
        let sandbox = found.ok_or_else(|| unknown_sandbox(id_or_name))?;
        let (from, to) = (from.div_euclid(MICROS_PER_SEC), to.div_euclid(MICROS_PER_SEC));
        if from > to {
            return Err(invalid("from", "it is after `to`"));
        }
        let now_secs = self.clock.now().div_euclid(MICROS_PER_SEC);
        let tier = if from >= now_secs - FINE.kept_secs { FINE } else { COARSE };
        // First, so that nothing is missed: what is written meanwhile is in both, and merges with itself.
        let pending = self.meter.of(&sandbox.id);
        let mut samples = usage::range(readers, &sandbox.id, tier, from, to).await?;
        merge(&mut samples, &pending, tier);
        samples.retain(|sample| (from..=to).contains(&sample.at));
        Ok((sandbox, tier, samples))
    }
}
