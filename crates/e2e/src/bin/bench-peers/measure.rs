//! Interleaved measurement: every contestant once a round, so that the machine's moods hit all alike.

use std::time::Duration;

use anyhow::Result;

/// One thing that is measured.
pub(crate) struct Contestant {
    name: String,
    run: Box<dyn FnMut() -> Result<Duration>>,
    samples_us: Vec<u64>,
    failures: Vec<String>,
}

impl Contestant {
    /// `run` does it once and tells how long the part that counts took.
    pub(crate) fn new(name: impl Into<String>, run: impl FnMut() -> Result<Duration> + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run), samples_us: Vec::new(), failures: Vec::new() }
    }

    /// The value below which `percent` of the samples lie, in microseconds.
    pub(crate) fn percentile_us(&self, percent: usize) -> Option<u64> {
        let mut sorted = self.samples_us.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(index).copied()
    }
}

/// Runs all contestants `rounds` times, interleaved, after `warm_up` rounds that do not count.
pub(crate) fn run(contestants: &mut [Contestant], warm_up: usize, rounds: usize) {
    for round in 0..warm_up + rounds {
        for contestant in &mut *contestants {
            match (contestant.run)() {
                Ok(took) if round >= warm_up => {
                    contestant.samples_us.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                }
                Ok(_) => {}
                Err(error) => contestant.failures.push(format!("{error:#}")),
            }
        }
    }
}

/// Prints one table: milliseconds, and each median as a multiple of that of the first contestant.
pub(crate) fn print(title: &str, contestants: &[Contestant]) {
    println!("\n{title}");
    println!("{:<38} {:>9} {:>9} {:>9} {:>9} {:>7}  ratio", "ms", "min", "p50", "p90", "p99", "failed");
    let base_us = contestants.first().and_then(|one| one.percentile_us(50));
    for one in contestants {
        let ms = |percent| one.percentile_us(percent).map_or("-".to_owned(), |us| format!("{:.2}", us as f64 / 1000.0));
        let ratio = match (one.percentile_us(50), base_us) {
            (Some(own), Some(base)) if base > 0 => format!("{:.2}", own as f64 / base as f64),
            _ => "-".to_owned(),
        };
        let columns = [ms(0), ms(50), ms(90), ms(99)].map(|text| format!("{text:>9}")).join(" ");
        println!("{:<38} {columns} {:>7}  {ratio}", one.name, one.failures.len());
        if let Some(first) = one.failures.first() {
            println!("    first failure: {first}");
        }
    }
}
