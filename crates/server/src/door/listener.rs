//! A TCP port that speaks HTTP/1.1 and HTTP/2 without prior agreement, with a bound on everything a peer can
//! do before and between requests.

mod begun;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dispense_api::limits;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use begun::Begun;

/// Connections of one port: each costs some KiB when idle.
const CONNECTIONS_MAX: usize = 8192;
/// Requests at the same time on one HTTP/2 connection; a runner's sessions share one.
const STREAMS_MAX: u32 = 8192;
/// A peer that has connected sends its first request within this time, or is gone.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// For the handshake of TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The headers of one HTTP/1.1 request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// All headers of one request.
const HEADERS_MAX_BYTES: u32 = 64 << 10;
/// A silent HTTP/2 peer is asked after this long, and is gone when it does not answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// After `accept` failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where connections come to: a TCP port, or one of a simulated network.
pub trait Listener: Send + 'static {
    /// One connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and who made it.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// Where it listens.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = Self::accept(self).await?;
        // Small frames of terminals must not wait for an acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "nodelay");
        }
        Ok((stream, peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

/// Who is at the other end of the connection that a request came by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// How the connections of a port are.
#[derive(Clone)]
pub(crate) struct Port {
    /// HTTP/2 window of a connection.
    pub(crate) window_bytes: u32,
    /// Without it they are plain.
    pub(crate) tls: Option<TlsAcceptor>,
}

/// Serves HTTP until `shutdown`, then lets each connection finish the requests it has begun.
pub(crate) async fn serve<L, S, F, B>(
    listener: L,
    port: Port,
    service: S,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) where
    L: Listener,
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let ended = shutdown.clone();
    let each = move |stream: L::Stream, peer| {
        let (service, shutdown, port) = (service.clone(), shutdown.clone(), port.clone());
        async move {
            match port.tls {
                None => connection(stream, peer, port.window_bytes, service, shutdown).await,
                Some(tls) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                    Ok(Ok(stream)) => connection(stream, peer, port.window_bytes, service, shutdown).await,
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "handshake"),
                    Err(_) => tracing::debug!(%peer, "handshake took too long"),
                },
            }
        }
    };
    accept(listener, CONNECTIONS_MAX, each, tasks, ended).await;
}

/// Accepts connections until `shutdown`, at most so many at a time, and returns the listener; each is served by a
/// task of its own.
pub(crate) async fn accept<L, F>(
    mut listener: L,
    connections_max: usize,
    each: impl Fn(L::Stream, SocketAddr) -> F,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) -> L
where
    L: Listener,
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(connections_max));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return listener,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "too many connections: one was closed");
            continue;
        };
        let served = each(stream, peer);
        tasks.spawn(async move {
            served.await;
            drop(slot);
        });
    }
}

/// Serves one connection until its end, or until `shutdown` and the end of the requests that it has begun.
pub(crate) async fn connection<T, S, F, B>(
    stream: T,
    peer: SocketAddr,
    window_bytes: u32,
    service: S,
    shutdown: CancellationToken,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let spoke = Arc::new(AtomicBool::new(false));
    let mark = spoke.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        mark.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(PeerAddress(peer));
        service(request)
    });
    let begun = Begun::default();
    let builder = builder(window_bytes, begun.clone());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let silent = tokio::time::sleep(FIRST_REQUEST_TIMEOUT);
    tokio::pin!(silent);
    let (mut draining, mut waiting) = (false, true);
    loop {
        tokio::select! {
            result = poll_fn(|context| begun.after(|| connection.as_mut().poll(context))) => {
                if let Err(error) = result {
                    tracing::debug!(%peer, %error, "connection");
                }
                return;
            }
            () = &mut silent, if waiting => {
                if !spoke.load(Ordering::Relaxed) {
                    tracing::debug!(%peer, "connection without a request was closed");
                    return;
                }
                waiting = false;
            }
            () = shutdown.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn builder(window_bytes: u32, begun: Begun) -> auto::Builder<Begun> {
    let mut builder = auto::Builder::new(begun);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADERS_MAX_BYTES as usize)
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(window_bytes)
        .max_frame_size(limits::HTTP2_FRAME_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX_BYTES)
        .max_send_buf_size(limits::STREAM_WINDOW_BYTES as usize)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    builder
}
