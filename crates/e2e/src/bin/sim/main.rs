//! `cargo xtask sim`: real server, runner and client code in one thread, over a simulated network and clock, with
//! crashes, partitions, delays and failing backends at moments that the seed decides. Any failure is repeated by
//! its seed.

mod chance;
mod check;
mod faults;
mod sys;
mod workload;
mod world;

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use dispense_server::planted::{Bug, plant, repeat_each};

use workload::{Journal, Shared, lock};
use world::{CLIENT, RUNNERS, World};

/// While things go wrong.
const TROUBLE: Duration = Duration::from_secs(100);
/// Afterwards everything settles within this: above the longest reconnect delay, the stall of a backend, and the
/// time after which a silent agent is lost and found.
const QUIET: Duration = Duration::from_secs(240);
/// Each so manieth message of a runner comes twice.
const REPEAT_EACH: usize = 5;
/// Between looks at the quiet world.
const QUIET_LOOK: Duration = Duration::from_secs(2);

#[derive(Parser)]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Worlds at the same time
    #[arg(long, default_value_t = 2)]
    at_once: usize,
    /// Plant each known bug in turn and show that it is found
    #[arg(long)]
    planted: bool,
    /// Run each seed twice and compare
    #[arg(long)]
    repeat: bool,
    /// Tell every event; with one seed
    #[arg(long)]
    verbose: bool,
    /// One world, whose outcome goes to stdout as JSON
    #[arg(long, hide = true)]
    child: Option<String>,
}

/// What became of a seed.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Outcome {
    seed: u64,
    violations: Vec<String>,
    /// Of everything that was seen; two runs of a seed have the same.
    fingerprint: u64,
    created: usize,
    faults: usize,
    streams: u64,
}

const BUGS: [(&str, Option<Bug>); 4] = [
    ("none", None),
    ("skip-fencing", Some(Bug::SkipFencing)),
    ("act-before-persisting", Some(Bug::ActBeforePersisting)),
    ("reap-by-timer", Some(Bug::ReapByTimer)),
];

fn main() -> ExitCode {
    let args = Args::parse();
    if std::env::var_os("DISPENSE_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_env("DISPENSE_LOG");
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).without_time();
        log.with_writer(std::io::stderr).init();
    }
    match &args.child {
        Some(bug) => {
            let bug = BUGS.iter().find(|(name, _)| name == bug).and_then(|(_, bug)| *bug);
            let (seed, verbose) = (args.from, args.verbose);
            // A thread's hash maps take their keys at the first use, so it must not have used one before its seed.
            let world = std::thread::spawn(move || simulate(seed, bug, verbose));
            let Ok(outcome) = world.join() else { return ExitCode::FAILURE };
            println!("{}", serde_json::to_string(&outcome).expect("plain data"));
            ExitCode::SUCCESS
        }
        None if args.planted => find_planted(&args),
        None => search(&args),
    }
}

fn search(args: &Args) -> ExitCode {
    let start = Instant::now();
    let outcomes = run_all(args, "none", false);
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.violations.is_empty()).collect();
    for outcome in &failed {
        println!("seed {} (repeat it with `cargo xtask sim --seeds 1 --from {}`):", outcome.seed, outcome.seed);
        for violation in outcome.violations.iter().take(10) {
            println!("    {violation}");
        }
    }
    let sum = |count: fn(&Outcome) -> u64| outcomes.iter().map(count).sum::<u64>();
    println!(
        "{} seeds, {} sandboxes, {} faults, {} whole streams in {:.0} s: {} seeds failed",
        outcomes.len(),
        sum(|outcome| outcome.created as u64),
        sum(|outcome| outcome.faults as u64),
        sum(|outcome| outcome.streams),
        start.elapsed().as_secs_f64(),
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn find_planted(args: &Args) -> ExitCode {
    let mut all_found = true;
    for (name, _) in BUGS.iter().filter(|(_, bug)| bug.is_some()) {
        let outcomes = run_all(args, name, true);
        match outcomes.iter().find(|outcome| !outcome.violations.is_empty()) {
            Some(found) => {
                println!("{name}: found by seed {} ({} seeds): {}", found.seed, outcomes.len(), found.violations[0]);
            }
            None => {
                println!("{name}: not found by {} seeds", outcomes.len());
                all_found = false;
            }
        }
    }
    if all_found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the seeds, each in a process of its own: counters and hash maps of a process remember.
fn run_all(args: &Args, bug: &str, first_only: bool) -> Vec<Outcome> {
    let queue = Mutex::new((args.from..args.from + args.seeds).collect::<VecDeque<_>>());
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.at_once {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no panic").pop_front();
                    let Some(seed) = next else { return };
                    let mut outcome = in_child(seed, bug, args.verbose);
                    if args.repeat && in_child(seed, bug, false).fingerprint != outcome.fingerprint {
                        outcome.violations.push("the same seed went another way the second time".to_owned());
                    }
                    let found = !outcome.violations.is_empty();
                    outcomes.lock().expect("no panic").push(outcome);
                    if first_only && found {
                        queue.lock().expect("no panic").clear();
                    }
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().expect("no panic");
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

/// Longest that one world takes on a slow machine; one that takes longer turns in circles.
const CHILD_TIMEOUT_SECS: u64 = 120;

fn in_child(seed: u64, bug: &str, verbose: bool) -> Outcome {
    let program = std::env::current_exe().expect("a program knows its own path");
    let mut command = Command::new("timeout");
    command.arg(CHILD_TIMEOUT_SECS.to_string()).arg(program).args(["--child", bug, "--from", &seed.to_string()]);
    if verbose {
        command.arg("--verbose");
    }
    let output = command.stderr(Stdio::inherit()).output().expect("coreutils");
    let text = String::from_utf8_lossy(&output.stdout);
    let (events, last) = text.trim_end().rsplit_once('\n').unwrap_or(("", text.trim_end()));
    if verbose {
        println!("{events}");
    }
    serde_json::from_str(last).unwrap_or_else(|_| Outcome {
        seed,
        violations: vec![format!("it panicked, or turned in circles: {}", output.status)],
        fingerprint: 0,
        created: 0,
        faults: 0,
        streams: 0,
    })
}

fn simulate(seed: u64, bug: Option<Bug>, verbose: bool) -> Outcome {
    sys::seed(seed);
    plant(bug);
    repeat_each(REPEAT_EACH);
    let world = World::new(RUNNERS).expect("room for a temporary directory");
    let journal: Shared = Arc::default();
    let trouble = TROUBLE * u32::try_from(faults::slowness(seed)).unwrap_or(1);
    let mut sim = world.build(seed, trouble + QUIET * 2);
    let (credentials, shared) = (world.credentials.clone(), journal.clone());
    sim.host(CLIENT, move || workload::work(credentials.clone(), shared.clone(), seed));
    let mut fingerprint = DefaultHasher::new();
    let mut violations = Vec::new();
    let mut events = VecDeque::from(faults::plan(&world, seed, trouble));
    let faults = events.len() / 2;
    while sim.elapsed() < trouble && violations.is_empty() {
        while events.front().is_some_and(|(at, _)| *at <= sim.elapsed())
            && let Some((at, event)) = events.pop_front()
        {
            if verbose {
                println!("{:>8.2} {event:?}", at.as_secs_f64());
            }
            event.apply(&mut sim, &world);
        }
        step(&mut sim, &world, &mut violations);
        note(&world, &mut fingerprint);
    }
    faults::mend(&mut sim, &world);
    lock(&journal).over = true;
    let end = sim.elapsed() + QUIET;
    while violations.is_empty() {
        let look = sim.elapsed() + QUIET_LOOK;
        while sim.elapsed() < look && violations.is_empty() {
            step(&mut sim, &world, &mut violations);
        }
        let journal = lock(&journal);
        violations.extend(journal.violations.iter().cloned());
        let wrong = check::quiet(&world, &journal);
        if wrong.is_empty() && journal.looks > 0 {
            break;
        }
        if sim.elapsed() >= end {
            violations.extend(wrong);
        }
    }
    note(&world, &mut fingerprint);
    let journal = lock(&journal);
    outcome(seed, violations, &journal, fingerprint, faults)
}

fn outcome(
    seed: u64,
    mut violations: Vec<String>,
    journal: &Journal,
    mut hash: DefaultHasher,
    faults: usize,
) -> Outcome {
    for (id, row) in &journal.seen {
        (id, row.revision, row.state, &row.reason).hash(&mut hash);
    }
    violations.dedup();
    let (created, streams) = (journal.created.len(), journal.streams);
    Outcome { seed, violations, fingerprint: hash.finish(), created, faults, streams }
}

fn step(sim: &mut turmoil::Sim<'_>, world: &World, violations: &mut Vec<String>) {
    if let Err(error) = sim.step() {
        violations.push(format!("at {:.2} s a host ended: {error}", sim.elapsed().as_secs_f64()));
    }
    let at = sim.elapsed().as_secs_f64();
    violations.extend(check::always(world).into_iter().map(|what| format!("at {at:.2} s: {what}")));
}

/// What the machines have is part of what two runs of a seed share.
fn note(world: &World, hash: &mut DefaultHasher) {
    for machine in world.machines.values() {
        let mut boxes = machine.state();
        boxes.sort_by(|a, b| a.0.cmp(&b.0));
        for (sandbox, generation, runs) in boxes {
            (sandbox.as_str(), generation.0, runs).hash(hash);
        }
    }
}
