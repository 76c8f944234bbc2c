//! The variables that a sandbox's processes start with, changed while it is there. They are a part of its row; its runner
//! is told all of them, and tells its agent.

use std::collections::BTreeMap;

use dispense_api::error::Error;
use dispense_api::id::SandboxId;
use dispense_api::limits::reports;
use sqlx::AnyConnection;

use super::Sandbox;
use super::change::Applied;
use super::lifecycle::{Denied, Desired, State};
use super::service::Sandboxes;
use super::spec::{clip, invalid, variables};
use crate::refusal::{denied, unknown_sandbox};
use crate::store::{StoreError, events, sandboxes};

/// In refusals.
const FIELD: &str = "environment";

/// What is set and what is removed.
#[derive(Clone)]
pub(crate) struct Change {
    set: BTreeMap<String, String>,
    unset: Vec<String>,
}

impl Change {
    /// Parses what came from outside.
    pub(crate) fn parse(set: BTreeMap<String, String>, unset: Vec<String>) -> Result<Self, Error> {
        let set = variables(FIELD, set)?;
        // The agent that runs has its own, and is expected to report as often as that.
        let mut names = set.keys().chain(&unset);
        if names.any(|name| name == reports::VARIABLE) {
            return Err(invalid(FIELD, format_args!("`{}` is chosen when a sandbox is created", reports::VARIABLE)));
        }
        match unset.iter().find(|name| set.contains_key(*name)) {
            None => Ok(Self { set, unset }),
            Some(name) => Err(invalid(FIELD, format_args!("`{}` is both set and removed", clip(name)))),
        }
    }

    /// What comes of it; all variables together have a bound.
    fn of(&self, mut all: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
        all.retain(|name, _| !self.unset.contains(name));
        all.extend(self.set.clone());
        variables(FIELD, all)
    }
}

impl Sandboxes {
    /// Changes the variables of a sandbox. On the answer its runner, if it has one that runs it, was told before any
    /// session that is opened later.
    pub(super) async fn change_environment(&self, id: &SandboxId, change: Change) -> Result<Sandbox, Error> {
        let (wanted, clock, after) = (id.clone(), self.clock.clone(), self.follow_up());
        let changed = self.store.write_then(
            move |tx| {
                let (id, change, now) = (wanted.clone(), change.clone(), clock.now());
                Box::pin(async move {
                    match sandboxes::get(&mut *tx, &id).await? {
                        Some(sandbox) => changed(tx, sandbox, &change, now).await.map(Some),
                        None => Ok(None),
                    }
                })
            },
            move |changed| {
                if let Some(Ok(applied)) = changed {
                    after(applied);
                }
            },
        );
        changed.await?.ok_or_else(|| unknown_sandbox(id.as_str()))?.map(|applied| applied.sandbox)
    }
}

/// In the transaction that read the row. A refusal writes nothing.
async fn changed(
    tx: &mut AnyConnection,
    mut sandbox: Sandbox,
    change: &Change,
    now: i64,
) -> Result<Result<Applied, Error>, StoreError> {
    let before = sandbox.life.observed;
    if sandbox.life.desired == Desired::Deleted {
        return Ok(Err(denied(&sandbox.id, &sandbox.name, Denied::Deleting)));
    }
    let env = match change.of(sandbox.spec.env.clone()) {
        Ok(env) => env,
        Err(error) => return Ok(Err(error)),
    };
    let changed = env != sandbox.spec.env;
    if changed {
        sandbox.spec.env = env;
        sandbox.revision += 1;
        sandboxes::update(&mut *tx, &sandbox).await?;
        sandboxes::update_spec(&mut *tx, &sandbox).await?;
        events::append(tx, &sandbox, now).await?;
    }
    // One that starts later is told then.
    let runs = matches!(before, State::Starting | State::Running | State::Paused | State::Lost);
    let order = changed && runs && sandbox.life.desired == Desired::Running;
    Ok(Ok(Applied { sandbox, before, order, changed }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_change_sets_replaces_and_removes_and_leaves_the_rest() {
        let change = Change::parse(map(&[("A", "2"), ("C", "")]), vec!["B".into(), "absent".into()]).expect("valid");
        let all = change.of(map(&[("A", "1"), ("B", "1"), ("D", "1")])).expect("within bounds");
        assert_eq!(all, map(&[("A", "2"), ("C", ""), ("D", "1")]));
    }

    #[test]
    fn what_no_variable_can_be_is_refused_without_its_value() {
        let secret = "hunter2";
        for (name, value) in [("", secret), ("A=B", secret), ("A", "hunter2\0"), ("A\0", secret)] {
            let error = Change::parse(map(&[(name, value)]), vec![]).map(drop).expect_err("no variable");
            assert_eq!(error.details["field"], FIELD, "{name:?}");
            assert!(!error.message.contains(secret), "{error}");
        }
        assert!(Change::parse(map(&[("A", "1")]), vec!["A".into()]).is_err(), "both");
        let large = "x".repeat(100 << 10);
        let nine: BTreeMap<_, _> = (0..9).map(|number| (format!("A{number}"), large.clone())).collect();
        let more = Change::parse(map(&[("B", &large), ("C", &large)]), vec![]).expect("valid by itself");
        assert!(more.of(nine).is_err(), "all of them together are too much");
    }
}
