//! The way out of the sandbox: a listener whose connections somebody outside takes, by their numbers.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dispense_api::error::{Code, Error};
use dispense_api::v1::{ListenPortRequest, ListenPortResponse, Listening, listen_port_request, listen_port_response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::OwnedSemaphorePermit;

use crate::call::{Requests, Responses, gone};
use crate::serve::Agent;
use crate::user;

/// Between looks whether the caller is still there.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A connection that nobody takes is closed after this time.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that wait to be taken.
const WAITING_MAX: usize = 256;
/// Where sockets are made.
const SOCKETS: &str = "/run/dispense";

/// A connection that came.
#[derive(Debug)]
pub(crate) enum Came {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What a connection to a service of the agent is bound by.
#[derive(Debug)]
pub(crate) struct Stay {
    /// One on which nothing is said for so long is closed.
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) _slot: OwnedSemaphorePermit,
}

/// Those that wait to be taken.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<HashMap<u64, (Came, Option<Stay>)>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (Came, Option<Stay>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers a connection; `None` where too many wait.
    fn put(&self, came: Came, stay: Option<Stay>) -> Option<u64> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut waiting = self.lock();
        if waiting.len() >= WAITING_MAX {
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        waiting.insert(number, (came, stay));
        Some(number)
    }

    /// Takes one, once.
    pub(super) fn take(&self, number: u64) -> Result<(Came, Option<Stay>), Error> {
        self.lock().remove(&number).ok_or_else(|| {
            let message = format!("connection {number} was taken already, or waited for too long");
            Error::new(Code::NotFound, "connection_unknown", message)
        })
    }
}

impl Agent {
    /// Lets a connection wait to be taken, for a while; `None` where too many wait, and then it is closed.
    pub(crate) fn offer(self: Arc<Self>, came: Came, stay: Option<Stay>) -> Option<u64> {
        let number = self.waiting.put(came, stay)?;
        let agent = self.clone();
        self.spawn(async move {
            tokio::time::sleep(TAKE_TIMEOUT).await;
            drop(agent.waiting.lock().remove(&number));
        });
        Some(number)
    }
}

/// Those of one listener; what waits when it ends is closed.
struct Mine<'a> {
    waiting: &'a Waiting,
    numbers: Vec<u64>,
}

impl Mine<'_> {
    fn put(&mut self, number: u64) {
        let waiting = self.waiting.lock();
        self.numbers.retain(|number| waiting.contains_key(number));
        self.numbers.push(number);
    }
}

impl Drop for Mine<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock();
        for number in &self.numbers {
            waiting.remove(number);
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _socket: Socket },
}

/// A socket's directory, for as long as somebody listens.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "a socket's directory stays");
        }
    }
}

impl Listener {
    async fn bind(agent: &Agent, request: ListenPortRequest) -> Result<(Self, Listening), Error> {
        match request.at {
            Some(listen_port_request::At::SocketUser(name)) => Self::bind_socket(agent, &name),
            Some(listen_port_request::At::Port(port)) => Self::bind_port(port).await,
            None => Self::bind_port(0).await,
        }
    }

    async fn bind_port(port: u32) -> Result<(Self, Listening), Error> {
        let number = u16::try_from(port)
            .map_err(|_| Error::new(Code::InvalidArgument, "port_invalid", "`port` is over 65535"))?;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                let message = format!("something listens on port {port} of the sandbox already: choose another");
                Error::new(Code::AlreadyExists, "port_taken", message)
            }
            _ => Error::new(Code::Unavailable, "port_failed", format!("failed to listen on port {port}: {error}")),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, number)).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port().into();
        Ok((Self::Tcp(listener), Listening { port, socket: String::new() }))
    }

    fn bind_socket(agent: &Agent, name: &str) -> Result<(Self, Listening), Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let user = user::find(if name.is_empty() { &agent.config.user } else { name })?;
        let failed = |error: io::Error| {
            Error::new(Code::Unavailable, "port_failed", format!("failed to make a socket below {SOCKETS}: {error}"))
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(SOCKETS).join(number.to_string());
        fs::create_dir_all(SOCKETS).map_err(failed)?;
        // Of a box's former start.
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(failed)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        let socket = Socket(folder);
        let path = socket.0.join("agent");
        let listener = UnixListener::bind(&path).map_err(failed)?;
        for path in [&path, &socket.0] {
            chown(path, Some(user.uid), Some(user.gid)).map_err(failed)?;
        }
        let listening = Listening { port: 0, socket: path.display().to_string() };
        Ok((Self::Unix { listener, _socket: socket }, listening))
    }

    /// CANCEL SAFETY: a connection is taken only when it is returned.
    async fn accept(&self) -> io::Result<Came> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true).ok();
                Ok(Came::Tcp(stream))
            }
            Self::Unix { listener, .. } => Ok(Came::Unix(listener.accept().await?.0)),
        }
    }
}

pub(crate) async fn listen<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Arc<Agent>,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: ListenPortRequest = requests.only().await?;
    let (listener, listening) = Listener::bind(agent, request).await?;
    let response = |kind| ListenPortResponse { kind: Some(kind) };
    responses.send(&response(listen_port_response::Kind::Listening(listening))).await.map_err(gone)?;
    let mut mine = Mine { waiting: &agent.waiting, numbers: Vec::new() };
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            came = listener.accept() => {
                let came = came.map_err(|error| {
                    Error::new(Code::Unavailable, "port_failed", format!("failed to accept: {error}"))
                })?;
                // One too many is closed: whoever connected sees that.
                let Some(number) = agent.clone().offer(came, None) else { continue };
                mine.put(number);
                responses.send(&response(listen_port_response::Kind::Connection(number))).await.map_err(gone)?;
            }
            _ = look.tick() => {
                if requests.gone() {
                    return Err(Error::new(Code::Cancelled, "gone", "the caller has gone"));
                }
            }
        }
    }
}
