//! Sandboxes, runners and jobs.

use std::collections::BTreeMap;
use std::time::SystemTime;

use dispense_api::error::Error;
use dispense_api::v1;
use dispense_api::v1::usage_service_client::UsageServiceClient;

use crate::retry::idempotent;
use crate::{Client, error};

impl Client {
    /// What a sandbox used, by default in the last hour.
    pub async fn usage(
        &self,
        sandbox: &str,
        from: Option<SystemTime>,
        to: Option<SystemTime>,
    ) -> Result<v1::GetUsageResponse, Error> {
        let request =
            v1::GetUsageRequest { sandbox: sandbox.to_owned(), from: from.map(Into::into), to: to.map(Into::into) };
        let client = || UsageServiceClient::with_interceptor(self.channel.clone(), self.headers.clone());
        idempotent(|| async { client().get_usage(request.clone()).await }).await
    }

    /// Creates a sandbox; not retried, since it is not idempotent.
    pub async fn create(&self, request: v1::CreateSandboxRequest) -> Result<v1::Sandbox, Error> {
        self.sandboxes().create_sandbox(request).await.map(tonic::Response::into_inner).map_err(error::of)
    }

    /// One sandbox, by id or name.
    pub async fn get(&self, sandbox: &str) -> Result<v1::Sandbox, Error> {
        idempotent(|| async {
            self.sandboxes().get_sandbox(v1::GetSandboxRequest { sandbox: sandbox.to_owned() }).await
        })
        .await
    }

    /// One page.
    pub async fn list(&self, request: v1::ListSandboxesRequest) -> Result<v1::ListSandboxesResponse, Error> {
        idempotent(|| async { self.sandboxes().list_sandboxes(request.clone()).await }).await
    }

    /// Every page.
    pub async fn list_all(&self, mut request: v1::ListSandboxesRequest) -> Result<Vec<v1::Sandbox>, Error> {
        let mut all = Vec::new();
        loop {
            let page = self.list(request.clone()).await?;
            all.extend(page.sandboxes);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Wants it running; with `wait` returns when it is, or has failed.
    pub async fn start(&self, sandbox: &str, wait: bool) -> Result<v1::Sandbox, Error> {
        let request = v1::StartSandboxRequest { sandbox: sandbox.to_owned(), wait, timeout_secs: 0 };
        idempotent(|| async { self.sandboxes().start_sandbox(request.clone()).await }).await
    }

    /// Ends its processes, keeps its files.
    pub async fn stop(&self, sandbox: &str, wait: bool) -> Result<v1::Sandbox, Error> {
        let request = v1::StopSandboxRequest { sandbox: sandbox.to_owned(), wait, timeout_secs: 0 };
        idempotent(|| async { self.sandboxes().stop_sandbox(request.clone()).await }).await
    }

    /// Removes it; with `wait` returns when nothing is left.
    pub async fn delete(&self, sandbox: &str, force: bool, wait: bool) -> Result<v1::Sandbox, Error> {
        let request = v1::DeleteSandboxRequest { sandbox: sandbox.to_owned(), wait, timeout_secs: 0, force };
        idempotent(|| async { self.sandboxes().delete_sandbox(request.clone()).await }).await
    }

    /// Waits for a state.
    pub async fn wait(&self, request: v1::WaitSandboxRequest) -> Result<v1::Sandbox, Error> {
        idempotent(|| async { self.sandboxes().wait_sandbox(request.clone()).await }).await
    }

    /// Extends its lease.
    pub async fn renew(&self, sandbox: &str) -> Result<v1::Sandbox, Error> {
        let request = v1::RenewSandboxRequest { sandbox: sandbox.to_owned() };
        idempotent(|| async { self.sandboxes().renew_sandbox(request.clone()).await }).await
    }

    /// The variables that its processes start with.
    pub async fn environment(&self, sandbox: &str) -> Result<BTreeMap<String, String>, Error> {
        let request = v1::GetEnvironmentRequest { sandbox: sandbox.to_owned() };
        let answer = idempotent(|| async { self.sandboxes().get_environment(request.clone()).await }).await?;
        Ok(answer.variables.into_iter().collect())
    }

    /// Sets and removes some of them, for processes that are started from the answer on; all that there are then.
    pub async fn change_environment(
        &self,
        request: v1::ChangeEnvironmentRequest,
    ) -> Result<BTreeMap<String, String>, Error> {
        let answer = idempotent(|| async { self.sandboxes().change_environment(request.clone()).await }).await?;
        Ok(answer.variables.into_iter().collect())
    }

    /// Every runner.
    pub async fn runners(&self) -> Result<Vec<v1::Runner>, Error> {
        let runners = idempotent(|| async { self.runners_client().list_runners(v1::ListRunnersRequest {}).await });
        Ok(runners.await?.runners)
    }

    /// One runner, by id or name.
    pub async fn runner(&self, runner: &str) -> Result<v1::Runner, Error> {
        let request = v1::GetRunnerRequest { runner: runner.to_owned() };
        idempotent(|| async { self.runners_client().get_runner(request.clone()).await }).await
    }

    /// Lets a runner take nothing new; what runs there goes on.
    pub async fn cordon_runner(&self, runner: &str) -> Result<v1::Runner, Error> {
        let request = v1::CordonRunnerRequest { runner: runner.to_owned() };
        idempotent(|| async { self.runners_client().cordon_runner(request.clone()).await }).await
    }

    /// Lets a runner take sandboxes again.
    pub async fn uncordon_runner(&self, runner: &str) -> Result<v1::Runner, Error> {
        let request = v1::UncordonRunnerRequest { runner: runner.to_owned() };
        idempotent(|| async { self.runners_client().uncordon_runner(request.clone()).await }).await
    }

    /// Lets a runner take nothing new and stops its sandboxes.
    pub async fn drain_runner(&self, runner: &str) -> Result<v1::Runner, Error> {
        let request = v1::DrainRunnerRequest { runner: runner.to_owned() };
        idempotent(|| async { self.runners_client().drain_runner(request.clone()).await }).await
    }

    /// A page of jobs.
    pub async fn jobs(&self, request: v1::ListJobsRequest) -> Result<v1::ListJobsResponse, Error> {
        idempotent(|| async { self.jobs_client().list_jobs(request.clone()).await }).await
    }

    /// One job.
    pub async fn job(&self, job: &str) -> Result<v1::Job, Error> {
        let request = v1::GetJobRequest { job: job.to_owned() };
        idempotent(|| async { self.jobs_client().get_job(request.clone()).await }).await
    }
}
