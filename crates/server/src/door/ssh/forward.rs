//! From the sandbox to the client: listeners in the sandbox whose connections become channels. `ssh -R` has a port,
//! `ssh -A` a socket for the client's keys.

use std::io;
use std::sync::Arc;

use dispense_api::error::Error;
use dispense_api::method::Method;
use dispense_api::v1::{self, ListenPortRequest, ListenPortResponse, listen_port_request, listen_port_response};
use russh::Channel;
use russh::server::{Handle, Msg};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::START_TIMEOUT;
use crate::door::pulse::Pulse;
use crate::relay::call::{Answers, broken};
use crate::relay::{Origin, Relay, Route};

/// Which channels connections become.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// As the client named it.
    Port {
        address: String,
        port: u32,
    },
    Agent,
}

/// A listener in the sandbox; it ends when this is dropped.
pub(super) struct Listener {
    pub(super) at: v1::Listening,
    relay: Arc<Relay>,
    route: Route,
    answers: Answers,
}

impl Listener {
    pub(super) async fn open(relay: Arc<Relay>, route: Route, at: listen_port_request::At) -> Result<Self, Error> {
        let request = ListenPortRequest { sandbox: route.sandbox.to_string(), at: Some(at) };
        let origin = Origin::default();
        let call = relay.ask(&route, Method::ListenPort, &origin, &request, START_TIMEOUT);
        let mut answers = call.await?;
        match answers.next::<ListenPortResponse>().await?.and_then(|response| response.kind) {
            Some(listen_port_response::Kind::Listening(at)) => Ok(Self { at, relay, route, answers }),
            _ => Err(broken()),
        }
    }

    /// Passes connections on until the sandbox ends.
    pub(super) async fn pass(mut self, kind: Kind, handle: Handle, channels: Arc<Semaphore>, pulse: Pulse) {
        let mut connections = JoinSet::new();
        while let Ok(Some(response)) = self.answers.next::<ListenPortResponse>().await {
            while connections.try_join_next().is_some() {}
            let Some(listen_port_response::Kind::Connection(number)) = response.kind else { continue };
            // One that is not taken is closed by the agent.
            let Ok(slot) = channels.clone().try_acquire_owned() else { continue };
            let (relay, route, kind, handle) = (self.relay.clone(), self.route.clone(), kind.clone(), handle.clone());
            let pulse = pulse.clone();
            connections.spawn(async move {
                if let Err(error) = connect(number, &relay, &route, &kind, &handle, &pulse).await {
                    tracing::debug!(%error, "a connection from the sandbox ended");
                }
                drop(slot);
            });
        }
    }
}

async fn connect(
    number: u64,
    relay: &Relay,
    route: &Route,
    kind: &Kind,
    handle: &Handle,
    pulse: &Pulse,
) -> io::Result<()> {
    let channel = open_channel(kind, handle).await.map_err(io::Error::other)?;
    let mut stream = relay.take_connection(route, number).await.map_err(io::Error::other)?;
    tokio::io::copy_bidirectional(&mut pulse.of(channel.into_stream()), &mut stream).await?;
    stream.finish().await;
    Ok(())
}

async fn open_channel(kind: &Kind, handle: &Handle) -> Result<Channel<Msg>, russh::Error> {
    match kind {
        // Who connected is a program of the sandbox: its port says nothing to the client.
        Kind::Port { address, port } => handle.channel_open_forwarded_tcpip(address, *port, "127.0.0.1", 0).await,
        Kind::Agent => handle.channel_open_agent().await,
    }
}
