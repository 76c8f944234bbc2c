//! `dispense list`, `get`, `start`, `stop`, `delete`.

use dispense_client::{Client, Error, v1};
use serde::Serialize;

use crate::args::{DeleteArgs, Global, ListArgs, OneArgs, Output, SeveralArgs};
use crate::endpoint::connect;
use crate::show::{self, SandboxJson};

/// States of `--all`.
const EVERY_STATE: std::ops::RangeInclusive<i32> =
    (v1::SandboxState::Pending as i32)..=(v1::SandboxState::Deleted as i32);

#[derive(Serialize)]
struct ListJson {
    sandboxes: Vec<SandboxJson>,
}

/// Lists sandboxes, newest first.
pub(super) async fn list(global: &Global, args: ListArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let request = v1::ListSandboxesRequest {
        group: args.group.unwrap_or_default(),
        labels: args.label.into_iter().collect(),
        states: if args.all { EVERY_STATE.collect() } else { vec![] },
        page_size: 1000,
        page_token: String::new(),
    };
    let rows = connected.client.list_all(request).await?;
    match global.output {
        Output::Json => show::json(&ListJson { sandboxes: rows.into_iter().map(SandboxJson::from).collect() }),
        Output::Table => show::sandboxes(&rows),
    }
    Ok(0)
}

/// Shows one sandbox.
pub(super) async fn get(global: &Global, args: OneArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let sandbox = connected.client.get(&args.sandbox).await?;
    match global.output {
        Output::Json => show::json(&SandboxJson::from(sandbox)),
        Output::Table => show::sandbox(&sandbox),
    }
    Ok(0)
}

/// Starts a sandbox and waits until it runs.
pub(super) async fn start(global: &Global, args: OneArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let sandbox = connected.client.start(&args.sandbox, true).await?;
    if sandbox.state() != v1::SandboxState::Running {
        let message = format!("sandbox `{}` is {}: {}", sandbox.name, show::state(sandbox.state()), sandbox.reason);
        return Err(Error::new(dispense_client::Code::FailedPrecondition, "sandbox_failed", message));
    }
    told(global, sandbox);
    Ok(0)
}

/// Stops sandboxes; goes on to the last and tells the first failure.
pub(super) async fn stop(global: &Global, args: SeveralArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    each(global, &connected.client, &args.sandbox, async |client, sandbox| client.stop(sandbox, true).await).await
}

/// Deletes sandboxes; goes on to the last and tells the first failure.
pub(super) async fn delete(global: &Global, args: DeleteArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let delete = async |client: &Client, sandbox: &str| client.delete(sandbox, args.force, true).await;
    each(global, &connected.client, &args.sandbox, delete).await
}

async fn each(
    global: &Global,
    client: &Client,
    sandboxes: &[String],
    change: impl AsyncFn(&Client, &str) -> Result<v1::Sandbox, Error>,
) -> Result<u8, Error> {
    let mut first = None;
    for sandbox in sandboxes {
        match change(client, sandbox).await {
            Ok(changed) => told(global, changed),
            Err(error) => {
                if sandboxes.len() > 1 {
                    eprintln!("dispense: {}", error.message);
                }
                first.get_or_insert(error);
            }
        }
    }
    first.map_or(Ok(0), Err)
}

fn told(global: &Global, sandbox: v1::Sandbox) {
    match global.output {
        Output::Json => show::json(&SandboxJson::from(sandbox)),
        Output::Table => crate::show::say!("{} {}", sandbox.name, show::state(sandbox.state())),
    }
}
