//! The way to a server for its peers: TCP, or what a caller gives instead, e.g. a simulated network.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Error, Uri};

/// A byte stream to a server.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection that is being made.
pub type Dialling = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>>;

/// Opens connections to the host and port of a URL.
pub type Dialler = Arc<dyn Fn(Uri) -> Dialling + Send + Sync>;

/// An endpoint for a server's URL, for [`connect`]. Where it is `https` the dialler speaks TLS; the library is told that
/// the connection is plain, or it would insist on doing so itself.
pub fn endpoint(uri: &Uri) -> Endpoint {
    let plain = uri.authority().and_then(|authority| {
        let plain = Uri::builder().scheme("http").authority(authority.as_str()).path_and_query("/");
        plain.build().ok()
    });
    match plain {
        Some(plain) => Endpoint::from(plain).origin(uri.clone()),
        None => Endpoint::from(uri.clone()),
    }
}

/// Connects an endpoint of a URL: by a dialler, or by TCP.
pub async fn connect(endpoint: &Endpoint, uri: &Uri, dialler: Option<&Dialler>) -> Result<Channel, Error> {
    let Some(dialler) = dialler.cloned() else { return endpoint.connect().await };
    let uri = uri.clone();
    let connector = tower::service_fn(move |_| {
        let dialling = dialler(uri.clone());
        async { dialling.await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}
