//! `dispense.v1.LogService`.

use std::sync::Arc;

use dispense_api::v1;
use dispense_api::v1::log_service_server::LogService;
use tonic::{Request, Response, Status};

use super::jobs::wire;
use crate::door::request::caller;
use crate::sandbox::service::Sandboxes;

pub(super) struct LogDoor(pub(super) Arc<Sandboxes>);

#[tonic::async_trait]
impl LogService for LogDoor {
    async fn get_logs(&self, request: Request<v1::GetLogsRequest>) -> Result<Response<v1::GetLogsResponse>, Status> {
        let caller = caller(&request)?;
        let (processes, jobs) = self.0.seen_by(&caller).logs(&request.into_inner().sandbox).await?;
        Ok(Response::new(v1::GetLogsResponse { processes, jobs: jobs.into_iter().map(wire).collect() }))
    }
}
