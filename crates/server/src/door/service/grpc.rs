//! The service over gRPC. An error leaves as a status; [`Inline`](super::Inline) turns it into a response for those
//! who want it there.

use std::convert::Infallible;
use std::pin::Pin;

use dispense_api::service::dispense_service_server::DispenseService;
use dispense_api::service::*;
use futures_util::Stream;
use tonic::{Request, Response, Status};

use super::calls::Calls;
use crate::door::request::caller;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl DispenseService for Calls {
    async fn create_sandbox(&self, request: Request<CreateSandboxRequest>) -> Answer<CreateSandboxResponse> {
        let caller = caller(&request)?;
        Ok(Response::new(self.create(&caller, request.into_inner()).await?))
    }

    async fn list_sandboxes(&self, request: Request<ListSandboxesRequest>) -> Answer<ListSandboxesResponse> {
        let caller = caller(&request)?;
        Ok(Response::new(self.list(&caller, request.into_inner()).await?))
    }

    async fn delete_sandbox(&self, request: Request<DeleteSandboxRequest>) -> Answer<DeleteSandboxResponse> {
        let caller = caller(&request)?;
        Ok(Response::new(self.delete(&caller, request.into_inner()).await?))
    }

    async fn get_sandbox(&self, request: Request<GetSandboxRequest>) -> Answer<GetSandboxResponse> {
        let caller = caller(&request)?;
        Ok(Response::new(self.get(&caller, request.into_inner()).await?))
    }

    async fn wait_for_sandbox(&self, request: Request<WaitForSandboxRequest>) -> Answer<WaitForSandboxResponse> {
        let caller = caller(&request)?;
        Ok(Response::new(self.wait(&caller, request.into_inner()).await?))
    }

    type RunClaudeTaskStream = Pin<Box<dyn Stream<Item = Result<RunClaudeTaskResponse, Status>> + Send>>;

    async fn run_claude_task(&self, request: Request<RunClaudeTaskRequest>) -> Answer<Self::RunClaudeTaskStream> {
        let caller = caller(&request)?;
        let never: Infallible = self.run_task(&caller, request.into_inner()).await?;
        match never {}
    }

    async fn get_claude_status(&self, request: Request<GetClaudeStatusRequest>) -> Answer<GetClaudeStatusResponse> {
        let caller = caller(&request)?;
        Ok(Response::new(self.task_status(&caller, request.into_inner()).await?))
    }

    async fn get_claude_logs(&self, request: Request<GetClaudeLogsRequest>) -> Answer<GetClaudeLogsResponse> {
        let caller = caller(&request)?;
        Ok(Response::new(self.task_logs(&caller, request.into_inner()).await?))
    }

    async fn get_api_key(&self, request: Request<GetApiKeyRequest>) -> Answer<GetApiKeyResponse> {
        Ok(Response::new(self.get_key(&caller(&request)?).await?))
    }

    async fn set_api_key(&self, request: Request<SetApiKeyRequest>) -> Answer<SetApiKeyResponse> {
        let caller = caller(&request)?;
        Ok(Response::new(self.set_key(&caller, request.into_inner()).await?))
    }

    async fn validate_api_key(&self, request: Request<ValidateApiKeyRequest>) -> Answer<ValidateApiKeyResponse> {
        Ok(Response::new(self.validate_key(&request.into_inner()).await))
    }
}
