//! `cargo xtask chaos`: real server and runner processes on the native backend, under load, are killed and stopped
//! at random moments. At the end nothing may be lost, orphaned, repeated or wedged.

mod faults;
mod load;
mod system;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use dispense_client::{Client, v1};

use faults::{Dice, Fault, Kind};
use load::{Load, Tally};
use system::System;

/// Runners, each a process with a state directory of its own.
const RUNNERS: usize = 2;
/// For everything to settle after the last fault.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);
/// A probe that has not succeeded by then is told as a failure to recover.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);
const PROBE_PAUSE: Duration = Duration::from_millis(5);

#[derive(Parser)]
struct Args {
    /// How many faults
    #[arg(long, default_value_t = 300)]
    faults: usize,
    /// Repeats the choice of faults; by default a new one, which is printed
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(chaos(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos could not be done: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn chaos(args: &Args) -> Result<bool> {
    let seed = args.seed.unwrap_or_else(|| u64::from(std::process::id()) ^ Instant::now().elapsed().as_nanos() as u64);
    println!("{} faults, seed {seed}", args.faults);
    let mut dice = Dice::new(seed);
    let mut system = System::start(RUNNERS)?;
    let client = system.client().await?;
    let load = Load::start(&client).await?;
    let mut recoveries: Vec<(Kind, Option<Duration>)> = Vec::new();
    let start = Instant::now();
    for _ in 0..args.faults {
        tokio::time::sleep(dice.pause()).await;
        let fault = Fault::choose(&mut dice, &system);
        fault.happen(&mut system).await?;
        recoveries.push((fault.kind, recovered(&client, load.probe()).await));
    }
    let took = start.elapsed();
    let tally = load.finish(&client, SETTLE_TIMEOUT).await;
    print_recoveries(&recoveries);
    let left = settle(&client, &system).await;
    println!("{} faults in {:.0} s; {tally}", recoveries.len(), took.as_secs_f64());
    let stuck = recoveries.iter().filter(|(_, time)| time.is_none()).count();
    let leaks = system.stop().await?;
    for line in left.iter().chain(&leaks).chain(&tally.failures) {
        println!("    {line}");
    }
    ensure!(stuck == 0, "{stuck} faults were not recovered from within {RECOVERY_TIMEOUT:?}");
    Ok(left.is_empty() && leaks.is_empty() && tally.is_clean())
}

/// Until a command in a sandbox that was there before works again.
async fn recovered(client: &Client, sandbox: &str) -> Option<Duration> {
    let start = Instant::now();
    while start.elapsed() < RECOVERY_TIMEOUT {
        let start_process = v1::StartProcess { args: vec!["true".into()], ..Default::default() };
        let probe = async {
            let mut process = client.run(sandbox, start_process).await?;
            while process.events.next().await?.is_some() {}
            Ok::<_, dispense_client::Error>(())
        };
        if let Ok(Ok(())) = tokio::time::timeout(RECOVERY_TIMEOUT, probe).await {
            return Some(start.elapsed());
        }
        tokio::time::sleep(PROBE_PAUSE).await;
    }
    None
}

fn print_recoveries(recoveries: &[(Kind, Option<Duration>)]) {
    println!("{:<28} {:>6} {:>9} {:>9} {:>9}", "recovery after", "faults", "p50 ms", "p99 ms", "max ms");
    for kind in Kind::ALL {
        let mut times: Vec<Duration> =
            recoveries.iter().filter(|(of, _)| *of == kind).filter_map(|(_, time)| *time).collect();
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent).div_ceil(100).max(1) - 1;
            times.get(index).map_or("-".to_owned(), |time| format!("{:.0}", time.as_secs_f64() * 1000.0))
        };
        println!("{:<28} {:>6} {:>9} {:>9} {:>9}", kind.name(), times.len(), at(50), at(99), at(100));
    }
}

/// What is wedged: after a while no job is open, and nothing is left of what was deleted.
async fn settle(client: &Client, system: &System) -> Vec<String> {
    let end = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let wrong = match wedged(client, system).await {
            Ok(wrong) => wrong,
            Err(error) => vec![format!("the server does not answer: {error}")],
        };
        if wrong.is_empty() || Instant::now() > end {
            return wrong;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn wedged(client: &Client, system: &System) -> Result<Vec<String>, dispense_client::Error> {
    let mut wrong = Vec::new();
    for status in [v1::JobStatus::Pending, v1::JobStatus::Running] {
        let request = v1::ListJobsRequest { status: status.into(), page_size: 1000, ..Default::default() };
        for job in client.jobs(request).await?.jobs {
            wrong.push(format!("wedged: job {} of {} is {status:?}", job.id, job.sandbox_id));
        }
    }
    let rows = client.list_all(v1::ListSandboxesRequest::default()).await?;
    for row in &rows {
        wrong.push(format!("wedged: sandbox {} is {:?} ({})", row.name, row.state(), row.reason));
    }
    for name in system.boxes() {
        wrong.push(format!("orphaned: a box of {name} is left on a runner"));
    }
    Ok(wrong)
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} sandboxes, {} streams of {} MB in all; lost {}, repeated or missing bytes {}, failed {}",
            self.sandboxes,
            self.streams,
            self.bytes / 1_000_000,
            self.lost,
            self.wrong_bytes,
            self.failures.len()
        )
    }
}
