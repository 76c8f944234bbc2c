//! Where the agents of live sandboxes are: derived from the rows, in the order of the commits, so that a call
//! needs no look at the database. A sandbox that is not here is looked up there.

use std::collections::HashMap;
use std::sync::RwLock;

use dispense_api::id::SandboxId;

use super::Sandbox;
use super::lifecycle::State;
use crate::relay::Route;

/// Routes by id.
#[derive(Default)]
pub(crate) struct Routes {
    by_id: RwLock<HashMap<SandboxId, Route>>,
}

impl Routes {
    /// A row has changed.
    pub(crate) fn follow(&self, sandbox: &Sandbox) {
        let mut by_id = self.by_id.write().expect("no holder panics");
        match (sandbox.life.observed, &sandbox.runner) {
            (State::Starting | State::Running, Some(runner)) => {
                by_id.insert(sandbox.id.clone(), Route::to(sandbox, runner));
            }
            _ => {
                by_id.remove(&sandbox.id);
            }
        }
    }

    /// The route of an id; a name is not known here.
    pub(crate) fn get(&self, id: &str) -> Option<Route> {
        let id: SandboxId = id.parse().ok()?;
        self.by_id.read().expect("no holder panics").get(&id).cloned()
    }
}
