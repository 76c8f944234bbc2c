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

/// Connects an endpoint: by a dialler, or by TCP.
pub async fn connect(endpoint: &Endpoint, dialler: Option<&Dialler>) -> Result<Channel, Error> {
    let Some(dialler) = dialler.cloned() else { return endpoint.connect().await };
    let connector = tower::service_fn(move |uri| {
        let dialling = dialler(uri);
        async { dialling.await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}
