//! `dispense.v1.JobService`.

use std::sync::Arc;

use dispense_api::v1;
use dispense_api::v1::job_service_server::JobService;
use tonic::{Request, Response, Status};

use crate::door::request::{Page, caller};
use crate::job::{Job, JobStatus, JobType};
use crate::sandbox::service::Sandboxes;
use crate::sandbox::spec::invalid;
use crate::sandbox::view::timestamp;

pub(super) struct JobDoor(pub(super) Arc<Sandboxes>);

#[tonic::async_trait]
impl JobService for JobDoor {
    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let status = match v1::JobStatus::try_from(request.status) {
            Ok(v1::JobStatus::Unspecified) => None,
            Ok(v1::JobStatus::Pending) => Some(JobStatus::Pending),
            Ok(v1::JobStatus::Running) => Some(JobStatus::Running),
            Ok(v1::JobStatus::Completed) => Some(JobStatus::Completed),
            Ok(v1::JobStatus::Failed) => Some(JobStatus::Failed),
            Err(_) => return Err(invalid("status", "it is no status of a job").into()),
        };
        let page = Page::parse(request.page_size, &request.page_token)?;
        let rows = self.0.seen_by(&caller).jobs(&request.sandbox, status, page.before.clone(), page.limit).await?;
        let next_page_token = page.next_token(&rows, |row| (row.created_at, row.id.as_str()));
        let jobs = rows.into_iter().map(wire).collect();
        Ok(Response::new(v1::ListJobsResponse { jobs, next_page_token }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(wire(self.0.seen_by(&caller).job(&request.into_inner().job).await?)))
    }
}

pub(super) fn wire(job: Job) -> v1::Job {
    v1::Job {
        id: job.id.to_string(),
        r#type: match job.kind {
            JobType::Create => v1::JobType::Create,
            JobType::Delete => v1::JobType::Delete,
            JobType::Start => v1::JobType::Start,
            JobType::Stop => v1::JobType::Stop,
        }
        .into(),
        sandbox_id: job.sandbox.to_string(),
        runner_id: job.runner.map(|runner| runner.to_string()).unwrap_or_default(),
        status: match job.status {
            JobStatus::Pending => v1::JobStatus::Pending,
            JobStatus::Running => v1::JobStatus::Running,
            JobStatus::Completed => v1::JobStatus::Completed,
            JobStatus::Failed => v1::JobStatus::Failed,
        }
        .into(),
        error: job.error,
        attempts: job
            .attempts
            .into_iter()
            .map(|attempt| v1::JobAttempt {
                at: Some(timestamp(attempt.at)),
                runner_id: attempt.runner,
                error: attempt.error,
            })
            .collect(),
        deadline: job.finished_at.is_none().then(|| timestamp(job.deadline_at)),
        created_at: Some(timestamp(job.created_at)),
        started_at: job.started_at.map(timestamp),
        finished_at: job.finished_at.map(timestamp),
    }
}
