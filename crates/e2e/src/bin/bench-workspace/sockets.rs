//! Terminal and file events over Socket.IO.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dispense_e2e::clients::Clients;
use dispense_e2e::host;
use dispense_e2e::terminal::Terminal;
use serde::Deserialize;

use crate::ours::{NAME, Ours};
use crate::{Args, Table};

#[derive(Deserialize)]
struct Figures {
    echo_p50_ms: f64,
    echo_p99_ms: f64,
    writes: f64,
    reads: f64,
    output_mb_s: f64,
}

pub(crate) fn measure(ours: &Ours, args: &Args, table: &mut Table) -> Result<()> {
    let Some(clients) = Clients::available() else {
        println!("not measured: terminal and files (no clients)");
        return Ok(());
    };
    let folder = ours.folder().join("node");
    fs::create_dir(&folder)?;
    write_lines(&folder.join("big.txt"), args.megabytes)?;
    ours.dispense(&[
        "cp",
        "--quiet",
        &folder.join("big.txt").display().to_string(),
        &format!("{NAME}:/workspace/big.txt"),
    ])?;
    let Some(node) = Node::start(&clients, &folder)? else {
        println!(
            "not measured: terminal and files (node-pty was not built: npm needs python3, make, g++ and Node's headers)"
        );
        return Ok(());
    };
    let path = format!("/workspace/{NAME}");
    let mut floors = vec![];
    for round in 0..=args.rounds {
        let mine = client(&clients, args, &format!("http://{}", ours.address), &path, &ours.key)?;
        let theirs = client(&clients, args, &node.url, "/socket.io", "none")?;
        let floor = terminal_floor(&folder.join("big.txt"))?;
        // The first warms up.
        if round == 0 {
            continue;
        }
        floors.push(floor);
        let mut put = |what, unit, aim, of: fn(&Figures) -> f64| {
            let row = table.row(what, unit, aim);
            row.ours.push(of(&mine));
            row.peer.push(of(&theirs));
        };
        put("terminal echo p50, Node + node-pty", "ms", "under 2 ms", |figures| figures.echo_p50_ms);
        put("terminal echo p99, Node + node-pty", "ms", "at most 1", |figures| figures.echo_p99_ms);
        put("terminal output, Node + node-pty", "MB/s", "at least 3", |figures| figures.output_mb_s);
        put("updateContent of 16 KiB, Node", "a second", "at least 2", |figures| figures.writes);
        put("fetchContent of 16 KiB, Node", "a second", "at least 2", |figures| figures.reads);
    }
    let floor = crate::median(&mut floors);
    table.note(format!("terminal output of a program that reads the terminal itself and drops it: {floor:.0} MB/s"));
    Ok(())
}

/// MB a second that this machine's terminals give, with nothing behind them.
fn terminal_floor(file: &Path) -> Result<f64> {
    let bytes = usize::try_from(fs::metadata(file)?.len())?;
    let mut terminal = Terminal::open(80, 24);
    let mut cat = Command::new("sh");
    cat.args(["-c", "stty -onlcr; exec cat \"$0\""]).arg(file).env("PATH", std::env::var("PATH")?);
    let begun = Instant::now();
    let mut child = terminal.spawn(&cat);
    terminal.skip(bytes);
    let seconds = begun.elapsed().as_secs_f64();
    child.wait()?;
    Ok(bytes as f64 / f64::from(1 << 20) / seconds)
}

/// Text of lines of 80 bytes.
fn write_lines(path: &Path, megabytes: u32) -> Result<()> {
    let line = format!("{}\n", "0123456789".repeat(8).split_at(79).0);
    let lines = line.repeat((1 << 20) / line.len() + 1);
    let mut all = lines.repeat(usize::try_from(megabytes)?);
    all.truncate(usize::try_from(megabytes)? << 20);
    Ok(fs::write(path, all)?)
}

fn client(clients: &Clients, args: &Args, url: &str, path: &str, token: &str) -> Result<Figures> {
    let mut command: Command = clients.node("bench-workspace.mjs");
    command.env("URL", url).env("SOCKET_PATH", path).env("TOKEN", token);
    let numbers = [("KEYS", args.keys), ("FILES", args.files), ("MEGABYTES", args.megabytes)];
    command.envs(numbers.map(|(name, number)| (name, number.to_string())));
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The peer.
struct Node {
    child: Child,
    url: String,
}

impl Node {
    /// `None` where what it needs is not installed.
    fn start(clients: &Clients, folder: &Path) -> Result<Option<Self>> {
        let mut command = clients.node("bench-workspace-server.mjs");
        let mut child = command.env("DIR", folder).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let node = Self { child, url: format!("http://127.0.0.1:{}", line.trim()) };
        Ok((!line.is_empty()).then_some(node))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        host::terminate_if_there(self.child.id());
        let _ = self.child.wait();
    }
}
