//! `dispense run`: a sandbox, a command in it, and nothing left behind.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use dispense_client::{Client, Error, v1};

use super::create::{request, warn_disk_in_memory, warn_unenforced};
use super::exec::exit_code;
use super::source;
use crate::args::{Global, RunArgs};
use crate::endpoint::connect;
use crate::session::{self, Streams, is_terminal};

/// A client that is gone for this long loses its sandbox.
const LEASE_SECS: u32 = 60;
/// Three renewals may fail.
const RENEW_INTERVAL: Duration = Duration::from_secs(15);
/// For the end of the sandbox, after that of the command; what is left then ends with the lease.
const DELETE_TIMEOUT: Duration = Duration::from_secs(15);

/// Runs a command in a new sandbox.
pub(super) async fn run(global: &Global, args: RunArgs) -> Result<u8, Error> {
    let source = args.spec.source.clone();
    source.check()?;
    let mut request = request(args.spec)?;
    if !args.keep {
        request.spec.get_or_insert_default().lease_secs = LEASE_SECS;
    }
    let terminal = is_terminal(io::stdin().as_fd());
    let tty = args.tty || (terminal && is_terminal(io::stdout().as_fd()));
    let start = v1::StartProcess {
        args: args.command,
        timeout_ms: args.timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        ..v1::StartProcess::default()
    };
    let connected = connect(global).await?;
    let client = &connected.client;
    let sandbox = client.create(request).await?;
    warn_unenforced(&sandbox);
    let renewal = (!args.keep).then(|| tokio::spawn(renew(client.clone(), sandbox.id.clone())));
    // Both are asked for at once: the runner holds the calls until the sandbox is up.
    let ended = match source::fill(client, &sandbox, source).await {
        Ok(()) => {
            session::run(client, &sandbox.id, start, Streams { stdin: tty || !terminal, tty, shell: false }).await
        }
        Err(error) => Err(error),
    };
    if let Some(renewal) = renewal {
        renewal.abort();
    }
    if args.keep {
        warn_disk_in_memory(&sandbox);
        eprintln!("dispense: kept sandbox `{}`: `dispense shell {}`", sandbox.name, sandbox.name);
    } else {
        delete(client, &sandbox).await;
    }
    exit_code(ended?, &sandbox)
}

async fn renew(client: Client, sandbox: String) {
    loop {
        tokio::time::sleep(RENEW_INTERVAL).await;
        if let Err(error) = client.renew(&sandbox).await {
            tracing::debug!(%error, "renew");
        }
    }
}

async fn delete(client: &Client, sandbox: &v1::Sandbox) {
    let deleted = tokio::time::timeout(DELETE_TIMEOUT, client.delete(&sandbox.id, false, true)).await;
    let why = match deleted {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => error.message,
        Err(_) => format!("it took longer than {} s", DELETE_TIMEOUT.as_secs()),
    };
    eprintln!("dispense: sandbox `{}` is not deleted yet ({why}): the server deletes it within a minute", sandbox.name);
}
