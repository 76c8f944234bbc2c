//! Which pages may open connections that outlive a request: browsers send them without asking first, and say only which
//! page it is.

use std::sync::Arc;

use dispense_api::error::{Code, Error};
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Uri};

/// The server's own pages, and those of the origins of its settings.
#[derive(Debug, Clone)]
pub(crate) struct Origins(Arc<[HeaderValue]>);

impl Origins {
    pub(crate) fn new(allowed: &[HeaderValue]) -> Self {
        Self(allowed.into())
    }

    /// The credential protects already; this keeps other pages from trying. A program names no origin.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Error> {
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        let own = || {
            let host = uri.authority().map(|host| host.as_str());
            let host = host.or_else(|| headers.get(HOST)?.to_str().ok())?;
            Some(origin.to_str().ok()?.split_once("://")?.1.eq_ignore_ascii_case(host))
        };
        if self.0.contains(origin) || own() == Some(true) {
            return Ok(());
        }
        let message = "pages of this origin may not connect: add it to `server.cors.allowed_origins`";
        Err(Error::new(Code::PermissionDenied, "cross_origin", message))
    }
}
