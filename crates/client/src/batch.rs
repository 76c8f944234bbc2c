//! Several changes in one call. Each item succeeds or fails by itself.

use dispense_api::error::{Code, Error};
use dispense_api::v1;
use dispense_api::v1::batch_sandbox_result::Result as Outcome;
use dispense_api::v1::batch_service_client::BatchServiceClient;

use crate::retry::idempotent;
use crate::{Authenticated, Client, PAGE_MAX_BYTES};

impl Client {
    fn batch_client(&self) -> BatchServiceClient<Authenticated> {
        BatchServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(PAGE_MAX_BYTES)
    }

    /// Creates up to 100 sandboxes; results in the order of the requests. Not tried again.
    pub async fn batch_create(
        &self,
        requests: Vec<v1::CreateSandboxRequest>,
    ) -> Result<Vec<Result<v1::Sandbox, Error>>, Error> {
        let created = self.batch_client().batch_create_sandboxes(v1::BatchCreateSandboxesRequest { requests }).await;
        Ok(outcomes(created.map_err(crate::error::of)?.into_inner()))
    }

    /// Deletes up to 100 sandboxes; results in the order of the request.
    pub async fn batch_delete(
        &self,
        request: v1::BatchDeleteSandboxesRequest,
    ) -> Result<Vec<Result<v1::Sandbox, Error>>, Error> {
        let deleted =
            idempotent(|| async { self.batch_client().batch_delete_sandboxes(request.clone()).await }).await?;
        Ok(outcomes(deleted))
    }

    /// Runs one command in up to 100 sandboxes and waits for all of them; results in the order of the request. Not
    /// tried again.
    pub async fn batch_exec(&self, request: v1::BatchExecRequest) -> Result<Vec<v1::BatchExecResult>, Error> {
        let run = self.batch_client().batch_exec(request).await;
        Ok(run.map_err(crate::error::of)?.into_inner().results)
    }
}

fn outcomes(response: v1::BatchSandboxesResponse) -> Vec<Result<v1::Sandbox, Error>> {
    let outcome = |result: v1::BatchSandboxResult| match result.result {
        Some(Outcome::Sandbox(sandbox)) => Ok(sandbox),
        Some(Outcome::Error(error)) => Err(Error {
            code: Code::parse(&error.code),
            reason: error.reason,
            message: error.message,
            details: error.details,
        }),
        None => Err(Error::new(Code::Internal, "batch", "the server gave no result")),
    };
    response.results.into_iter().map(outcome).collect()
}
