//! `dispense jobs`.

use dispense_api::id::JobId;
use dispense_client::{Error, v1};
use serde::Serialize;

use crate::args::{Global, JobsArgs, Output};
use crate::endpoint::connect;
use crate::show::{self, age, rfc3339};

#[derive(Serialize)]
struct ListJson {
    jobs: Vec<JobJson>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JobJson {
    id: String,
    r#type: &'static str,
    sandbox_id: String,
    runner_id: String,
    status: &'static str,
    error: String,
    created_at: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
}

/// Lists jobs, newest first, or shows one.
pub(super) async fn jobs(global: &Global, args: JobsArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let of = args.of.unwrap_or_default();
    let jobs = if of.parse::<JobId>().is_ok() {
        vec![connected.client.job(&of).await?]
    } else {
        let status = v1::JobStatus::Unspecified.into();
        let request = v1::ListJobsRequest { sandbox: of, status, page_size: args.limit, page_token: String::new() };
        connected.client.jobs(request).await?.jobs
    };
    match global.output {
        Output::Json => {
            show::json(&ListJson { jobs: jobs.into_iter().map(JobJson::from).collect() });
        }
        Output::Table => {
            let mut table = show::table(&["TYPE", "STATUS", "SANDBOX", "AGE", "ERROR", "ID"]);
            for job in jobs {
                let created = job.created_at.as_ref().map(age).unwrap_or_default();
                let (kind, status) = (kind(job.r#type()), status(job.status()));
                table.add_row([kind, status, &job.sandbox_id, &created, &job.error, &job.id]);
            }
            show::print(&table);
        }
    }
    Ok(0)
}

impl From<v1::Job> for JobJson {
    fn from(job: v1::Job) -> Self {
        Self {
            r#type: kind(job.r#type()),
            status: status(job.status()),
            id: job.id,
            sandbox_id: job.sandbox_id,
            runner_id: job.runner_id,
            error: job.error,
            created_at: job.created_at.as_ref().map(rfc3339),
            started_at: job.started_at.as_ref().map(rfc3339),
            finished_at: job.finished_at.as_ref().map(rfc3339),
        }
    }
}

pub(super) fn kind(kind: v1::JobType) -> &'static str {
    match kind {
        v1::JobType::Unspecified => "unknown",
        v1::JobType::Create => "create",
        v1::JobType::Delete => "delete",
        v1::JobType::Start => "start",
        v1::JobType::Stop => "stop",
    }
}

pub(super) fn status(status: v1::JobStatus) -> &'static str {
    match status {
        v1::JobStatus::Unspecified => "unknown",
        v1::JobStatus::Pending => "pending",
        v1::JobStatus::Running => "running",
        v1::JobStatus::Completed => "completed",
        v1::JobStatus::Failed => "failed",
    }
}
