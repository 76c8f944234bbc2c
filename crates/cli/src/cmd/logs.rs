//! `dispense logs`: what a process wrote. The sandbox's agent is asked while it runs; afterwards the server has
//! the ends, and what became of the sandbox's jobs.

use std::io::{self, Write};

use dispense_api::error::reason;
use dispense_client::v1::process_event::Kind;
use dispense_client::{Client, Code, Error, v1};

use super::processes::{is, newest};
use crate::args::{Global, LogsArgs, Output};
use crate::endpoint::connect;
use crate::failure::local;
use crate::show::{self, rfc3339};

/// Shows what a process wrote.
pub(super) async fn logs(global: &Global, args: LogsArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let client = &connected.client;
    match live(client, &args).await {
        Ok(Some(process)) => follow(client, &args, process).await?,
        Ok(None) => kept(global, client, &args, None).await?,
        Err(error) if matches!(error.code, Code::FailedPrecondition | Code::NotFound | Code::Unavailable) => {
            kept(global, client, &args, Some(error)).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(0)
}

/// The process that is asked for, while its agent knows it.
async fn live(client: &Client, args: &LogsArgs) -> Result<Option<v1::ProcessRef>, Error> {
    // A stopped sandbox is not woken to be looked at.
    let sandbox = client.get(&args.sandbox).await?;
    if !is_live(&sandbox) {
        return Ok(None);
    }
    let processes = client.list_processes(&sandbox.id, true).await?;
    let found = match &args.process {
        Some(wanted) => processes.into_iter().filter(|process| is(process, wanted)).max_by_key(newest),
        None => processes.into_iter().max_by_key(newest),
    };
    Ok(found.as_ref().map(Into::into))
}

/// Whether there is an agent to ask.
fn is_live(sandbox: &v1::Sandbox) -> bool {
    matches!(sandbox.state(), v1::SandboxState::Running | v1::SandboxState::Starting | v1::SandboxState::Lost)
}

async fn follow(client: &Client, args: &LogsArgs, process: v1::ProcessRef) -> Result<(), Error> {
    let open = v1::AttachProcess {
        process: Some(process),
        stdout_offset: args.from,
        stderr_offset: args.from,
        pty_offset: args.from,
        no_follow: !args.follow,
        ..v1::AttachProcess::default()
    };
    let mut attached = client.attach(&args.sandbox, open).await?;
    while let Some(event) = attached.events.next().await? {
        match event.kind {
            Some(Kind::Output(output)) => write(output.stream(), &output.data)?,
            Some(Kind::Gap(gap)) => missing(gap.stream(), gap.from, gap.to, None),
            _ => {}
        }
    }
    Ok(())
}

/// From the server, with why the agent could not be asked.
async fn kept(global: &Global, client: &Client, args: &LogsArgs, why: Option<Error>) -> Result<(), Error> {
    let logs = client.logs(&args.sandbox).await?;
    let found = match &args.process {
        Some(wanted) => logs.processes.iter().rev().find(|log| log.process.as_ref().is_some_and(|one| is(one, wanted))),
        None => logs.processes.last(),
    };
    match (found, &args.process) {
        (Some(log), _) => {
            // Its agent has written it down, and the next one reads it; one that runs has been asked already.
            let stopped = client.get(&args.sandbox).await.ok().filter(|sandbox| !is_live(sandbox));
            let rest = stopped.map(|sandbox| sandbox.name);
            for tail in &log.tails {
                let skip = args.from.saturating_sub(tail.offset);
                if tail.offset > args.from {
                    missing(tail.stream(), args.from, tail.offset, rest.as_deref());
                }
                let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(tail.data.len());
                write(tail.stream(), &tail.data[skip..])?;
            }
        }
        (None, Some(wanted)) => {
            let message = format!(
                "sandbox `{}` has no process `{wanted}`: see `dispense ps --all {}`",
                args.sandbox, args.sandbox
            );
            return Err(why
                .filter(|error| error.code == Code::Unavailable)
                .unwrap_or_else(|| Error::new(Code::NotFound, reason::PROCESS_UNKNOWN, message)));
        }
        // Nothing ever ran in it: what is there to tell is how its jobs went.
        (None, None) => jobs(global, &logs.jobs),
    }
    Ok(())
}

fn jobs(global: &Global, jobs: &[v1::Job]) {
    if global.output == Output::Json {
        let jobs: Vec<super::jobs::JobJson> = jobs.iter().cloned().map(Into::into).collect();
        return show::json(&jobs);
    }
    for job in jobs {
        let at = |at: &Option<_>| at.as_ref().map(rfc3339).unwrap_or_default();
        let kind = super::jobs::kind(job.r#type());
        show::say!("{} {kind} was asked for", at(&job.created_at));
        for attempt in &job.attempts {
            show::say!("{} {kind} failed on {}: {}", at(&attempt.at), attempt.runner_id, attempt.error);
        }
        if job.finished_at.is_some() {
            let how = super::jobs::status(job.status());
            let why = if job.error.is_empty() { String::new() } else { format!(": {}", job.error) };
            show::say!("{} {kind} {how}{why}", at(&job.finished_at));
        }
    }
}

/// Says what is left out; `rest` is the sandbox that has it.
fn missing(stream: v1::OutputStream, from: u64, to: u64, rest: Option<&str>) {
    let name = match stream {
        v1::OutputStream::Stderr => "stderr",
        v1::OutputStream::Pty => "the terminal",
        v1::OutputStream::Stdout | v1::OutputStream::Unspecified => "stdout",
    };
    match rest {
        Some(sandbox) => eprintln!(
            "dispense: bytes {from} to {to} of {name} are on the sandbox's disk: `dispense start {sandbox}`, and ask again"
        ),
        None => eprintln!("dispense: bytes {from} to {to} of {name} are no longer kept"),
    }
}

fn write(stream: v1::OutputStream, data: &[u8]) -> Result<(), Error> {
    let failed = |error: io::Error| local("write the output", &error);
    if stream == v1::OutputStream::Stderr {
        return io::stderr().write_all(data).map_err(failed);
    }
    let mut stdout = io::stdout();
    stdout.write_all(data).and_then(|()| stdout.flush()).map_err(failed)
}
