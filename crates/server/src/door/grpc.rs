//! `dispense.v1`: sandboxes, runners, jobs. Messages are parsed here; the domain knows no wire type.

mod audit;
mod batch;
mod events;
mod jobs;
mod keys;
mod logs;
mod runners;
mod sandboxes;

use dispense_api::v1::audit_service_server::AuditServiceServer;
use dispense_api::v1::batch_service_server::BatchServiceServer;
use dispense_api::v1::event_service_server::EventServiceServer;
use dispense_api::v1::job_service_server::JobServiceServer;
use dispense_api::v1::key_service_server::KeyServiceServer;
use dispense_api::v1::log_service_server::LogServiceServer;
use dispense_api::v1::runner_service_server::RunnerServiceServer;
use dispense_api::v1::sandbox_service_server::SandboxServiceServer;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, HealthService};

use super::Parts;

/// The services, beside what every gRPC server has: health, for those who watch it, and reflection.
pub(super) async fn routes(parts: &Parts) -> Routes {
    Routes::new(SandboxServiceServer::new(sandboxes::SandboxDoor(parts.sandboxes.clone())))
        .add_service(RunnerServiceServer::new(runners::RunnerDoor(parts.sandboxes.clone())))
        .add_service(LogServiceServer::new(logs::LogDoor(parts.sandboxes.clone())))
        .add_service(JobServiceServer::new(jobs::JobDoor(parts.sandboxes.clone())))
        .add_service(KeyServiceServer::new(keys::KeyDoor(parts.clone())))
        .add_service(BatchServiceServer::new(batch::BatchDoor(parts.clone())))
        .add_service(AuditServiceServer::new(audit::AuditDoor(parts.clone())))
        .add_service(EventServiceServer::new(events::EventDoor(parts.clone())))
        .add_service(health().await)
        .add_service(reflection().build_v1().expect("the build generated the descriptors"))
        .add_service(reflection().build_v1alpha().expect("the build generated the descriptors"))
}

/// A server that answers serves: as a whole, and each of its services.
async fn health() -> HealthServer<impl Health> {
    let reporter = HealthReporter::new();
    for service in published().file.iter().flat_map(|file| {
        file.service.iter().map(|service| format!("{}.{}", file.package(), service.name())).collect::<Vec<_>>()
    }) {
        reporter.set_service_status(service, ServingStatus::Serving).await;
    }
    HealthServer::new(HealthService::from_health_reporter(reporter))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure().register_file_descriptor_set(published())
}

/// What clients may call, and nothing of what runners and agents speak.
fn published() -> FileDescriptorSet {
    let mut set = FileDescriptorSet::decode(dispense_api::FILE_DESCRIPTOR_SET).expect("the build generated it");
    set.file.retain(|file| !["dispense.runner.v1", "dispense.agent.v1"].contains(&file.package()));
    set
}
