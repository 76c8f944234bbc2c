//! The doors: each outside protocol is one module that authenticates, parses, calls the domain and maps the
//! answer. No decision is taken here, and no door calls another.
//!
//! One port serves them all; this module picks the door by content type and path.

mod data;
mod grpc;
pub(crate) mod listener;
mod request;
mod rest;
mod service;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Buf;
use dispense_api::error::{Code, Error};
use dispense_api::method::Method;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use service::Inline;
use tonic::body::Body as GrpcBody;
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;
use tower::{Layer, ServiceExt, service_fn};

use crate::auth::table::{self, Need};
use crate::auth::{Keys, Principal};
use crate::relay::Relay;
use crate::sandbox::service::Sandboxes;
use crate::vault::Vault;

/// Of the body of a refused request this much is read before the answer.
const REFUSED_MAX_BYTES: usize = 256 << 10;
const REFUSED_TIMEOUT: Duration = Duration::from_secs(1);

/// What the doors work with.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) vault: Arc<Vault>,
}

/// The public port.
#[derive(Clone)]
pub(crate) struct Doors {
    parts: Parts,
    grpc: Routes,
    rest: Router,
}

impl Doors {
    pub(crate) async fn new(parts: Parts) -> Self {
        let rest = rest::router(parts.clone()).merge(service::router(parts.clone()));
        Self { grpc: grpc::routes(&parts).await.add_service(service::server(&parts)).prepare(), rest, parts }
    }

    /// Answers one request.
    pub(crate) async fn serve(self, request: Request<Incoming>) -> Result<Response, Infallible> {
        let content_type = request.headers().get(http::header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if content_type.starts_with(b"application/grpc-web") {
            let grpc = service_fn(|request| self.clone().grpc(request));
            let response = GrpcWebLayer::new().layer(grpc).oneshot(request).await;
            Ok(response.unwrap_or_else(|never| match never {}).map(Body::new))
        } else if content_type.starts_with(b"application/grpc") {
            let response = self.grpc(request.map(GrpcBody::new)).await;
            Ok(response.unwrap_or_else(|never| match never {}).map(Body::new))
        } else {
            self.rest.oneshot(request.map(Body::new)).await
        }
    }

    async fn grpc(self, request: Request<GrpcBody>) -> Result<http::Response<GrpcBody>, Infallible> {
        let inline = Inline::asked(request.headers(), request.uri().path());
        let response = self.call(request).await;
        Ok(match inline {
            Some(inline) => inline.apply(response),
            None => response,
        })
    }

    async fn call(self, mut request: Request<GrpcBody>) -> http::Response<GrpcBody> {
        let need = table::grpc(request.uri().path());
        let caller = match admit(&self.parts.keys, &mut request, need).await {
            Ok(caller) => caller,
            Err(error) => return grpc_refusal(error),
        };
        if let (Some(method), Some(caller)) = (request.uri().path().strip_prefix('/').and_then(Method::parse), &caller)
        {
            return match data::call(&self.parts, caller, method, request).await {
                Ok(response) => response.map(GrpcBody::new),
                Err(error) => grpc_refusal(error),
            };
        }
        self.grpc.oneshot(request).await.unwrap_or_else(|never| match never {})
    }
}

/// Lets a request in, or not; its handler finds the caller among its extensions.
async fn admit<B>(keys: &Keys, request: &mut Request<B>, need: Option<Need>) -> Result<Option<Principal>, Error>
where
    B: http_body::Body<Data: Send, Error: Send> + Unpin + Send,
{
    match authorise(keys, request.headers(), need) {
        Ok(caller) => {
            if let Some(caller) = caller.clone() {
                request.extensions_mut().insert(caller);
            }
            Ok(caller)
        }
        Err(error) => {
            read_away(request).await;
            Err(error)
        }
    }
}

/// Reads the body of a refused request. Over HTTP/1.1 an answer before the end of the request closes the
/// connection, and a client that still writes would see that instead of the answer.
async fn read_away<B>(request: &mut Request<B>)
where
    B: http_body::Body<Data: Send, Error: Send> + Unpin + Send,
{
    if request.version() >= http::Version::HTTP_2 {
        return;
    }
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = request.body_mut().frame().await {
            bytes += frame.data_ref().map_or(0, Buf::remaining);
            if bytes > REFUSED_MAX_BYTES {
                return;
            }
        }
    };
    // A slow one is answered all the same.
    let _ = tokio::time::timeout(REFUSED_TIMEOUT, read).await;
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
fn grpc_refusal(error: Error) -> http::Response<GrpcBody> {
    tonic::Status::from(error).into_http()
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
