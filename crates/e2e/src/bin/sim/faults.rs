//! What goes wrong, and when: decided by the seed before the world begins.

use std::time::Duration;

use dispense_backend::BoxExit;
use dispense_backend::fake::{Fault, Step};

use crate::chance::Chance;
use crate::world::{CLIENT, SERVER, World};

/// Something that happens to the world.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Crash(String),
    Start(String),
    Partition(String, String),
    Repair(String, String),
    Hold(String, String),
    Release(String, String),
    /// A machine's step goes wrong, or is mended.
    Script(String, Step, Option<Fault>),
    /// The agent of one of its boxes dies.
    KillAgent(String, usize),
}

/// Longest time that something stays broken; above the lease of a runner.
const BROKEN_MAX_MS: u64 = 45_000;
/// Between two faults.
const PAUSE_MAX_MS: u64 = 6_000;
/// In each so manieth world everything takes so many times longer: minutes.
const SLOW_EACH: u64 = 10;
const SLOWER: u64 = 6;

/// How much slower things go in the world of a seed.
pub(crate) fn slowness(seed: u64) -> u64 {
    if seed.is_multiple_of(SLOW_EACH) { SLOWER } else { 1 }
}

/// All events until `end`, in their order.
pub(crate) fn plan(world: &World, seed: u64, end: Duration) -> Vec<(Duration, Event)> {
    let slow = slowness(seed);
    let mut chance = Chance::new(seed.wrapping_mul(17));
    let runners: Vec<String> = world.machines.keys().cloned().collect();
    let mut events = Vec::new();
    let mut at = Duration::from_secs(5);
    while at < end {
        let runner = chance.pick(&runners).cloned().unwrap_or_default();
        // Most outages are short.
        let share = chance.between(1, 100) * chance.between(1, 100);
        let until = at + Duration::from_millis(200 + slow * BROKEN_MAX_MS * share / 10_000);
        let anybody = chance.pick(&[SERVER, &runner]).map(|name| (*name).to_owned()).unwrap_or_default();
        let server = SERVER.to_owned();
        let far = chance.pick(&[CLIENT, &runner, &runner]).map(|name| (*name).to_owned()).unwrap_or_default();
        let (event, mended) = match chance.between(0, 100) {
            0..30 => (Event::Crash(anybody.clone()), Event::Start(anybody)),
            30..48 => (Event::Partition(server.clone(), far.clone()), Event::Repair(server, far)),
            48..60 => (Event::Hold(server.clone(), far.clone()), Event::Release(server, far)),
            60..90 => {
                // A create that fails is made elsewhere, which is where generations come from.
                let steps =
                    [Step::Create, Step::Create, Step::Create, Step::Start, Step::Stop, Step::Destroy, Step::Dial];
                let step = chance.pick(&steps).copied().unwrap_or(Step::Create);
                let stall = Fault::Stall(Duration::from_millis(chance.between(10, 20_000)));
                let faults =
                    if step == Step::Create { vec![Fault::Fail, Fault::Fail, stall] } else { vec![Fault::Fail, stall] };
                let fault = chance.pick(&faults).copied();
                (Event::Script(runner.clone(), step, fault), Event::Script(runner, step, None))
            }
            _ => {
                let index = usize::try_from(chance.between(0, 12)).unwrap_or(0);
                (Event::KillAgent(runner.clone(), index), Event::KillAgent(runner, usize::MAX))
            }
        };
        events.push((at, event));
        events.push((until, mended));
        at += Duration::from_millis(slow * chance.between(100, PAUSE_MAX_MS));
    }
    events.sort_by_key(|(at, _)| *at);
    events
}

impl Event {
    /// Lets it happen.
    pub(crate) fn apply(&self, sim: &mut turmoil::Sim<'_>, world: &World) {
        match self {
            Self::Crash(host) => {
                if sim.is_host_running(host.as_str()) {
                    sim.crash(host.as_str());
                }
            }
            Self::Start(host) => {
                if !sim.is_host_running(host.as_str()) {
                    sim.bounce(host.as_str());
                }
            }
            Self::Partition(one, other) => sim.partition(one.as_str(), other.as_str()),
            Self::Repair(one, other) => sim.repair(one.as_str(), other.as_str()),
            Self::Hold(one, other) => sim.hold(one.as_str(), other.as_str()),
            Self::Release(one, other) => sim.release(one.as_str(), other.as_str()),
            Self::Script(runner, step, fault) => {
                if let Some(machine) = world.machines.get(runner) {
                    machine.script(*step, *fault);
                }
            }
            Self::KillAgent(runner, index) => {
                if let Some(machine) = world.machines.get(runner) {
                    let mut boxes = machine.state();
                    boxes.sort_by(|a, b| a.0.cmp(&b.0));
                    if let Some((sandbox, ..)) = boxes.get(*index) {
                        machine.kill_agent(sandbox, BoxExit::default());
                    }
                }
            }
        }
    }
}

/// Mends everything.
pub(crate) fn mend(sim: &mut turmoil::Sim<'_>, world: &World) {
    let mut hosts: Vec<&str> = world.machines.keys().map(String::as_str).collect();
    hosts.extend([SERVER, CLIENT]);
    for host in &hosts {
        if !sim.is_host_running(*host) {
            sim.bounce(*host);
        }
        if *host != SERVER {
            sim.release(SERVER, *host);
            sim.repair(SERVER, *host);
        }
    }
    for machine in world.machines.values() {
        for step in [Step::Create, Step::Start, Step::Stop, Step::Destroy, Step::Dial] {
            machine.script(step, None);
        }
    }
}
