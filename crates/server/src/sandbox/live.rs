//! The rows of sandboxes that have changed since the server started, followed in the order of the commits, so that
//! a call needs no look at the database. A sandbox that is not here is looked up there.

use std::collections::HashMap;
use std::sync::RwLock;

use dispense_api::id::SandboxId;

use super::Sandbox;
use super::lifecycle::State;
use crate::relay::Route;

/// Rows by id. BOUND: those that are not deleted.
#[derive(Default)]
pub(crate) struct Live {
    rows: RwLock<Rows>,
}

#[derive(Default)]
struct Rows {
    by_id: HashMap<SandboxId, Sandbox>,
    by_name: HashMap<String, SandboxId>,
}

impl Live {
    /// A row has changed.
    pub(crate) fn follow(&self, sandbox: &Sandbox) {
        let mut rows = self.rows.write().expect("no holder panics");
        let rows = &mut *rows;
        if sandbox.life.observed != State::Deleted {
            rows.by_name.insert(sandbox.name.clone(), sandbox.id.clone());
            rows.by_id.insert(sandbox.id.clone(), sandbox.clone());
            return;
        }
        rows.by_id.remove(&sandbox.id);
        // The name may be another one's by now.
        if rows.by_name.get(&sandbox.name) == Some(&sandbox.id) {
            rows.by_name.remove(&sandbox.name);
        }
    }

    /// Rows have changed that are not named.
    pub(crate) fn forget(&self) {
        *self.rows.write().expect("no holder panics") = Rows::default();
    }

    /// What `f` makes of the row of an id or name; ids win.
    fn with<T>(&self, id_or_name: &str, f: impl FnOnce(&Sandbox) -> T) -> Option<T> {
        let rows = self.rows.read().expect("no holder panics");
        let row = match id_or_name.parse::<SandboxId>() {
            Ok(id) => rows.by_id.get(&id),
            Err(_) => rows.by_name.get(id_or_name).and_then(|id| rows.by_id.get(id)),
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
