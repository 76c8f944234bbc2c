//! `dispense ps`, and how processes are named by other commands.

use dispense_api::error::reason;
use dispense_client::{Client, Code, Error, v1};
use serde::Serialize;

use crate::args::{Global, Output, PsArgs};
use crate::endpoint::connect;
use crate::show::{self, age, rfc3339};

#[derive(Serialize)]
struct ListJson {
    processes: Vec<ProcessJson>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProcessJson {
    pid: u32,
    name: String,
    args: Vec<String>,
    cwd: String,
    user: String,
    tty: bool,
    started_at: Option<String>,
    /// Of one that has ended.
    exit_code: Option<u32>,
    signal: Option<u32>,
}

impl From<v1::Process> for ProcessJson {
    fn from(process: v1::Process) -> Self {
        let status = process.exited.and_then(|exited| exited.status);
        let (exit_code, signal) = match status {
            Some(v1::process_exited::Status::Code(code)) => (Some(code), None),
            Some(v1::process_exited::Status::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        Self {
            pid: process.pid,
            name: process.name,
            args: process.args,
            cwd: process.cwd,
            user: process.user,
            tty: process.pty,
            started_at: process.started_at.as_ref().map(rfc3339),
            exit_code,
            signal,
        }
    }
}

/// Lists processes that were started through the agent.
pub(super) async fn list(global: &Global, args: PsArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let mut processes = connected.client.list_processes(&args.sandbox, args.all).await?;
    processes.sort_by_key(newest);
    if global.output == Output::Json {
        show::json(&ListJson { processes: processes.into_iter().map(ProcessJson::from).collect() });
        return Ok(0);
    }
    let mut table = show::table(&["PID", "NAME", "STATE", "AGE", "USER", "COMMAND"]);
    for process in processes {
        let age = process.started_at.as_ref().map(age).unwrap_or_default();
        let (pid, state) = (process.pid.to_string(), state(&process));
        table.add_row([&pid, &process.name, &state, &age, &process.user, &process.args.join(" ")]);
    }
    show::print(&table);
    Ok(0)
}

fn state(process: &v1::Process) -> String {
    match process.exited.map(|exited| exited.status) {
        None => "running".to_owned(),
        Some(Some(v1::process_exited::Status::Code(code))) => format!("exited {code}"),
        Some(Some(v1::process_exited::Status::Signal(signal))) => format!("signal {signal}"),
        Some(None) => "ended".to_owned(),
    }
}

/// Orders by start.
pub(super) fn newest(process: &v1::Process) -> (i64, i32, u32) {
    let at = process.started_at.unwrap_or_default();
    (at.seconds, at.nanos, process.pid)
}

/// Whether a process is what was asked for: a pid, a pid with the beginning of its start (`7@2026-11-21T10`), or a name.
pub(super) fn is(process: &v1::Process, wanted: &str) -> bool {
    let (pid, started_at) = wanted.split_once('@').unwrap_or((wanted, ""));
    match pid.parse::<u32>() {
        Ok(pid) => {
            process.pid == pid && process.started_at.as_ref().is_some_and(|at| rfc3339(at).starts_with(started_at))
        }
        Err(_) => process.name == wanted,
    }
}

/// The process that is asked for, or the living one that started last.
pub(super) async fn find(client: &Client, sandbox: &str, wanted: Option<&str>) -> Result<v1::Process, Error> {
    let processes = client.list_processes(sandbox, wanted.is_some()).await?;
    let asked_for = |process: &v1::Process| wanted.is_none_or(|wanted| is(process, wanted));
    let living_or_newest = |process: &v1::Process| (process.exited.is_none(), newest(process));
    let found = processes.into_iter().filter(asked_for).max_by_key(living_or_newest);
    found.ok_or_else(|| {
        let which = wanted.map_or_else(|| "no process that runs".to_owned(), |text| format!("no process `{text}`"));
        let message = format!("sandbox `{sandbox}` has {which}: see `dispense ps --all {sandbox}`");
        Error::new(Code::NotFound, reason::PROCESS_UNKNOWN, message)
    })
}
