//! `dispense bench`: what this installation does, through the whole API, as a client sees it.

mod figures;
mod workload;

use dispense_client::{Error, v1};
use serde::Serialize;

use crate::args::{BenchArgs, Global, Output};
use crate::endpoint::connect;
use crate::show;
use figures::Figures;
use workload::Workload;

/// Sizes of the bursts: as many cores as people have, and many more.
const BURSTS: [usize; 2] = [8, 32];
/// Bulk transfers that are measured; each moves many megabytes.
const TRANSFERS: u32 = 5;
/// Before anything counts: caches, connections, the template.
const WARM_UP: u32 = 3;

#[derive(Serialize)]
struct ReportJson<'a> {
    measurements: &'a [Figures],
}

/// Measures and prints. The exit code is 1 when something failed.
pub(super) async fn bench(global: &Global, args: BenchArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let workload = Workload::new(connected.client.clone(), args.template.clone());
    for _ in 0..WARM_UP {
        workload.create_to_first_output().await?;
    }
    let mut all = Vec::new();
    let tell = |figures: Figures, all: &mut Vec<Figures>| {
        if global.output == Output::Table {
            eprintln!("measured: {}", figures.name);
        }
        all.push(figures);
    };
    let sequential = workload.sequential("create to first output", args.rounds, Workload::create_to_first_output);
    tell(sequential.await, &mut all);
    for burst in BURSTS {
        tell(workload.bursts(burst, args.rounds).await, &mut all);
    }
    tell(workload.rate(BURSTS[0], args.rounds * 4).await, &mut all);
    let sandbox = workload.create(true).await?;
    let measured = running(&workload, &sandbox, args.rounds, |figures| tell(figures, &mut all)).await;
    workload.delete(&sandbox.id).await?;
    measured?;
    tell(workload.idle_memory(args.idle).await, &mut all);
    match global.output {
        Output::Json => show::json(&ReportJson { measurements: &all }),
        Output::Table => table(&all),
    }
    Ok(u8::from(all.iter().any(|figures| figures.failures > 0)))
}

/// What is measured in one sandbox that runs.
async fn running(
    workload: &Workload,
    sandbox: &v1::Sandbox,
    rounds: u32,
    mut tell: impl FnMut(Figures),
) -> Result<(), Error> {
    tell(workload.sequential("exec round trip", rounds, async |workload| workload.exec(&sandbox.id).await).await);
    tell(workload.sequential("stdout", TRANSFERS, async |workload| workload.stdout(&sandbox.id).await).await);
    tell(workload.sequential("file write", TRANSFERS, async |workload| workload.write_file(&sandbox.id).await).await);
    tell(workload.sequential("file read", TRANSFERS, async |workload| workload.read_file(&sandbox.id).await).await);
    tell(workload.echo(&sandbox.id, rounds).await?);
    Ok(())
}

fn table(all: &[Figures]) {
    let mut table = show::table(&["MEASUREMENT", "UNIT", "P50", "P90", "P99", "COUNT", "FAILED"]);
    for figures in all {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        table.add_row([
            figures.name.clone(),
            figures.unit.to_owned(),
            number(figures.p50),
            number(figures.p90),
            number(figures.p99),
            figures.count.to_string(),
            figures.failures.to_string(),
        ]);
    }
    show::print(&table);
    for figures in all {
        if let Some(failure) = &figures.first_failure {
            show::say!("{}: {failure}", figures.name);
        }
    }
}
