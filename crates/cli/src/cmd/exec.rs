//! `dispense exec` and `dispense shell`: a command in a sandbox that runs.

use std::io;
use std::os::fd::AsFd;

use dispense_client::{Error, v1};

use super::processes::{self, ProcessJson};
use crate::args::{AttachArgs, ExecArgs, Global, Output, ShellArgs};
use crate::endpoint::connect;
use crate::session::{self, Ended, Streams, is_terminal};
use crate::show;
use crate::units::show_bytes;

/// As timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// Signals stand above this, as in a shell.
const SIGNAL_BASE: u32 = 128;
const SIGPIPE: u32 = 13;

/// Runs a command.
pub(super) async fn exec(global: &Global, args: ExecArgs) -> Result<u8, Error> {
    let terminal = is_terminal(io::stdin().as_fd());
    let start = v1::StartProcess {
        args: args.command,
        env: args.env.into_iter().collect(),
        cwd: args.workdir.unwrap_or_default(),
        user: args.user.unwrap_or_default(),
        timeout_ms: args.timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        name: args.name.unwrap_or_default(),
        ..v1::StartProcess::default()
    };
    if args.detach {
        return detach(global, &args.sandbox, start, args.tty).await;
    }
    let streams = Streams { stdin: args.interactive || args.tty || !terminal, tty: args.tty, shell: false };
    in_sandbox(global, &args.sandbox, start, streams).await
}

/// Starts a command and leaves it running; its pid goes to stdout.
async fn detach(global: &Global, sandbox: &str, mut start: v1::StartProcess, tty: bool) -> Result<u8, Error> {
    if tty {
        let (cols, rows) = session::size();
        start.pty = Some(v1::Pty { cols, rows, term: std::env::var("TERM").unwrap_or_default() });
    }
    let connected = connect(global).await?;
    let process = connected.client.start_process(sandbox, start).await?;
    match global.output {
        Output::Json => show::json(&ProcessJson::from(process)),
        Output::Table => show::say!("{}", process.pid),
    }
    Ok(0)
}

/// Attaches to a process; it goes on when this command ends.
pub(super) async fn attach(global: &Global, args: AttachArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let process = processes::find(&connected.client, &args.sandbox, args.process.as_deref()).await?;
    let terminal = is_terminal(io::stdin().as_fd());
    let open = v1::AttachProcess {
        process: Some((&process).into()),
        from_end: !args.from_start,
        lossless: true,
        ..v1::AttachProcess::default()
    };
    let tty = process.pty && terminal && !args.no_stdin;
    let streams = Streams { stdin: !args.no_stdin, tty, shell: false };
    let ended = session::attach(&connected.client, &args.sandbox, open, streams).await?;
    exit_code(ended, &connected.client.get(&args.sandbox).await.unwrap_or_default())
}

/// Opens a shell; without a terminal one that reads its commands from stdin.
pub(super) async fn shell(global: &Global, args: ShellArgs) -> Result<u8, Error> {
    let start = v1::StartProcess {
        args: dispense_api::LOGIN_SHELL.map(str::to_owned).to_vec(),
        cwd: args.workdir.unwrap_or_default(),
        user: args.user.unwrap_or_default(),
        ..v1::StartProcess::default()
    };
    let tty = is_terminal(io::stdin().as_fd());
    in_sandbox(global, &args.sandbox, start, Streams { stdin: true, tty, shell: true }).await
}

async fn in_sandbox(global: &Global, sandbox: &str, start: v1::StartProcess, streams: Streams) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let ended = session::run(&connected.client, sandbox, start, streams).await?;
    let known = match &ended {
        // Only what has to be explained needs the sandbox's limits.
        Ended::Exited(exited) if exited.out_of_memory => connected.client.get(sandbox).await.unwrap_or_default(),
        _ => v1::Sandbox { name: sandbox.to_owned(), ..v1::Sandbox::default() },
    };
    exit_code(ended, &known)
}

/// The command's code, with a sentence when it was not the command that chose it.
pub(super) fn exit_code(ended: Ended, sandbox: &v1::Sandbox) -> Result<u8, Error> {
    let Ended::Exited(exited) = ended else { return Ok(narrow(SIGNAL_BASE + SIGPIPE)) };
    if exited.out_of_memory {
        let limit = sandbox.spec.as_ref().and_then(|spec| spec.resources).map(|resources| resources.memory_bytes);
        let limit = limit.map(|bytes| format!(" of {}", show_bytes(bytes))).unwrap_or_default();
        eprintln!(
            "dispense: the sandbox ran out of its memory{limit} and processes were killed: give it more with --memory"
        );
    }
    if exited.disk_full {
        eprintln!("dispense: the sandbox's disk is full: remove files, or give it more with --disk");
    }
    if exited.timed_out {
        eprintln!("dispense: the command was ended because its --timeout passed");
        return Ok(TIMED_OUT);
    }
    Ok(match exited.status {
        Some(v1::process_exited::Status::Code(code)) => narrow(code),
        Some(v1::process_exited::Status::Signal(signal)) => narrow(SIGNAL_BASE + signal),
        None => crate::failure::RUN_FAILED,
    })
}

fn narrow(code: u32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}
