//! `dispense.v1`: sandboxes, runners, jobs. Messages are parsed here; the domain knows no wire type.

mod jobs;
mod logs;
mod runners;
mod sandboxes;

use dispense_api::v1::job_service_server::JobServiceServer;
use dispense_api::v1::log_service_server::LogServiceServer;
use dispense_api::v1::runner_service_server::RunnerServiceServer;
use dispense_api::v1::sandbox_service_server::SandboxServiceServer;
use tonic::service::Routes;

use super::Parts;

/// The services, as one tower service.
pub(super) fn routes(parts: &Parts) -> Routes {
    Routes::new(SandboxServiceServer::new(sandboxes::SandboxDoor(parts.sandboxes.clone())))
        .add_service(RunnerServiceServer::new(runners::RunnerDoor(parts.sandboxes.clone())))
        .add_service(LogServiceServer::new(logs::LogDoor(parts.sandboxes.clone())))
        .add_service(JobServiceServer::new(jobs::JobDoor(parts.sandboxes.clone())))
        .prepare()
}
