//! `dispense create`, and what a new sandbox is like for `run` too.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;

use dispense_api::limits;
use dispense_client::{Client, Code, Error, v1};

use super::source;
use crate::args::{CreateArgs, Global, NetworkArg, Output, SpecArgs};
use crate::endpoint::connect;
use crate::failure::{local, usage};
use crate::show::{self, cores};
use crate::units::{env_file, show_bytes};

/// Creates a sandbox and waits until it runs.
pub(super) async fn create(global: &Global, args: CreateArgs) -> Result<u8, Error> {
    let source = args.spec.source.clone();
    let mut request = request(args.spec)?;
    source.check()?;
    request.wait = !args.no_wait;
    request.timeout_secs = u32::try_from(args.timeout.as_secs().max(1)).unwrap_or(u32::MAX);
    let connected = connect(global).await?;
    let sandbox = connected.client.create(request).await?;
    if sandbox.state() == v1::SandboxState::Failed {
        return Err(failed(&connected.client, sandbox).await);
    }
    warn_unenforced(&sandbox);
    warn_disk_in_memory(&sandbox);
    if let Err(error) = source::fill(&connected.client, &sandbox, source).await {
        // Nothing half made is left.
        return Err(match connected.client.delete(&sandbox.id, false, true).await {
            Ok(_) => error,
            Err(second) => {
                Error { message: format!("{}; nor could the sandbox be removed: {second}", error.message), ..error }
            }
        });
    }
    match global.output {
        Output::Json => show::json(&show::SandboxJson::from(sandbox)),
        Output::Table => crate::show::say!("{}", sandbox.name),
    }
    Ok(0)
}

/// Removes what could not be started, so that nothing half made is left, and says why it could not.
async fn failed(client: &Client, sandbox: v1::Sandbox) -> Error {
    let message = format!("sandbox `{}` could not be started and was removed: {}", sandbox.name, sandbox.reason);
    let error = Error::new(Code::FailedPrecondition, "sandbox_failed", message);
    match client.delete(&sandbox.id, false, true).await {
        Ok(_) => error,
        Err(second) => {
            let message = format!(
                "sandbox `{}` could not be started: {}; nor could it be removed: {second}",
                sandbox.name, sandbox.reason
            );
            Error { message, ..error }
        }
    }
}

/// The request that the flags ask for.
pub(super) fn request(args: SpecArgs) -> Result<v1::CreateSandboxRequest, Error> {
    let mut env = BTreeMap::new();
    for path in &args.env_file {
        let text = fs::read_to_string(path).map_err(|error| local(format_args!("read {}", path.display()), &error))?;
        env.extend(env_file(&text).map_err(|why| usage(format!("{}: {why}", path.display())))?);
    }
    // A flag beats a file.
    env.extend(args.env);
    let spec = v1::SandboxSpec {
        template: args.template,
        resources: Some(v1::Resources {
            cpu_millis: given("--cpu", args.cpu, limits::CPU_MILLIS, |millis| cores(*millis))?,
            memory_bytes: given("--memory", args.memory, limits::MEMORY_BYTES, |bytes| show_bytes(*bytes))?,
            disk_bytes: given("--disk", args.disk, limits::DISK_BYTES, |bytes| show_bytes(*bytes))?,
            pids: given("--pids", args.pids, limits::PIDS, ToString::to_string)?,
        }),
        network: match args.network {
            NetworkArg::None => v1::Network::None,
            NetworkArg::Nat => v1::Network::Nat,
        }
        .into(),
        env,
        workdir: args.workdir.unwrap_or_default(),
        user: args.user.unwrap_or_default(),
        ttl_secs: args.ttl.map_or(Ok(0), |ttl| {
            u32::try_from(ttl.as_secs().max(1)).map_err(|_| usage("ttl: use at most ten years"))
        })?,
        lease_secs: 0,
        // A `--target` says more.
        locality: v1::Locality::Unspecified.into(),
        // A directory of this machine goes up when the sandbox runs.
        content: source::content(args.source),
        require_limits: args.require_limits,
        skip_services: args.skip_services,
        target: args.target.unwrap_or_default(),
        auto_stop_mins: args.auto_stop.map_or(Ok(0), |time| {
            u32::try_from(time.as_secs().div_ceil(60).max(1)).map_err(|_| usage("auto-stop: use at most a year"))
        })?,
    };
    Ok(v1::CreateSandboxRequest {
        name: args.name.unwrap_or_default(),
        spec: Some(spec),
        labels: args.label.into_iter().collect(),
        group: args.group.unwrap_or_default(),
        wait: false,
        timeout_secs: 0,
    })
}

/// A limit, which on the wire is 0 for the default.
fn given<T: Default + PartialOrd>(
    flag: &str,
    value: Option<T>,
    range: RangeInclusive<T>,
    shown: impl Fn(&T) -> String,
) -> Result<T, Error> {
    match value {
        Some(value) if !range.contains(&value) => {
            let (from, to) = (shown(range.start()), shown(range.end()));
            Err(usage(format!("{flag}: {} is not within {from} to {to}", shown(&value))))
        }
        value => Ok(value.unwrap_or_default()),
    }
}

/// Says which limits do not hold.
pub(super) fn warn_unenforced(sandbox: &v1::Sandbox) {
    if sandbox.unenforced_limits.is_empty() {
        return;
    }
    let list: Vec<&str> = sandbox.unenforced_limits.keys().map(String::as_str).collect();
    eprintln!(
        "dispense: limits that are not enforced here: {} (`dispense doctor` tells why, `--require-limits` refuses then)",
        list.join(", ")
    );
}

/// Says that files do not outlive a stop. For a sandbox that is kept.
pub(super) fn warn_disk_in_memory(sandbox: &v1::Sandbox) {
    if !sandbox.disk_in_memory.is_empty() {
        eprintln!(
            "dispense: the files of `{}` are in memory and are lost when it stops: {} (without `--disk` they are kept)",
            sandbox.name, sandbox.disk_in_memory
        );
    }
}
