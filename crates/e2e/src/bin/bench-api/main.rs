//! `cargo xtask bench api`: how many unary calls a server answers, and how fast, beside a minimal server on the seed's own
//! stack (Node, @grpc/grpc-js) that answers the same call from memory; what the layers around a call cost; memory with
//! thousands of open streams. Rounds are interleaved, medians are told.

mod h2load;
mod load;
mod servers;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use load::Target;
use servers::{Server, Setup};

/// Calls in flight, over this many connections.
const IN_FLIGHT: usize = 64;
const CONNECTIONS: usize = 4;
/// Connections of the open streams: a server takes 8,192 of them on one.
const STREAM_CONNECTIONS: usize = 10;

#[derive(Parser)]
struct Args {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 10_000)]
    streams: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(bench(&args))
}

/// A server under load, and what was measured of it.
struct Contestant {
    name: String,
    server: Server,
    target: Target,
    rates: Vec<f64>,
    /// As h2load counts them.
    counted: Vec<f64>,
    p99s_ms: Vec<f64>,
    failed: u64,
}

async fn bench(args: &Args) -> Result<()> {
    let mut contestants = Vec::new();
    for setup in Setup::all() {
        let Some(server) = Server::start(&setup)? else {
            println!("not measured: {}", setup.name());
            continue;
        };
        let target = Target::prepare(&server.address, &server.key, CONNECTIONS).await;
        let target = target.with_context(|| format!("failed to use: {}", setup.name()))?;
        let name = setup.name().to_owned();
        contestants.push(Contestant {
            name,
            server,
            target,
            rates: vec![],
            counted: vec![],
            p99s_ms: vec![],
            failed: 0,
        });
    }
    let time = Duration::from_secs(args.seconds);
    let counts = h2load::available();
    for round in 0..=args.rounds {
        for one in &mut contestants {
            let result = one.target.closed_loop(IN_FLIGHT, time).await;
            // The first warms up.
            if round > 0 && counts {
                one.counted.push(one.target.count(&one.server, (CONNECTIONS, IN_FLIGHT), time)?);
            }
            if round > 0 {
                one.rates.push(result.rate);
                one.p99s_ms.push(result.percentile_ms(99.0));
                one.failed += result.failed;
            }
        }
    }
    report(&mut contestants);
    half_load(&contestants, time).await?;
    streams(&contestants, args.streams).await
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(contestants: &mut [Contestant]) {
    println!("\nGetSandbox, {IN_FLIGHT} in flight over {CONNECTIONS} connections, medians of interleaved rounds");
    println!("{:<52} {:>10} {:>9} {:>8}  {:<6} {:>10}  ratio", "", "calls/s", "p99 ms", "failed", "ratio", "by h2load");
    let mut base = None;
    for one in contestants {
        let (rate, counted, p99) = (median(&mut one.rates), median(&mut one.counted), median(&mut one.p99s_ms));
        let (first, first_counted) = *base.get_or_insert((rate, counted));
        println!(
            "{:<52} {rate:>10.0} {p99:>9.2} {:>8}  {:<6.2} {counted:>10.0}  {:.2}",
            one.name,
            one.failed,
            rate / first,
            counted / first_counted
        );
    }
}

/// Latency where the server has room: at half of what it can.
async fn half_load(contestants: &[Contestant], time: Duration) -> Result<()> {
    println!("\nGetSandbox at half of that rate, evenly spaced");
    println!("{:<52} {:>10} {:>9} {:>9} {:>8}", "", "calls/s", "p50 ms", "p99 ms", "failed");
    for one in contestants.iter().take(2) {
        let mut rates = one.rates.clone();
        let result = one.target.open_loop(median(&mut rates) / 2.0, time * 2).await?;
        let (p50, p99) = (result.percentile_ms(50.0), result.percentile_ms(99.0));
        println!("{:<52} {:>10.0} {p50:>9.2} {p99:>9.2} {:>8}", one.name, result.rate, result.failed);
    }
    Ok(())
}

/// Memory of open streams of events.
async fn streams(contestants: &[Contestant], count: usize) -> Result<()> {
    let Some(one) = contestants.iter().find(|one| one.name == Setup::Whole.name()) else { return Ok(()) };
    let before = one.server.memory();
    let open = load::open_streams(&one.server.address, &one.server.key, STREAM_CONNECTIONS, count).await?;
    let after = one.server.memory();
    let each = after.saturating_sub(before) as f64 / 1024.0 / count as f64;
    println!("\n{} open streams of events: {each:.1} KB each (resident memory of the server)", open.len());
    Ok(())
}
