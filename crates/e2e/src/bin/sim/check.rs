//! What must hold: after every step, and when everything is mended and quiet.

use std::collections::{BTreeMap, BTreeSet};

use dispense_client::v1::{self, JobStatus, SandboxState};

use crate::workload::Journal;
use crate::world::World;

/// No sandbox runs twice.
pub(crate) fn always(world: &World) -> Vec<String> {
    let mut running: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (runner, machine) in &world.machines {
        for (sandbox, generation, runs) in machine.state() {
            if runs {
                running.entry(sandbox.to_string()).or_default().push(format!("{runner} (generation {generation})"));
            }
        }
    }
    let twice = running.into_iter().filter(|(_, places)| places.len() > 1);
    twice.map(|(sandbox, places)| format!("{sandbox} runs on {}", places.join(" and on "))).collect()
}

/// All is as it was promised, and rows and boxes agree. What is not so may only need more time.
pub(crate) fn quiet(world: &World, journal: &Journal) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, what) in &journal.open {
        wrong.push(format!("call {number} has not ended: {what}"));
    }
    for job in &journal.jobs {
        let waits = journal.seen.get(&job.sandbox_id).is_some_and(|row| has_no_room(world, row));
        if !waits && matches!(job.status(), JobStatus::Pending | JobStatus::Running) {
            wrong.push(format!("job {} of {} has not ended: {:?}", job.id, job.sandbox_id, job.r#type()));
        }
    }
    for (id, has_ttl) in &journal.created {
        match journal.seen.get(id) {
            None => wrong.push(format!("{id} was created and is gone")),
            Some(row) if *has_ttl && row.state() != SandboxState::Deleted => {
                wrong.push(format!("the TTL of {id} has passed and it is {:?}", row.state()));
            }
            Some(_) => {}
        }
    }
    for id in &journal.deleted {
        if journal.seen.get(id).is_none_or(|row| row.state() != SandboxState::Deleted) {
            wrong.push(format!("{id} was deleted and is {:?}", journal.seen.get(id).map(|row| row.state())));
        }
    }
    boxes(world, journal, &mut wrong);
    wrong
}

/// Whether it waits because every runner is full, and says so.
fn has_no_room(world: &World, row: &v1::Sandbox) -> bool {
    let full = row.waiting_for.values().filter(|why| why.contains("has 0 sandboxes left"));
    row.state() == SandboxState::Pending && full.count() == world.machines.len()
}

fn boxes(world: &World, journal: &Journal, wrong: &mut Vec<String>) {
    let mut running = BTreeSet::new();
    for (runner, machine) in &world.machines {
        for (sandbox, generation, runs) in machine.state() {
            let id = sandbox.to_string();
            let Some(row) = journal.seen.get(&id) else {
                wrong.push(format!("a box of {id} is on {runner} and no row knows it"));
                continue;
            };
            let state = row.state();
            let stays = !matches!(state, SandboxState::Deleted | SandboxState::Deleting | SandboxState::Pending);
            if !stays || row.generation != generation.0 {
                wrong.push(format!(
                    "{id} is {state:?} with generation {} and has a box of generation {generation} on {runner}",
                    row.generation
                ));
            }
            if runs && state != SandboxState::Running {
                wrong.push(format!("{id} is {state:?} and its box on {runner} runs: {}", row.reason));
            }
            if runs {
                running.insert(id);
            }
        }
    }
    for (id, row) in &journal.seen {
        match row.state() {
            SandboxState::Running if !running.contains(id) => {
                wrong.push(format!("{id} is running and has no box that runs"))
            }
            SandboxState::Running | SandboxState::Stopped | SandboxState::Failed | SandboxState::Deleted => {}
            SandboxState::Pending if has_no_room(world, row) => {}
            state => wrong.push(format!("{id} is stuck: {state:?} ({}) {:?}", row.reason, row.waiting_for)),
        }
    }
}
