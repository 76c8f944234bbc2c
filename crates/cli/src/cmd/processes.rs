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

/// A number is a pid, anything else a name.
pub(super) fn reference(text: &str) -> v1::ProcessRef {
    let by = match text.parse() {
        Ok(pid) => v1::process_ref::By::Pid(pid),
        Err(_) => v1::process_ref::By::Name(text.to_owned()),
    };
    v1::ProcessRef { by: Some(by) }
}

/// The process that is asked for, or the living one that started last.
pub(super) async fn find(client: &Client, sandbox: &str, wanted: Option<&str>) -> Result<v1::Process, Error> {
    let processes = client.list_processes(sandbox, wanted.is_some()).await?;
    let found = match wanted.map(|text| (text, reference(text).by)) {
        Some((_, Some(v1::process_ref::By::Pid(pid)))) => processes.into_iter().find(|process| process.pid == pid),
        Some((name, _)) => processes.into_iter().filter(|process| process.name == name).max_by_key(newest),
        None => processes.into_iter().max_by_key(newest),
    };
    found.ok_or_else(|| {
        let which = wanted.map_or_else(|| "no process that runs".to_owned(), |text| format!("no process `{text}`"));
        let message = format!("sandbox `{sandbox}` has {which}: see `dispense ps --all {sandbox}`");
        Error::new(Code::NotFound, reason::PROCESS_UNKNOWN, message)
    })
}
