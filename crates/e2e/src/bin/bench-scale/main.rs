//! `cargo xtask bench scale`: one real server process, thousands of simulated runners over real connections on
//! loopback, and tens of thousands of sandboxes: memory, dispatch, a storm of reconnects, pages.

mod runner;

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use dispense_client::{Client, v1};
use dispense_e2e::{Mode, ServerProcess};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use runner::{Board, Simulated};

/// Creates at the same time while the fleet is filled.
const CREATES_AT_ONCE: usize = 64;
/// Creates that are measured, and their rate: the machine is shared with the load.
const DISPATCHES: u32 = 1000;
const DISPATCH_INTERVAL: Duration = Duration::from_millis(20);
/// Reports of all runners together, a second.
const REPORTS_PER_SEC: u32 = 500;
const PAGE: u32 = 1000;
const STEP_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 2000)]
    runners: u32,
    #[arg(long, default_value_t = 50_000)]
    sandboxes: u32,
}

fn main() -> Result<()> {
    let args = Args::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(bench(&args))
}

/// Resident memory of the server in bytes.
fn memory(server: &ServerProcess) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/statm", server.process().pid())).unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

async fn bench(args: &Args) -> Result<()> {
    let mode = Mode::available().first().copied().context("there is nobody to run as")?;
    let mut server = ServerProcess::start(mode);
    let client = Client::connect(server.url(), server.key()).await?;
    let empty = memory(&server);
    let board = Arc::new(Board::default());
    let mut runners = JoinSet::new();
    let start = Instant::now();
    for number in 0..args.runners {
        let simulated = Simulated {
            name: format!("sim-{number}"),
            url: server.runner_url().to_owned(),
            token: server.join_token().to_owned(),
            board: board.clone(),
            report_interval: Duration::from_secs(1) * args.runners / REPORTS_PER_SEC,
            boxes: HashMap::new(),
            runner_id: String::new(),
        };
        runners.spawn(simulated.run());
    }
    all_connected(&board, args.runners).await?;
    let joined = memory(&server);
    println!(
        "{} runners joined in {:.1} s; server memory {} MB, {:.0} KB a runner",
        args.runners,
        start.elapsed().as_secs_f64(),
        joined >> 20,
        (joined.saturating_sub(empty)) as f64 / 1024.0 / f64::from(args.runners)
    );
    let start = Instant::now();
    fill(&client, args.sandboxes).await?;
    let filled = memory(&server);
    println!(
        "{} sandboxes in {:.1} s ({:.0} a second); server memory {} MB, {:.1} KB a sandbox",
        args.sandboxes,
        start.elapsed().as_secs_f64(),
        f64::from(args.sandboxes) / start.elapsed().as_secs_f64(),
        filled >> 20,
        (filled.saturating_sub(joined)) as f64 / 1024.0 / f64::from(args.sandboxes)
    );
    dispatch(&client, &board).await?;
    pages(&client, args.sandboxes).await?;
    let start = Instant::now();
    server.kill();
    server.restart();
    // Those that have not noticed yet count as connected.
    tokio::time::sleep(Duration::from_millis(500)).await;
    all_connected(&board, args.runners).await?;
    println!(
        "restart of the server: all {} runners are back after {:.1} s",
        args.runners,
        start.elapsed().as_secs_f64()
    );
    let start = Instant::now();
    let list = client.list(v1::ListSandboxesRequest { page_size: 1, ..Default::default() }).await?;
    println!("first page after that in {:.1} ms; {} row", start.elapsed().as_secs_f64() * 1000.0, list.sandboxes.len());
    println!("server memory after the storm {} MB", memory(&server) >> 20);
    runners.shutdown().await;
    server.kill();
    server.finish();
    Ok(())
}

async fn all_connected(board: &Board, runners: u32) -> Result<()> {
    let end = Instant::now() + STEP_TIMEOUT;
    while board.connected.load(Ordering::Relaxed) < runners as usize {
        if Instant::now() > end {
            bail!("only {} runners are connected", board.connected.load(Ordering::Relaxed));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn fill(client: &Client, sandboxes: u32) -> Result<()> {
    let slots = Arc::new(Semaphore::new(CREATES_AT_ONCE));
    let mut creates = JoinSet::new();
    for _ in 0..sandboxes {
        let slot = slots.clone().acquire_owned().await?;
        let client = client.clone();
        creates.spawn(async move {
            let result = client.create(v1::CreateSandboxRequest::default()).await;
            drop(slot);
            result.map(drop)
        });
        while let Some(done) = creates.try_join_next() {
            done??;
        }
    }
    while let Some(done) = creates.join_next().await {
        done??;
    }
    Ok(())
}

/// From the call of a create to the order at its runner.
async fn dispatch(client: &Client, board: &Board) -> Result<()> {
    let before = board.reports.load(Ordering::Relaxed);
    let start = Instant::now();
    let mut ticks = tokio::time::interval(DISPATCH_INTERVAL);
    let mut calls = JoinSet::new();
    for number in 0..DISPATCHES {
        ticks.tick().await;
        let (client, name) = (client.clone(), format!("dispatch-{number}"));
        calls.spawn(async move {
            let called = Instant::now();
            client.create(v1::CreateSandboxRequest { name: name.clone(), ..Default::default() }).await?;
            Ok::<_, dispense_client::Error>((name, called))
        });
    }
    let mut called = Vec::new();
    while let Some(call) = calls.join_next().await {
        called.push(call??);
    }
    let rate = (board.reports.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ordered = board.ordered.lock().expect("no panic");
    let mut times: Vec<Duration> = called
        .iter()
        .filter_map(|(name, called)| ordered.get(name).map(|at| at.saturating_duration_since(*called)))
        .collect();
    let lost = called.len() - times.len();
    print_times(&format!("dispatch of a job, {rate:.0} reports a second"), &mut times, lost);
    Ok(())
}

async fn pages(client: &Client, sandboxes: u32) -> Result<()> {
    let mut times = Vec::new();
    let mut request = v1::ListSandboxesRequest { page_size: PAGE, ..Default::default() };
    let mut rows = 0;
    loop {
        let start = Instant::now();
        let page = client.list(request.clone()).await?;
        times.push(start.elapsed());
        rows += page.sandboxes.len();
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    print_times(
        &format!("a page of {PAGE} of {rows} sandboxes"),
        &mut times,
        (sandboxes as usize).saturating_sub(rows),
    );
    Ok(())
}

fn print_times(what: &str, times: &mut [Duration], lost: usize) {
    times.sort_unstable();
    let at = |percent: usize| {
        let index = (times.len() * percent).div_ceil(100).max(1) - 1;
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    };
    println!("{what}: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms, lost {lost}", at(50), at(99), at(100));
}
