//! `dispense.v1.RunnerService`.

use std::sync::Arc;

use dispense_api::v1;
use dispense_api::v1::runner_service_server::RunnerService;
use tonic::{Request, Response, Status};

use crate::auth::Principal;
use crate::door::request::caller;
use crate::fleet::{Mode, RunnerStatus, RunnerView};
use crate::placement::Room;
use crate::sandbox::service::Sandboxes;
use crate::sandbox::view::timestamp;

pub(super) struct RunnerDoor(pub(super) Arc<Sandboxes>);

#[tonic::async_trait]
impl RunnerService for RunnerDoor {
    async fn list_runners(
        &self,
        _request: Request<v1::ListRunnersRequest>,
    ) -> Result<Response<v1::ListRunnersResponse>, Status> {
        let runners = self.0.fleet.list().into_iter().map(wire).collect();
        Ok(Response::new(v1::ListRunnersResponse { runners }))
    }

    async fn get_runner(&self, request: Request<v1::GetRunnerRequest>) -> Result<Response<v1::Runner>, Status> {
        let wanted = request.into_inner().runner;
        Ok(Response::new(wire(self.0.fleet.find(&wanted)?)))
    }

    async fn cordon_runner(&self, request: Request<v1::CordonRunnerRequest>) -> Result<Response<v1::Runner>, Status> {
        let caller = caller(&request)?;
        self.set_mode(&caller, "runner.cordon", &request.into_inner().runner, Mode::Cordoned).await
    }

    async fn uncordon_runner(
        &self,
        request: Request<v1::UncordonRunnerRequest>,
    ) -> Result<Response<v1::Runner>, Status> {
        let caller = caller(&request)?;
        self.set_mode(&caller, "runner.uncordon", &request.into_inner().runner, Mode::Open).await
    }

    async fn drain_runner(&self, request: Request<v1::DrainRunnerRequest>) -> Result<Response<v1::Runner>, Status> {
        let caller = caller(&request)?;
        self.set_mode(&caller, "runner.drain", &request.into_inner().runner, Mode::Draining).await
    }
}

impl RunnerDoor {
    async fn set_mode(
        &self,
        caller: &Principal,
        action: &str,
        runner: &str,
        mode: Mode,
    ) -> Result<Response<v1::Runner>, Status> {
        self.0.audit.taken(caller, action, runner).await?;
        Ok(Response::new(wire(self.0.set_runner_mode(runner, mode).await?)))
    }
}

fn wire(view: RunnerView) -> v1::Runner {
    let (facts, known) = (view.known.facts.clone(), view.known);
    v1::Runner {
        id: known.id.to_string(),
        name: facts.name,
        status: match view.status {
            RunnerStatus::Available => v1::RunnerStatus::Available,
            RunnerStatus::Busy => v1::RunnerStatus::Busy,
            RunnerStatus::Draining => v1::RunnerStatus::Draining,
            RunnerStatus::Offline => v1::RunnerStatus::Offline,
        }
        .into(),
        address: facts.address,
        capacity: Some(capacity(facts.capacity)),
        used: Some(capacity(view.used)),
        sandboxes: u32::try_from(view.used.sandboxes).unwrap_or(u32::MAX),
        labels: facts.labels.into_iter().collect(),
        backends: facts.backends,
        templates: facts.templates,
        version: facts.version,
        last_heartbeat: Some(timestamp(known.last_seen_at)),
        joined_at: Some(timestamp(known.joined_at)),
        unenforced_limits: facts.unenforced.into_iter().collect(),
        disk_in_memory: facts.disk_in_memory,
        networks: facts.networks.iter().map(|network| network.wire().into()).collect(),
    }
}

fn capacity(room: Room) -> v1::Capacity {
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    v1::Capacity {
        cpu_millis: narrow(room.cpu_millis),
        memory_bytes: room.memory_bytes,
        disk_bytes: room.disk_bytes,
        sandboxes: narrow(room.sandboxes),
    }
}
