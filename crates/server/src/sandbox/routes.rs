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
    live: RwLock<Live>,
}

#[derive(Default)]
struct Live {
    by_id: HashMap<SandboxId, Route>,
    by_name: HashMap<String, SandboxId>,
}

impl Routes {
    /// A row has changed.
    pub(crate) fn follow(&self, sandbox: &Sandbox) {
        let mut live = self.live.write().expect("no holder panics");
        let live = &mut *live;
        match (sandbox.life.observed, &sandbox.runner) {
            (State::Starting | State::Running, Some(runner)) => {
                live.by_name.insert(sandbox.name.clone(), sandbox.id.clone());
                live.by_id.insert(sandbox.id.clone(), Route::to(sandbox, runner));
            }
            _ => {
                live.by_id.remove(&sandbox.id);
                // The name may be another one's by now.
                if live.by_name.get(&sandbox.name) == Some(&sandbox.id) {
                    live.by_name.remove(&sandbox.name);
                }
            }
        }
    }

    /// The route of an id or name; ids win.
    pub(crate) fn get(&self, id_or_name: &str) -> Option<Route> {
        let live = self.live.read().expect("no holder panics");
        match id_or_name.parse::<SandboxId>() {
            Ok(id) => live.by_id.get(&id).cloned(),
            Err(_) => live.by_name.get(id_or_name).and_then(|id| live.by_id.get(id)).cloned(),
        }
    }
}
