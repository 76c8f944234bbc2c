//! `dispense.v1.PreviewService`.

use std::sync::Arc;

use dispense_api::v1;
use dispense_api::v1::preview_service_server::PreviewService;
use tonic::{Request, Response, Status};

use crate::door::Parts;
use crate::door::request::caller;
use crate::preview::{self, Place};
use crate::sandbox::view::timestamp;

pub(super) struct PreviewDoor(pub(super) Arc<Parts>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl PreviewService for PreviewDoor {
    async fn open_preview(&self, request: Request<v1::OpenPreviewRequest>) -> Answer<v1::Preview> {
        let caller = caller(&request)?;
        let v1::OpenPreviewRequest { sandbox, port, public, ttl_secs } = request.into_inner();
        let port = preview::port(port)?;
        let action = if public { "preview.publish" } else { "preview.link" };
        let seen = self.0.sandboxes.seen_by(&caller);
        preview::refuse_agent_port(seen.get(&sandbox).await?.spec.agent_ports(), port)?;
        let row = seen.used(action, &sandbox).await?;
        let place = Place { sandbox: row.name, port };
        let link = self.0.previews.open(&row.id, &place, &caller.key_id, public, ttl_secs).await?;
        Ok(Response::new(v1::Preview { url: link.url, expires_at: Some(timestamp(link.expires_at)) }))
    }

    async fn close_preview(&self, request: Request<v1::ClosePreviewRequest>) -> Answer<v1::ClosePreviewResponse> {
        let caller = caller(&request)?;
        let v1::ClosePreviewRequest { sandbox, port, links } = request.into_inner();
        let port = preview::port(port)?;
        let action = if links { "preview.revoke" } else { "preview.close" };
        let row = self.0.sandboxes.seen_by(&caller).used(action, &sandbox).await?;
        self.0.previews.close(&row.id, port, links).await?;
        Ok(Response::new(v1::ClosePreviewResponse {}))
    }
}
