//! The rows of the sandboxes that have changed last, followed in the order of the commits, so that a call needs no look at
//! the database. A sandbox that is not here is looked up there.

use std::collections::HashMap;
use std::sync::RwLock;

use dispense_api::id::SandboxId;

use super::Sandbox;
use super::lifecycle::State;
use crate::relay::Route;

/// Rows of one generation: some 12 MB of them.
const GENERATION_MAX: usize = 8192;

/// BOUND: two generations. When the younger is full it becomes the older, which goes.
#[derive(Default)]
pub(crate) struct Live {
    generations: RwLock<[Rows; 2]>,
}

#[derive(Default)]
struct Rows {
    by_id: HashMap<SandboxId, Sandbox>,
    by_name: HashMap<String, SandboxId>,
}

impl Rows {
    fn insert(&mut self, sandbox: &Sandbox) {
        self.by_name.insert(sandbox.name.clone(), sandbox.id.clone());
        self.by_id.insert(sandbox.id.clone(), sandbox.clone());
    }

    fn remove(&mut self, sandbox: &Sandbox) {
        self.by_id.remove(&sandbox.id);
        // The name may be another one's by now.
        if self.by_name.get(&sandbox.name) == Some(&sandbox.id) {
            self.by_name.remove(&sandbox.name);
        }
    }
}

impl Live {
    /// A row has changed.
    pub(crate) fn follow(&self, sandbox: &Sandbox) {
        let mut generations = self.generations.write().expect("no holder panics");
        let [young, old] = &mut *generations;
        old.remove(sandbox);
        if sandbox.life.observed == State::Deleted {
            return young.remove(sandbox);
        }
        if young.by_id.len() >= GENERATION_MAX {
            *old = std::mem::take(young);
        }
        young.insert(sandbox);
    }

    /// Rows have changed that are not named.
    pub(crate) fn forget(&self) {
        *self.generations.write().expect("no holder panics") = Default::default();
    }

    /// What `f` makes of the row of an id or name; ids win.
    fn with<T>(&self, id_or_name: &str, f: impl FnOnce(&Sandbox) -> T) -> Option<T> {
        let generations = self.generations.read().expect("no holder panics");
        let row = match id_or_name.parse::<SandboxId>() {
            Ok(id) => generations.iter().find_map(|rows| rows.by_id.get(&id)),
            Err(_) => generations.iter().find_map(|rows| rows.by_id.get(rows.by_name.get(id_or_name)?)),
        };
        row.map(f)
    }

    /// The row of an id or name.
    pub(crate) fn get(&self, id_or_name: &str) -> Option<Sandbox> {
        self.with(id_or_name, Sandbox::clone)
    }

    /// The way to the agent of an id or name, where there may be one.
    pub(crate) fn route(&self, id_or_name: &str) -> Option<Route> {
        let route = |sandbox: &Sandbox| match (sandbox.life.observed, &sandbox.runner) {
            (State::Starting | State::Running, Some(runner)) => Some(Route::to(sandbox, runner)),
            _ => None,
        };
        self.with(id_or_name, route).flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dispense_api::v1::SandboxSpec;

    use super::super::create::{NewSandbox, row};
    use super::*;

    fn named(name: &str) -> Sandbox {
        let new = NewSandbox::parse(String::new(), SandboxSpec::default(), BTreeMap::new(), String::new());
        row(&new.expect("valid"), name.to_owned(), None, 1)
    }

    #[test]
    fn the_last_state_of_a_row_is_told_or_none() {
        let live = Live::default();
        let mut first = named("first");
        live.follow(&first);
        for number in 0..GENERATION_MAX {
            live.follow(&named(&format!("other-{number}")));
        }
        // It is in the older generation by now, and is younger again when it changes.
        assert_eq!(live.get("first"), Some(first.clone()));
        first.revision = 2;
        live.follow(&first);
        assert_eq!(live.get(first.id.as_str()), Some(first.clone()));
        for number in 0..GENERATION_MAX {
            live.follow(&named(&format!("more-{number}")));
        }
        assert_eq!(live.get("first").map(|row| row.revision), Some(2));
        assert_eq!(live.get("other-0"), None, "it has gone: the database has it");
        first.life.observed = State::Deleted;
        live.follow(&first);
        assert_eq!(live.get("first"), None);
        let rows = live.generations.read().expect("no holder panics");
        assert!(rows.iter().all(|rows| rows.by_id.len() <= GENERATION_MAX && rows.by_id.len() == rows.by_name.len()));
    }

    #[test]
    fn a_name_is_that_of_the_row_that_has_it_now() {
        let live = Live::default();
        let (mut former, successor) = (named("web"), named("web"));
        live.follow(&former);
        live.follow(&successor);
        former.life.observed = State::Deleted;
        live.follow(&former);
        assert_eq!(live.get("web").map(|row| row.id), Some(successor.id));
    }
}
