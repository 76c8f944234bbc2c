//! `dispense.v1.EventService`.

use std::pin::Pin;
use std::sync::Arc;

use dispense_api::v1;
use dispense_api::v1::event_service_server::EventService;
use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use crate::door::Parts;
use crate::door::request::caller;
use crate::events::From;
use crate::sandbox::view::timestamp;
use crate::store::events::Event;

/// In the head of the answer: the number of the last event before those that are told.
const POSITION: &str = "x-dispense-position";

pub(super) struct EventDoor(pub(super) Arc<Parts>);

#[tonic::async_trait]
impl EventService for EventDoor {
    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let after = i64::try_from(request.after).unwrap_or(i64::MAX);
        let from = if request.from_now { From::Now } else { From::After(after) };
        let follower = self.0.sandboxes.seen_by(&caller).events(from, !request.no_follow).await?;
        let position = follower.position();
        let events = stream::try_unfold(follower, |mut follower| async {
            Ok(follower.next().await?.map(|event| (wire(event), follower)))
        });
        let mut response: Response<Self::WatchEventsStream> = Response::new(Box::pin(events));
        response.metadata_mut().insert(POSITION, position.into());
        Ok(response)
    }
}

fn wire(event: Event) -> v1::Event {
    v1::Event {
        seq: u64::try_from(event.seq).unwrap_or(0),
        at: Some(timestamp(event.at)),
        r#type: event.kind,
        sandbox_id: event.sandbox,
        group: event.group,
        data: event.data,
    }
}
