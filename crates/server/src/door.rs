//! The doors: each outside protocol is one module that authenticates, parses, calls the domain and maps the
//! answer. No decision is taken here, and no door calls another.
//!
//! One port serves them all; this module picks the door by content type and path.

mod data;
mod grpc;
pub(crate) mod listener;
mod request;
mod rest;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use dispense_api::error::{Code, Error};
use dispense_api::method::Method;
use http::{HeaderMap, HeaderValue, Request};
use hyper::body::Incoming;
use tonic::service::Routes;
use tower::ServiceExt;

use crate::auth::table::{self, Need};
use crate::auth::{Keys, Principal};
use crate::relay::Relay;
use crate::sandbox::service::Sandboxes;

/// What the doors work with.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) keys: Arc<Keys>,
}

/// The public port.
#[derive(Clone)]
pub(crate) struct Doors {
    parts: Parts,
    grpc: Routes,
    rest: Router,
}

impl Doors {
    pub(crate) fn new(parts: Parts) -> Self {
        Self { grpc: grpc::routes(&parts), rest: rest::router(parts.clone()), parts }
    }

    /// Answers one request.
    pub(crate) async fn serve(self, request: Request<Incoming>) -> Result<Response, Infallible> {
        let is_grpc = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if !is_grpc {
            return self.rest.oneshot(request.map(Body::new)).await;
        }
        if let Err(error) = authorise(&self.parts.keys, request.headers(), table::grpc(request.uri().path())) {
            return Ok(grpc_refusal(&error));
        }
        if let Some(method) = request.uri().path().strip_prefix('/').and_then(Method::parse) {
            return Ok(match data::call(&self.parts, method, request).await {
                Ok(response) => response.map(Body::new),
                Err(error) => grpc_refusal(&error),
            });
        }
        let response = self.grpc.oneshot(request.map(tonic::body::Body::new)).await;
        Ok(response.unwrap_or_else(|never| match never {}).map(Body::new))
    }
}

/// Who calls, if what the route needs is there.
fn authorise(keys: &Keys, headers: &HeaderMap, need: Option<Need>) -> Result<Option<Principal>, Error> {
    let unknown = || {
        Error::new(
            Code::Unimplemented,
            "route_unknown",
            "there is no such method here: the client may be newer than the server",
        )
    };
    match need.ok_or_else(unknown)? {
        // The handler checks the sandbox's token, which only it can.
        Need::Open | Need::SandboxToken => Ok(None),
        Need::Role(role) => {
            let principal = keys.authenticate(headers)?;
            if principal.role < role {
                let message = format!(
                    "this needs the role `{}`, and the API key has `{}`",
                    role.as_str(),
                    principal.role.as_str()
                );
                return Err(Error::new(Code::PermissionDenied, "role", message));
            }
            Ok(Some(principal))
        }
    }
}

/// A gRPC answer that is only a status.
fn grpc_refusal(error: &Error) -> Response {
    tonic::Status::from(error.clone()).into_http::<Body>().into_response()
}

/// The content type of gRPC answers.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::secret::random;
    use crate::auth::{ApiKey, Role};

    #[test]
    fn every_route_takes_the_roles_that_its_row_says_and_no_other() {
        let secrets: Vec<(Role, String)> = Role::ALL.into_iter().map(|role| (role, random("dsp_"))).collect();
        let keys = Keys::new(secrets.iter().map(|(role, secret)| ApiKey::of(secret, role.as_str(), *role)));
        let data = Method::ALL.iter().map(|method| table::grpc(&format!("/{}", method.path())));
        let grpc = table::GRPC.iter().map(|(path, _)| table::grpc(path));
        let rest = table::REST.iter().map(|(verb, pattern, _)| table::rest(verb, pattern));
        for need in data.chain(grpc).chain(rest) {
            for (role, secret) in &secrets {
                let value = format!("Bearer {secret}").parse().expect("a header");
                let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
                let allowed = match need {
                    None => false,
                    Some(Need::Open | Need::SandboxToken) => true,
                    Some(Need::Role(least)) => *role >= least,
                };
                assert_eq!(authorise(&keys, &headers, need).is_ok(), allowed, "{need:?} {role:?}");
            }
            let stranger = authorise(&keys, &HeaderMap::new(), need).is_ok();
            assert_eq!(stranger, matches!(need, Some(Need::Open | Need::SandboxToken)), "{need:?}");
        }
    }
}
