//! What happened, and who asked for it: events of sandboxes and the audit log.

use dispense_api::error::Error;
use dispense_api::v1;
use dispense_api::v1::audit_service_client::AuditServiceClient;
use dispense_api::v1::event_service_client::EventServiceClient;

use crate::retry::{idempotent, jitter};
use crate::{Authenticated, Client, Code};

/// In the head of the answer: the number of the last event before those that are told.
const POSITION: &str = "x-dispense-position";
/// Before a stream that was cut is opened again.
const REOPEN_DELAY: std::time::Duration = std::time::Duration::from_millis(500);

/// Events from a number on. It comes back by itself when its connection is cut, with none lost and none twice.
pub struct EventStream {
    client: Client,
    request: v1::WatchEventsRequest,
    stream: Option<tonic::Streaming<v1::Event>>,
    cut: Option<tokio::time::Instant>,
}

impl Client {
    fn audit_client(&self) -> AuditServiceClient<Authenticated> {
        AuditServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    fn events_client(&self) -> EventServiceClient<Authenticated> {
        EventServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    /// A page of the audit log, oldest first.
    pub async fn audit(&self, request: v1::ListAuditRequest) -> Result<Vec<v1::AuditEntry>, Error> {
        Ok(idempotent(|| async { self.audit_client().list_audit(request).await }).await?.entries)
    }

    /// Walks the whole chain of the audit log.
    pub async fn verify_audit(&self) -> Result<v1::VerifyAuditResponse, Error> {
        idempotent(|| async { self.audit_client().verify_audit(v1::VerifyAuditRequest {}).await }).await
    }

    /// Follows events.
    pub async fn events(&self, request: v1::WatchEventsRequest) -> Result<EventStream, Error> {
        let mut events = EventStream { client: self.clone(), request, stream: None, cut: None };
        events.open().await?;
        Ok(events)
    }
}

impl EventStream {
    async fn open(&mut self) -> Result<(), Error> {
        let opened = self.client.events_client().watch_events(self.request).await.map_err(crate::error::of)?;
        // From now on is from there on, also after a cut before the first event.
        let position = opened.metadata().get(POSITION).and_then(|value| value.to_str().ok()?.parse().ok());
        if let (true, Some(after)) = (self.request.from_now, position) {
            self.request = v1::WatchEventsRequest { after, from_now: false, ..self.request };
        }
        self.stream = Some(opened.into_inner());
        Ok(())
    }

    /// The next event; `None` at the end of a stream that does not follow.
    pub async fn next(&mut self) -> Result<Option<v1::Event>, Error> {
        loop {
            let error = match self.read().await {
                Ok(Some(event)) => {
                    self.cut = None;
                    self.request = v1::WatchEventsRequest { after: event.seq, from_now: false, ..self.request };
                    return Ok(Some(event));
                }
                Ok(None) if self.request.no_follow => return Ok(None),
                // The server ends, and will be back.
                Ok(None) => Error::new(Code::Unavailable, "events", "the server ended the stream of events"),
                Err(error) if error.code != Code::Unavailable => return Err(error),
                Err(error) => error,
            };
            self.stream = None;
            let since = *self.cut.get_or_insert_with(tokio::time::Instant::now);
            if since.elapsed() > self.client.resume_for {
                return Err(error);
            }
            tokio::time::sleep(jitter(REOPEN_DELAY)).await;
        }
    }

    async fn read(&mut self) -> Result<Option<v1::Event>, Error> {
        if self.stream.is_none() {
            self.open().await?;
        }
        match &mut self.stream {
            Some(stream) => stream.message().await.map_err(crate::error::of),
            None => Ok(None),
        }
    }
}
