//! Previews: what listens in a sandbox, in a browser.

use std::time::Duration;

use dispense_api::error::Error;
use dispense_api::v1;

use crate::Client;
use crate::retry::idempotent;

impl Client {
    /// Makes a link to a port of a sandbox, or opens the port to everybody. Both end after `ttl`; by default after an
    /// hour.
    pub async fn open_preview(
        &self,
        sandbox: &str,
        port: u16,
        public: bool,
        ttl: Option<Duration>,
    ) -> Result<v1::Preview, Error> {
        let ttl_secs = ttl.map_or(0, |ttl| u32::try_from(ttl.as_secs().max(1)).unwrap_or(u32::MAX));
        let request = v1::OpenPreviewRequest { sandbox: sandbox.to_owned(), port: port.into(), public, ttl_secs };
        idempotent(|| async { self.previews().open_preview(request.clone()).await }).await
    }

    /// Ends the time in which a port is open to everybody, and with `links` every link that was made so far.
    pub async fn close_preview(&self, sandbox: &str, port: u16, links: bool) -> Result<(), Error> {
        let request = v1::ClosePreviewRequest { sandbox: sandbox.to_owned(), port: port.into(), links };
        idempotent(|| async { self.previews().close_preview(request.clone()).await }).await.map(drop)
    }
}
