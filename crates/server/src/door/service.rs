//! `dispense.DispenseService`, over gRPC and as REST under `/v1`: one meaning, told by [`Calls`], and two mappings
//! of the same messages.

mod calls;
mod config;
mod gateway;
mod grpc;
mod info;
mod inline;

use std::sync::Arc;

use dispense_api::service::dispense_service_server::DispenseServiceServer;

use super::Parts;
use calls::Calls;

pub(super) use gateway::{ROUTES, method, router};
pub(super) use inline::Inline;

/// The service over gRPC.
pub(super) fn server(parts: &Arc<Parts>) -> DispenseServiceServer<Calls> {
    DispenseServiceServer::new(Calls { parts: parts.clone() })
}
