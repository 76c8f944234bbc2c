//! `dispense.v1.BatchService`.

use std::sync::Arc;

use dispense_api::error::Error;
use dispense_api::v1;
use dispense_api::v1::batch_service_server::BatchService;
use tonic::{Request, Response, Status};

use super::sandboxes::create;
use crate::batch::{self, Ran};
use crate::door::Parts;
use crate::door::request::{caller, wait_bound, wait_timeout};
use crate::sandbox::spec::invalid;

pub(super) struct BatchDoor(pub(super) Arc<Parts>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl BatchService for BatchDoor {
    async fn batch_create_sandboxes(
        &self,
        request: Request<v1::BatchCreateSandboxesRequest>,
    ) -> Answer<v1::BatchSandboxesResponse> {
        let caller = caller(&request)?;
        let create = |request| create(&self.0.sandboxes, &caller, request);
        Ok(Response::new(results(batch::each("requests", request.into_inner().requests, create).await?)))
    }

    async fn batch_delete_sandboxes(
        &self,
        request: Request<v1::BatchDeleteSandboxesRequest>,
    ) -> Answer<v1::BatchSandboxesResponse> {
        let caller = caller(&request)?;
        let v1::BatchDeleteSandboxesRequest { sandboxes: named, force, wait, timeout_secs } = request.into_inner();
        let timeout = wait_bound(wait, timeout_secs)?;
        let (sandboxes, caller) = (&*self.0.sandboxes, &caller);
        let delete = async |sandbox: String| {
            let deleted = batch::delete(sandboxes, caller, &sandbox, force, timeout).await?;
            Ok(sandboxes.view(&deleted))
        };
        Ok(Response::new(results(batch::each("sandboxes", named, delete).await?)))
    }

    async fn batch_exec(&self, request: Request<v1::BatchExecRequest>) -> Answer<v1::BatchExecResponse> {
        let caller = caller(&request)?;
        let v1::BatchExecRequest { sandboxes: named, start, timeout_secs } = request.into_inner();
        let timeout = wait_timeout(timeout_secs)?;
        let start = start.ok_or_else(|| invalid("start", "it is missing"))?;
        let (sandboxes, relay, caller) = (&*self.0.sandboxes, &*self.0.relay, &caller);
        let exec = |sandbox: String| {
            let start = start.clone();
            async move {
                let ran = batch::exec(sandboxes, relay, caller, &sandbox, start, timeout).await;
                result(sandbox, ran)
            }
        };
        Ok(Response::new(v1::BatchExecResponse { results: batch::each("sandboxes", named, exec).await? }))
    }
}

fn result(sandbox: String, ran: Result<Ran, Error>) -> v1::BatchExecResult {
    match ran {
        Ok(Ran { exited, stdout, stderr, truncated }) => v1::BatchExecResult {
            sandbox,
            exited: Some(exited),
            stdout: stdout.into(),
            stderr: stderr.into(),
            truncated,
            error: None,
        },
        Err(error) => v1::BatchExecResult { sandbox, error: Some(told(error)), ..Default::default() },
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
