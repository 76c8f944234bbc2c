//! SSH: `ssh SANDBOX@server -p 2222`. Shells, commands, files and ports of one sandbox, for any SSH client.
//!
//! The user name is the sandbox. Who it is, a certificate, a registered key or, where that is switched on, an API key as
//! the password says. Everything beyond is the agent's: a channel is a process of the sandbox, or a byte stream to a port.

mod channel;
mod forward;
mod transport;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dispense_api::error::Error;
use dispense_api::id::SandboxId;
use dispense_api::method::Method;
use dispense_api::v1::listen_port_request::At;
use russh::keys::{Certificate, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::Parts;
use super::listener::{Listener, accept};
use super::pulse::Pulse;
use crate::auth::{Principal, Role};
use crate::relay::Route;
use crate::ssh::{Ssh, SshConfig, fingerprint};
use crate::store::ssh_keys;
use channel::Setup;

/// Connections of the port that are no session: nobody has logged in yet, or they have just been refused.
const WAITING_MAX: usize = 256;
/// Channels of one connection: terminals, forwarded connections.
const CHANNELS_MAX: usize = 256;
/// Listeners in the sandbox of one connection.
const LISTENERS_MAX: usize = 32;
/// Until somebody has said who they are.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// A refusal takes this long, whatever it was for.
const REJECTION_TIME: Duration = Duration::from_millis(500);
/// For a sandbox that sleeps or starts.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Where programs look for the keys of `ssh -A`.
const AGENT_SOCKET: &str = "SSH_AUTH_SOCK";

/// What the door works with.
#[derive(Clone)]
pub(crate) struct SshDoor {
    pub(crate) parts: Arc<Parts>,
    pub(crate) ssh: Arc<Ssh>,
    /// An API key is taken as the password.
    pub(crate) passwords: bool,
    /// Of the port: those who have logged in.
    pub(crate) sessions: Arc<Semaphore>,
    pub(crate) sessions_max: usize,
    /// A session by which nothing passes for so long is ended.
    pub(crate) idle_timeout: Duration,
}

impl SshDoor {
    pub(crate) fn new(parts: Arc<Parts>, ssh: Arc<Ssh>, config: &SshConfig) -> Self {
        let SshConfig { passwords, sessions_max, idle_timeout, .. } = *config;
        Self { parts, ssh, passwords, sessions: Arc::new(Semaphore::new(sessions_max)), sessions_max, idle_timeout }
    }

    /// Serves until `shutdown`.
    pub(crate) async fn serve<L: Listener>(self, listener: L, tasks: TaskTracker, shutdown: CancellationToken) {
        let (config, connections_max) = (transport::outside(&self), self.sessions_max + WAITING_MAX);
        let ended = shutdown.clone();
        let each = move |stream, peer| {
            let entrance = Entrance::Gateway { sandbox: String::new() };
            self.clone().connection(stream, peer, entrance, config.clone(), shutdown.clone())
        };
        accept(listener, connections_max, each, tasks, ended).await;
    }

    /// Serves a connection that came from inside a sandbox.
    pub(super) async fn inside<S>(self, stream: S, peer: SocketAddr, sandbox: &SandboxId, shutdown: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (config, entrance) =
            (transport::inside(&self), Entrance::Inside { sandbox: sandbox.clone(), user: String::new() });
        self.connection(stream, peer, entrance, config, shutdown).await;
    }

    async fn connection<S>(
        self,
        stream: S,
        peer: SocketAddr,
        entrance: Entrance,
        config: Arc<Config>,
        shutdown: CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (entered, keys, idle_timeout) = (watch::Sender::new(None), self.parts.keys.clone(), self.idle_timeout);
        let pulse = Pulse::default();
        let mut key = entered.subscribe();
        let connection = Connection {
            door: self,
            peer,
            caller: None,
            entrance,
            entered,
            slot: None,
            pulse: pulse.clone(),
            channels: Arc::new(Semaphore::new(CHANNELS_MAX)),
            setups: channel::Setups::default(),
            listeners: HashMap::new(),
            agent: None,
        };
        let begun = tokio::time::timeout(LOGIN_TIMEOUT, russh::server::run_stream(config, stream, connection)).await;
        let Ok(Ok(mut running)) = begun else { return };
        let handle = running.handle();
        let over = async {
            let login = tokio::time::timeout(LOGIN_TIMEOUT, key.wait_for(Option::is_some)).await;
            let Ok(Ok(key_id)) = login.map(|key| key.map(|key| key.clone().unwrap_or_default())) else {
                return "nobody has logged in".to_owned();
            };
            tokio::select! {
                () = keys.ended(&key_id) => "the API key behind this login was revoked or has expired".to_owned(),
                () = pulse.stopped(idle_timeout) => {
                    format!("nothing has passed for {} s (server.ssh.idle_timeout)", idle_timeout.as_secs())
                }
            }
        };
        let why = tokio::select! {
            ended = &mut running => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "SSH connection");
                }
                return;
            }
            why = over => why,
            () = shutdown.cancelled() => "the server ends".to_owned(),
        };
        // One that is gone needs no goodbye.
        let _ = handle.disconnect(Disconnect::ByApplication, why, "en".to_owned()).await;
        let _ = tokio::time::timeout(REJECTION_TIME, &mut running).await;
    }
}

/// Where a client came in, which says what the user name of its login means.
#[derive(Debug, Clone)]
enum Entrance {
    /// The sandbox, by id or name.
    Gateway { sandbox: String },
    /// A user of the sandbox, as at any machine.
    Inside { sandbox: SandboxId, user: String },
}

impl Entrance {
    fn log_in(&mut self, login: &str) {
        let (Self::Gateway { sandbox: name } | Self::Inside { user: name, .. }) = self;
        login.clone_into(name);
    }

    fn sandbox(&self) -> &str {
        match self {
            Self::Gateway { sandbox } => sandbox,
            Self::Inside { sandbox, .. } => sandbox.as_str(),
        }
    }

    /// Who runs what is started; empty for the sandbox's own default.
    fn user(&self) -> &str {
        match self {
            Self::Gateway { .. } => "",
            Self::Inside { user, .. } => user,
        }
    }
}

/// One client.
struct Connection {
    door: SshDoor,
    peer: SocketAddr,
    caller: Option<Principal>,
    entrance: Entrance,
    /// Told the id of the key behind the login.
    entered: watch::Sender<Option<String>>,
    /// Of a session of the gateway.
    slot: Option<OwnedSemaphorePermit>,
    /// Of all its channels.
    pulse: Pulse,
    channels: Arc<Semaphore>,
    setups: channel::Setups,
    /// By the address and port that the client asked for.
    listeners: HashMap<(String, u32), AbortOnDropHandle<()>>,
    /// For the client's keys; the same for all its channels.
    agent: Option<(String, AbortOnDropHandle<()>)>,
}

impl Connection {
    /// Notes who has come in, if they may use the sandbox at all.
    fn enter(&mut self, login: &str, caller: Option<Principal>) -> Auth {
        match caller.filter(|caller| caller.role >= Role::Member) {
            Some(caller) => {
                self.entrance.log_in(login);
                tracing::info!(peer = %self.peer, entrance = ?self.entrance, account = %caller.account, "SSH login");
                self.entered.send_replace(Some(caller.key_id.clone()));
                self.caller = Some(caller);
                Auth::Accept
            }
            None => Auth::reject(),
        }
    }

    async fn id(&self, login: &str) -> Option<SandboxId> {
        match &self.entrance {
            // The error is the server's own, and in its log.
            Entrance::Gateway { .. } => self.door.parts.sandboxes.id_of(login).await.ok().flatten(),
            Entrance::Inside { sandbox, .. } => Some(sandbox.clone()),
        }
    }

    /// Whose registered key it is.
    async fn account(&self, key: &PublicKey) -> Option<String> {
        let found = ssh_keys::find(self.door.parts.sandboxes.store.readers(), &fingerprint(key)).await;
        found.ok().flatten().map(|key| key.account)
    }

    /// Where the sandbox is; wakes it.
    async fn route(&self, method: Method) -> Result<Route, Error> {
        let caller = self.caller.as_ref().expect("channels are opened after the login");
        let (seen, sandbox) = (self.door.parts.sandboxes.seen_by(caller), self.entrance.sandbox());
        seen.get(sandbox).await?.spec.offers_services()?;
        seen.wake(sandbox, START_TIMEOUT).await?;
        seen.route(sandbox, method, START_TIMEOUT).await
    }
}

type Done<T> = Result<T, russh::Error>;

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Done<Auth> {
        if !self.door.passwords {
            return Ok(Auth::reject());
        }
        let caller = self.door.parts.keys.open(password);
        Ok(self.enter(user, caller))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Done<Auth> {
        let account = self.account(key.public_key).await;
        let caller = account.and_then(|account| self.door.parts.keys.of_account(&account));
        Ok(self.enter(user, caller))
    }

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Done<Auth> {
        let Some(sandbox) = self.id(user).await else { return Ok(Auth::reject()) };
        let key_id = self.door.ssh.authority.check(certificate, &sandbox);
        let caller = key_id.and_then(|key_id| self.door.parts.gate.holder(&key_id));
        Ok(self.enter(user, caller))
    }

    /// Here, before any channel: a client that is one too many is told so.
    async fn auth_succeeded(&mut self, session: &mut Session) -> Done<()> {
        if let Entrance::Inside { .. } = self.entrance {
            return Ok(());
        }
        self.slot = self.door.sessions.clone().try_acquire_owned().ok();
        if self.slot.is_some() {
            return Ok(());
        }
        let max = self.door.sessions_max;
        tracing::warn!(peer = %self.peer, max, "too many SSH sessions: one was refused");
        let why = format!("too many SSH sessions (server.ssh.max_sessions is {max}): end one, or try later");
        session.disconnect(Disconnect::TooManyConnections, &why, "en")
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Done<()> {
        let Ok(slot) = self.channels.clone().try_acquire_owned() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        self.pulse.beat();
        self.setups.put(channel, self.entrance.user(), slot);
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _from: &str,
        _from_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Done<()> {
        // The sandbox's own loopback, by any of its names: it is no way to other machines.
        let own = ["localhost", "127.0.0.1", "::1", self.entrance.sandbox()].contains(&host);
        let port = u16::try_from(port).ok().filter(|port| *port > 0 && own);
        let (Some(port), Ok(slot)) = (port, self.channels.clone().try_acquire_owned()) else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        let route = self.route(Method::OpenPort).await;
        let (relay, pulse) = (self.door.parts.relay.clone(), self.pulse.clone());
        tokio::spawn(async move {
            let stream = match route {
                Ok(route) => relay.connect_port(&route, port, START_TIMEOUT).await,
                Err(error) => Err(error),
            };
            match stream {
                Ok(mut stream) => {
                    reply.accept().await;
                    let mut channel = pulse.of(channel.into_stream());
                    match tokio::io::copy_bidirectional(&mut channel, &mut stream).await {
                        Ok(_) => stream.finish().await,
                        Err(error) => tracing::debug!(%error, "a forwarded connection ended"),
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection was not forwarded");
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
            }
            drop(slot);
        });
        Ok(())
    }

    async fn tcpip_forward(&mut self, address: &str, port: &mut u32, session: &mut Session) -> Done<bool> {
        if self.listeners.len() >= LISTENERS_MAX {
            return Ok(false);
        }
        // Whatever the address: it is the sandbox's own loopback, as it is where sshd is not told otherwise.
        let Some(listener) = self.listen(At::Port(*port)).await else { return Ok(false) };
        *port = listener.at.port;
        let kind = forward::Kind::Port { address: address.to_owned(), port: *port };
        let passing = tokio::spawn(listener.pass(kind, session.handle(), self.channels.clone(), self.pulse.clone()));
        self.listeners.insert((address.to_owned(), *port), AbortOnDropHandle::new(passing));
        Ok(true)
    }

    async fn cancel_tcpip_forward(&mut self, address: &str, port: u32, _session: &mut Session) -> Done<bool> {
        Ok(self.listeners.remove(&(address.to_owned(), port)).is_some())
    }

    async fn agent_request(&mut self, channel: ChannelId, session: &mut Session) -> Done<bool> {
        // It ends with the sandbox, which may have been started again.
        if self.agent.as_ref().is_none_or(|(_, passing)| passing.is_finished()) {
            let Some(listener) = self.listen(At::SocketUser(self.entrance.user().to_owned())).await else {
                return Ok(false);
            };
            let socket = listener.at.socket.clone();
            let passing = tokio::spawn(listener.pass(
                forward::Kind::Agent,
                session.handle(),
                self.channels.clone(),
                self.pulse.clone(),
            ));
            self.agent = Some((socket, AbortOnDropHandle::new(passing)));
        }
        let socket = self.agent.as_ref().map(|(socket, _)| socket.as_str()).unwrap_or_default();
        Ok(self.setups.with(channel, |setup| setup.variable(AGENT_SOCKET, socket)))
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        _pixels: u32,
        _pixels_high: u32,
        _modes: &[(russh::Pty, u32)],
        session: &mut Session,
    ) -> Done<()> {
        let set = self.setups.with(channel, |setup| setup.pty(term, cols, rows));
        answer(session, channel, set)
    }

    async fn env_request(&mut self, channel: ChannelId, name: &str, value: &str, session: &mut Session) -> Done<()> {
        let set = self.setups.with(channel, |setup| setup.variable(name, value));
        answer(session, channel, set)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Done<()> {
        self.start(channel, Setup::shell(), session).await
    }

    async fn exec_request(&mut self, channel: ChannelId, command: &[u8], session: &mut Session) -> Done<()> {
        match std::str::from_utf8(command) {
            Ok(command) => self.start(channel, Setup::command(command), session).await,
            Err(_) => answer(session, channel, false),
        }
    }

    async fn subsystem_request(&mut self, channel: ChannelId, name: &str, session: &mut Session) -> Done<()> {
        match name {
            "sftp" => self.start(channel, Setup::sftp(), session).await,
            _ => answer(session, channel, false),
        }
    }
}

impl Connection {
    /// Listens in the sandbox; what speaks against it is in the log, since the client is told no reason.
    async fn listen(&self, at: At) -> Option<forward::Listener> {
        let route = self.route(Method::ListenPort).await;
        let listener = match route {
            Ok(route) => forward::Listener::open(self.door.parts.relay.clone(), route, at).await,
            Err(error) => Err(error),
        };
        listener.inspect_err(|error| tracing::info!(entrance = ?self.entrance, %error, "nothing listens for SSH")).ok()
    }

    /// Starts what a channel asks for; from here on a task has the channel.
    async fn start(&mut self, id: ChannelId, args: Vec<String>, session: &mut Session) -> Done<()> {
        let Some(setup) = self.setups.take(id) else { return answer(session, id, false) };
        answer(session, id, true)?;
        let route = self.route(Method::RunProcess).await;
        tokio::spawn(setup.run(args, self.door.parts.relay.clone(), route, session.handle(), self.pulse.clone()));
        Ok(())
    }
}

fn answer(session: &mut Session, channel: ChannelId, done: bool) -> Done<()> {
    if done { session.channel_success(channel) } else { session.channel_failure(channel) }
}
