//! `dispense.v1`: sandboxes, runners, jobs. Messages are parsed here; the domain knows no wire type.

mod audit;
mod batch;
mod events;
mod jobs;
mod keys;
mod logs;
mod previews;
mod runners;
mod sandboxes;
mod ssh;
mod usage;

use std::sync::Arc;

use dispense_api::v1::audit_service_server::AuditServiceServer;
use dispense_api::v1::batch_service_server::BatchServiceServer;
use dispense_api::v1::event_service_server::EventServiceServer;
use dispense_api::v1::job_service_server::JobServiceServer;
use dispense_api::v1::key_service_server::KeyServiceServer;
use dispense_api::v1::log_service_server::LogServiceServer;
use dispense_api::v1::preview_service_server::PreviewServiceServer;
use dispense_api::v1::runner_service_server::RunnerServiceServer;
use dispense_api::v1::sandbox_service_server::SandboxServiceServer;
use dispense_api::v1::ssh_service_server::SshServiceServer;
use dispense_api::v1::usage_service_server::UsageServiceServer;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::service::Routes;

use super::Parts;

/// The services, beside what every gRPC server has: health, for those who watch it, and reflection.
pub(super) fn routes(parts: &Arc<Parts>) -> Routes {
    Routes::new(SandboxServiceServer::new(sandboxes::SandboxDoor(parts.sandboxes.clone())))
        .add_service(RunnerServiceServer::new(runners::RunnerDoor(parts.sandboxes.clone())))
        .add_service(UsageServiceServer::new(usage::UsageDoor(parts.sandboxes.clone())))
        .add_service(LogServiceServer::new(logs::LogDoor(parts.sandboxes.clone())))
        .add_service(JobServiceServer::new(jobs::JobDoor(parts.sandboxes.clone())))
        .add_service(KeyServiceServer::new(keys::KeyDoor(parts.clone())))
        .add_service(BatchServiceServer::new(batch::BatchDoor(parts.clone())))
        .add_service(PreviewServiceServer::new(previews::PreviewDoor(parts.clone())))
        .add_service(SshServiceServer::new(ssh::SshDoor(parts.clone())))
        .add_service(AuditServiceServer::new(audit::AuditDoor(parts.clone())))
        .add_service(EventServiceServer::new(events::EventDoor(parts.clone())))
        .add_service(parts.health.server())
        .add_service(reflection().build_v1().expect("the build generated the descriptors"))
        .add_service(reflection().build_v1alpha().expect("the build generated the descriptors"))
}

/// The names of all services that clients may call.
pub(crate) fn services() -> Vec<String> {
    let names = published().file.into_iter().flat_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().map(move |service| format!("{package}.{}", service.name()))
    });
    names.collect()
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
