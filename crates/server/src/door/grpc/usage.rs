//! `dispense.v1.UsageService`.

use std::sync::Arc;

use dispense_api::v1;
use dispense_api::v1::usage_service_server::UsageService;
use prost_types::Timestamp;
use tonic::{Request, Response, Status};

use crate::door::request::caller;
use crate::sandbox::service::Sandboxes;
use crate::sandbox::usage::Sample;
use crate::sandbox::view::micros;

pub(super) struct UsageDoor(pub(super) Arc<Sandboxes>);

#[tonic::async_trait]
impl UsageService for UsageDoor {
    async fn get_usage(&self, request: Request<v1::GetUsageRequest>) -> Result<Response<v1::GetUsageResponse>, Status> {
        let caller = caller(&request)?;
        let v1::GetUsageRequest { sandbox, from, to } = request.into_inner();
        let (from, to) = (from.as_ref().map(micros), to.as_ref().map(micros));
        let (tier, samples) = self.0.seen_by(&caller).usage(&sandbox, from, to).await?;
        let step_secs = u32::try_from(tier.step_secs).unwrap_or(u32::MAX);
        Ok(Response::new(v1::GetUsageResponse { step_secs, samples: samples.iter().map(wire).collect() }))
    }
}

fn wire(sample: &Sample) -> v1::UsageSample {
    v1::UsageSample {
        at: Some(Timestamp { seconds: sample.at, nanos: 0 }),
        cpu_percent: sample.cpu_percent,
        memory_mb: sample.memory_mb,
        session_count: sample.session_count,
    }
}
