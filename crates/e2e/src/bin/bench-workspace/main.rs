//! `cargo xtask bench workspace`: what people touch all day, through server, runner and agent, beside what they know: terminal
//! and files over Socket.IO beside a minimal Node server of the seed's stack (socket.io, node-pty), SSH beside OpenSSH's
//! sshd, previews beside nginx. Rounds are interleaved, medians are told.

mod ours;
mod preview;
mod sockets;
mod ssh;

use anyhow::Result;
use clap::Parser;

use ours::Ours;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Keys that are typed, each after the one before was shown
    #[arg(long, default_value_t = 300)]
    keys: u32,
    /// File events of each kind
    #[arg(long, default_value_t = 2000)]
    files: u32,
    /// Megabytes of terminal output, of a file over SSH, and of a download five times
    #[arg(long, default_value_t = 100)]
    megabytes: u32,
    /// Seconds of requests to a preview
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let ours = Ours::start()?;
    let mut table = Table::default();
    sockets::measure(&ours, &args, &mut table)?;
    ssh::measure(&ours, &args, &mut table)?;
    preview::measure(&ours, &args, &mut table)?;
    table.print();
    Ok(())
}

/// Figures of both sides, one of each round.
#[derive(Default)]
struct Table {
    rows: Vec<Row>,
    notes: Vec<String>,
}

struct Row {
    what: &'static str,
    unit: &'static str,
    ours: Vec<f64>,
    peer: Vec<f64>,
    aim: &'static str,
}

impl Table {
    fn row(&mut self, what: &'static str, unit: &'static str, aim: &'static str) -> &mut Row {
        let index = self.rows.iter().position(|row| row.what == what).unwrap_or_else(|| {
            self.rows.push(Row { what, unit, ours: vec![], peer: vec![], aim });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }

    fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    fn print(&mut self) {
        println!("\n{:<44} {:>10} {:>10} {:>7}  aim", "", "dispense", "peer", "ratio");
        for row in &mut self.rows {
            let (ours, peer) = (median(&mut row.ours), median(&mut row.peer));
            println!("{:<44} {ours:>10.2} {peer:>10.2} {:>7.2}  {} ({})", row.what, ours / peer, row.aim, row.unit);
        }
        for note in &self.notes {
            println!("{note}");
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
