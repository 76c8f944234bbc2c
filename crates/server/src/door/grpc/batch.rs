//! `dispense.v1.BatchService`: each item as its own call, some at the same time, results in their order.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use dispense_api::error::{Code, Error};
use dispense_api::method::Method;
use dispense_api::v1;
use dispense_api::v1::batch_service_server::BatchService;
use futures_util::{StreamExt, stream};
use tonic::{Request, Response, Status};

use super::sandboxes::create;
use crate::auth::Principal;
use crate::door::Parts;
use crate::door::request::{caller, wait_bound, wait_timeout};
use crate::relay::call::broken;
use crate::sandbox::lifecycle::Desired;
use crate::sandbox::spec::invalid;

/// Items of one call.
const ITEMS_MAX: usize = 100;
/// Items at the same time.
const AT_ONCE: usize = 16;
/// Of each stream of a process.
const OUTPUT_MAX_BYTES: usize = 64 << 10;
/// For a sandbox that waits for a runner, and again for one that starts.
const START_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct BatchDoor(pub(super) Parts);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl BatchService for BatchDoor {
    async fn batch_create_sandboxes(
        &self,
        request: Request<v1::BatchCreateSandboxesRequest>,
    ) -> Answer<v1::BatchSandboxesResponse> {
        let caller = caller(&request)?;
        let requests = request.into_inner().requests;
        bounded("requests", requests.len())?;
        let each = requests.into_iter().map(|request| create(&self.0.sandboxes, &caller, request));
        Ok(Response::new(results(stream::iter(each).buffered(AT_ONCE).collect().await)))
    }

    async fn batch_delete_sandboxes(
        &self,
        request: Request<v1::BatchDeleteSandboxesRequest>,
    ) -> Answer<v1::BatchSandboxesResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        bounded("sandboxes", request.sandboxes.len())?;
        let timeout = wait_bound(request.wait, request.timeout_secs)?;
        let delete = |sandbox| self.delete(&caller, sandbox, request.force, timeout);
        let each = request.sandboxes.into_iter().map(delete);
        Ok(Response::new(results(stream::iter(each).buffered(AT_ONCE).collect().await)))
    }

    async fn batch_exec(&self, request: Request<v1::BatchExecRequest>) -> Answer<v1::BatchExecResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        bounded("sandboxes", request.sandboxes.len())?;
        let timeout = wait_timeout(request.timeout_secs)?;
        let start = request.start.ok_or_else(|| invalid("start", "it is missing"))?;
        let each = request.sandboxes.into_iter().map(|sandbox| self.exec(&caller, sandbox, start.clone(), timeout));
        let results = stream::iter(each).buffered(AT_ONCE).collect().await;
        Ok(Response::new(v1::BatchExecResponse { results }))
    }
}

impl BatchDoor {
    async fn delete(
        &self,
        caller: &Principal,
        sandbox: String,
        force: bool,
        timeout: Option<Duration>,
    ) -> Result<v1::Sandbox, Error> {
        let sandboxes = &self.0.sandboxes;
        let deleted = sandboxes.seen_by(caller).delete(&sandbox, force).await?;
        Ok(sandboxes.view(&sandboxes.settled(deleted, Desired::Deleted, timeout).await?))
    }

    async fn exec(
        &self,
        caller: &Principal,
        sandbox: String,
        start: v1::StartProcess,
        timeout: Duration,
    ) -> v1::BatchExecResult {
        let run = tokio::time::timeout(timeout, run(&self.0, caller, &sandbox, start)).await;
        let result = run.unwrap_or_else(|_| {
            let message = format!("the process has not ended within {} s: it goes on", timeout.as_secs());
            Err(Error::new(Code::DeadlineExceeded, "exec_timeout", message))
        });
        match result {
            Ok(result) => v1::BatchExecResult { sandbox, ..result },
            Err(error) => v1::BatchExecResult { sandbox, error: Some(told(error)), ..Default::default() },
        }
    }
}

/// Runs a command as any caller of `RunProcess` does, with its input closed.
async fn run(
    parts: &Parts,
    caller: &Principal,
    sandbox: &str,
    start: v1::StartProcess,
) -> Result<v1::BatchExecResult, Error> {
    use v1::process_event::Kind;
    let route = parts.sandboxes.seen_by(caller).route(sandbox, Method::RunProcess, START_TIMEOUT).await?;
    let kind = v1::run_process_request::Kind::Start(start);
    let first = v1::RunProcessRequest { sandbox: route.sandbox.to_string(), kind: Some(kind) };
    let call = parts.relay.call(&route, Method::RunProcess, &caller.origin, &first, START_TIMEOUT).await?;
    let (requests, mut answers) = call;
    requests.end().await;
    let (mut stdout, mut stderr, mut exited) = (Tail::default(), Tail::default(), None);
    while let Some(v1::ProcessEvent { kind }) = answers.next().await? {
        match kind {
            Some(Kind::Output(output)) if output.stream() == v1::OutputStream::Stderr => stderr.push(&output.data),
            Some(Kind::Output(output)) => stdout.push(&output.data),
            Some(Kind::Exited(status)) => exited = Some(status),
            _ => {}
        }
    }
    Ok(v1::BatchExecResult {
        exited: Some(exited.ok_or_else(broken)?),
        truncated: stdout.cut || stderr.cut,
        stdout: stdout.bytes(),
        stderr: stderr.bytes(),
        ..Default::default()
    })
}

/// The end of what was written.
#[derive(Default)]
struct Tail {
    kept: VecDeque<u8>,
    cut: bool,
}

impl Tail {
    fn push(&mut self, data: &[u8]) {
        let skip = data.len().saturating_sub(OUTPUT_MAX_BYTES);
        self.kept.extend(&data[skip..]);
        let more = self.kept.len().saturating_sub(OUTPUT_MAX_BYTES);
        self.kept.drain(..more);
        self.cut |= skip > 0 || more > 0;
    }

    fn bytes(self) -> Bytes {
        Vec::from(self.kept).into()
    }
}

fn bounded(field: &str, items: usize) -> Result<(), Error> {
    match items {
        0 => Err(invalid(field, "it is empty")),
        1..=ITEMS_MAX => Ok(()),
        _ => Err(invalid(field, format_args!("{items} are over the limit of {ITEMS_MAX}"))),
    }
}

fn results(each: Vec<Result<v1::Sandbox, Error>>) -> v1::BatchSandboxesResponse {
    use v1::batch_sandbox_result::Result as Outcome;
    let outcome = |result| match result {
        Ok(sandbox) => Outcome::Sandbox(sandbox),
        Err(error) => Outcome::Error(told(error)),
    };
    let results = each.into_iter().map(|result| v1::BatchSandboxResult { result: Some(outcome(result)) });
    v1::BatchSandboxesResponse { results: results.collect() }
}

fn told(error: Error) -> v1::BatchError {
    v1::BatchError {
        code: error.code.as_str().to_owned(),
        reason: error.reason,
        message: error.message,
        details: error.details,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_end_and_says_that_it_was_cut() {
        let mut tail = Tail::default();
        tail.push(&vec![1; OUTPUT_MAX_BYTES]);
        assert!(!tail.cut);
        tail.push(b"end");
        assert!(tail.cut);
        let bytes = tail.bytes();
        assert!(bytes.len() == OUTPUT_MAX_BYTES && bytes.ends_with(b"end"));
    }
}
