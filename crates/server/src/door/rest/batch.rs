//! Several changes in one request, with a result for each item in its place.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dispense_api::error::Error;
use dispense_api::v1::{self, process_exited};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::json::{CreateJson, SandboxJson};
use super::{Answer, Parts, bad_body, create};
use crate::auth::Principal;
use crate::batch::{self, Ran};
use crate::door::request::{wait_bound, wait_timeout};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreatesJson {
    /// At most 100.
    requests: Vec<CreateJson>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeletesJson {
    /// Ids or names; at most 100.
    sandboxes: Vec<String>,
    #[serde(default)]
    force: bool,
    /// Until they are gone.
    #[serde(default)]
    wait: bool,
    #[serde(default)]
    timeout_secs: u32,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExecsJson {
    /// Ids or names; at most 100.
    sandboxes: Vec<String>,
    start: StartJson,
    /// For all of them; 0 for 60 s; at most 3,600. The process of one that takes longer goes on.
    #[serde(default)]
    timeout_secs: u32,
}

/// A process without input.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StartJson {
    /// The command and its arguments; the command is looked up in PATH.
    args: Vec<String>,
    /// Added to the sandbox's environment.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Empty means the sandbox's working directory.
    #[serde(default)]
    cwd: String,
    /// A user name or uid; empty means the sandbox's user.
    #[serde(default)]
    user: String,
    /// It is killed after this long; 0 means never.
    #[serde(default)]
    timeout_ms: u64,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ResultsJson<T> {
    /// In the order of the request.
    results: Vec<T>,
}

/// One of the two.
#[derive(Serialize, JsonSchema)]
pub(super) struct ResultJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<SandboxJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<RefusedJson>,
}

/// Why an item was refused.
#[derive(Serialize, JsonSchema)]
struct RefusedJson {
    code: &'static str,
    reason: String,
    message: String,
    details: BTreeMap<String, String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExecJson {
    /// As the request named it.
    sandbox: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exited: Option<ExitedJson>,
    /// The end of what it wrote, at most 64 KiB.
    stdout: String,
    stderr: String,
    /// Of both: `utf8`, or `base64` where one of them is no UTF-8.
    encoding: &'static str,
    /// More was written than is here.
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<RefusedJson>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ExitedJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<u32>,
    out_of_memory: bool,
    timed_out: bool,
    disk_full: bool,
    duration_ms: u64,
}

impl From<Error> for RefusedJson {
    fn from(error: Error) -> Self {
        Self { code: error.code.as_str(), reason: error.reason, message: error.message, details: error.details }
    }
}

impl From<Result<SandboxJson, Error>> for ResultJson {
    fn from(result: Result<SandboxJson, Error>) -> Self {
        match result {
            Ok(sandbox) => Self { sandbox: Some(sandbox), error: None },
            Err(error) => Self { sandbox: None, error: Some(error.into()) },
        }
    }
}

impl From<v1::ProcessExited> for ExitedJson {
    fn from(exited: v1::ProcessExited) -> Self {
        let (code, signal) = match exited.status {
            Some(process_exited::Status::Code(code)) => (Some(code), None),
            Some(process_exited::Status::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        Self {
            code,
            signal,
            out_of_memory: exited.out_of_memory,
            timed_out: exited.timed_out,
            disk_full: exited.disk_full,
            duration_ms: exited.duration_ms,
        }
    }
}

impl ExecJson {
    fn new(sandbox: String, ran: Result<Ran, Error>) -> Self {
        let (ran, error) = match ran {
            Ok(ran) => (Some(ran), None),
            Err(error) => (None, Some(error.into())),
        };
        let (exited, truncated, stdout, stderr) = match ran {
            Some(ran) => (Some(ran.exited.into()), ran.truncated, ran.stdout, ran.stderr),
            None => (None, false, vec![], vec![]),
        };
        let (stdout, stderr, encoding) = match (String::from_utf8(stdout), String::from_utf8(stderr)) {
            (Ok(stdout), Ok(stderr)) => (stdout, stderr, "utf8"),
            (stdout, stderr) => (encoded(stdout), encoded(stderr), "base64"),
        };
        Self { sandbox, exited, stdout, stderr, encoding, truncated, error }
    }
}

fn encoded(text: Result<String, std::string::FromUtf8Error>) -> String {
    match text {
        Ok(text) => STANDARD.encode(text),
        Err(error) => STANDARD.encode(error.as_bytes()),
    }
}

pub(super) async fn create_each(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    body: Result<Json<CreatesJson>, JsonRejection>,
) -> Answer<Json<ResultsJson<ResultJson>>> {
    let Json(CreatesJson { requests }) = body.map_err(|error| bad_body(&error))?;
    let create = |request| create(&parts, &caller, request);
    let created = batch::each("requests", requests, create).await?;
    Ok(Json(ResultsJson { results: created.into_iter().map(Into::into).collect() }))
}

pub(super) async fn delete_each(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    body: Result<Json<DeletesJson>, JsonRejection>,
) -> Answer<Json<ResultsJson<ResultJson>>> {
    let Json(body) = body.map_err(|error| bad_body(&error))?;
    let timeout = wait_bound(body.wait, body.timeout_secs)?;
    let (sandboxes, caller, force) = (&*parts.sandboxes, &caller, body.force);
    let delete = |sandbox: String| async move {
        let deleted = batch::delete(sandboxes, caller, &sandbox, force, timeout).await?;
        Ok(SandboxJson::new(sandboxes, &deleted))
    };
    let deleted = batch::each("sandboxes", body.sandboxes, delete).await?;
    Ok(Json(ResultsJson { results: deleted.into_iter().map(Into::into).collect() }))
}

pub(super) async fn exec_each(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    body: Result<Json<ExecsJson>, JsonRejection>,
) -> Answer<Json<ResultsJson<ExecJson>>> {
    let Json(ExecsJson { sandboxes: named, start, timeout_secs }) = body.map_err(|error| bad_body(&error))?;
    let timeout = wait_timeout(timeout_secs)?;
    let StartJson { args, env, cwd, user, timeout_ms } = start;
    let env = env.into_iter().collect();
    let start = v1::StartProcess { args, env, cwd, user, timeout_ms, ..Default::default() };
    let (sandboxes, relay, caller) = (&*parts.sandboxes, &*parts.relay, &caller);
    let exec = |sandbox: String| {
        let start = start.clone();
        async move {
            let ran = batch::exec(sandboxes, relay, caller, &sandbox, start, timeout).await;
            ExecJson::new(sandbox, ran)
        }
    };
    Ok(Json(ResultsJson { results: batch::each("sandboxes", named, exec).await? }))
}
