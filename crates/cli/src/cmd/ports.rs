//! `dispense preview` and `dispense port`: what listens in a sandbox.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use dispense_client::{Client, Code, Error, PortListener, PortStream};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::serve::StopSignals;
use crate::args::ports::{PortArgs, PortCommand, PreviewArgs};
use crate::args::{Global, Output};
use crate::endpoint::connect;
use crate::failure::local;
use crate::show::{self, rfc3339, say};
use crate::units::Forward;

/// Of one message.
const CHUNK_BYTES: usize = 64 << 10;
/// Connections at a time through one forward.
const CONNECTIONS_MAX: usize = 1024;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PreviewJson {
    url: String,
    expires_at: Option<String>,
}

/// Prints a link, or opens or closes a port.
pub(super) async fn preview(global: &Global, args: PreviewArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    if args.close || args.revoke {
        connected.client.close_preview(&args.sandbox, args.port, args.revoke).await?;
        let done = if args.revoke { "the links to it open nothing any more" } else { "it is not public any more" };
        eprintln!("dispense: port {} of `{}`: {done}", args.port, args.sandbox);
        return Ok(0);
    }
    let made = connected.client.open_preview(&args.sandbox, args.port, args.public, Some(args.ttl)).await?;
    match global.output {
        Output::Json => {
            show::json(&PreviewJson { url: made.url, expires_at: made.expires_at.as_ref().map(rfc3339) });
        }
        Output::Table => say!("{}", made.url),
    }
    Ok(0)
}

#[derive(Serialize)]
struct PortsJson {
    ports: Vec<PortJson>,
}

#[derive(Serialize)]
struct PortJson {
    port: u32,
    address: String,
    pid: u32,
}

/// Lists or forwards ports.
pub(super) async fn port(global: &Global, args: PortArgs) -> Result<u8, Error> {
    match args.command {
        PortCommand::List { sandbox } => list(global, &sandbox).await,
        PortCommand::Forward { sandbox, ports, address } => forward(global, &sandbox, &ports, address).await,
        PortCommand::Reverse { sandbox, ports } => reverse(global, &sandbox, &ports).await,
    }
}

async fn list(global: &Global, sandbox: &str) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let ports = connected.client.list_ports(sandbox).await?;
    match global.output {
        Output::Json => {
            let row =
                |port: dispense_client::v1::Port| PortJson { port: port.port, address: port.address, pid: port.pid };
            show::json(&PortsJson { ports: ports.into_iter().map(row).collect() });
        }
        Output::Table => {
            let pid = |pid: u32| if pid == 0 { String::new() } else { pid.to_string() };
            let mut table = show::table(&["PORT", "ADDRESS", "PID"]);
            for port in ports {
                table.add_row([port.port.to_string(), port.address, pid(port.pid)]);
            }
            show::print(&table);
        }
    }
    Ok(0)
}

async fn forward(global: &Global, sandbox: &str, ports: &[Forward], address: IpAddr) -> Result<u8, Error> {
    let mut stop = StopSignals::listen()?;
    let connected = connect(global).await?;
    // A mistyped name is told before anybody connects.
    let sandbox = connected.client.get(sandbox).await?;
    let mut listening = JoinSet::new();
    for forward in ports {
        let wanted = SocketAddr::new(address, forward.here);
        let listener =
            TcpListener::bind(wanted).await.map_err(|error| local(format_args!("listen on {wanted}"), &error))?;
        let there = listener.local_addr().unwrap_or(wanted);
        say!("{there} -> {}:{}", sandbox.name, forward.there);
        listening.spawn(accept(listener, connected.client.clone(), sandbox.id.clone(), forward.there));
    }
    until_stopped(&mut stop, listening).await
}

/// Until a listener ends, which only an error does, or somebody ends the command.
async fn until_stopped(stop: &mut StopSignals, mut listening: JoinSet<Error>) -> Result<u8, Error> {
    tokio::select! {
        () = stop.next() => Ok(0),
        Some(ended) = listening.join_next() => match ended {
            Ok(error) => Err(error),
            Err(error) => Err(local("forward", &error)),
        },
    }
}

async fn reverse(global: &Global, sandbox: &str, ports: &[Forward]) -> Result<u8, Error> {
    let mut stop = StopSignals::listen()?;
    let connected = connect(global).await?;
    let sandbox = connected.client.get(sandbox).await?;
    let mut listening = JoinSet::new();
    for forward in ports {
        let listener = connected.client.listen_port(&sandbox.id, forward.here).await?;
        let here = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), forward.there);
        say!("{}:{} -> {here}", sandbox.name, listener.port);
        listening.spawn(accept_remote(listener, connected.client.clone(), sandbox.id.clone(), here));
    }
    until_stopped(&mut stop, listening).await
}

async fn accept_remote(mut listener: PortListener, client: Client, sandbox: String, here: SocketAddr) -> Error {
    let mut connections = JoinSet::new();
    loop {
        let number = match listener.next().await {
            Ok(Some(number)) => number,
            Ok(None) => return Error::new(Code::Unavailable, "port_closed", "the sandbox has ended"),
            Err(error) => return error,
        };
        room(&mut connections).await;
        let (client, sandbox) = (client.clone(), sandbox.clone());
        connections.spawn(async move {
            let carried = async {
                let remote = client.take_connection(&sandbox, number).await?;
                let connecting = TcpStream::connect(here).await;
                carry(connecting.map_err(|error| local(format_args!("connect to {here}"), &error))?, remote).await
            };
            if let Err(error) = carried.await {
                eprintln!("dispense: {here}: {}", error.message);
            }
        });
    }
}

async fn accept(listener: TcpListener, client: Client, sandbox: String, port: u16) -> Error {
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => return local("accept", &error),
        };
        room(&mut connections).await;
        let (client, sandbox) = (client.clone(), sandbox.clone());
        connections.spawn(async move {
            let carried = async { carry(stream, client.open_port(&sandbox, port).await?).await };
            if let Err(error) = carried.await {
                eprintln!("dispense: port {port}: {}", error.message);
            }
        });
    }
}

/// Waits until one more connection may be carried.
async fn room(connections: &mut JoinSet<()>) {
    while connections.try_join_next().is_some() || connections.len() >= CONNECTIONS_MAX {
        if connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
    }
}

/// Carries one connection; each direction ends by itself.
async fn carry(stream: TcpStream, mut remote: PortStream) -> Result<(), Error> {
    // What is typed must not wait for an acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "nodelay");
    }
    let (mut reader, mut writer) = stream.into_split();
    let up = async {
        let mut buffer = bytes::BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES);
            // A caller who is gone wants no more of either direction.
            match reader.read_buf(&mut buffer).await {
                Ok(0) => return remote.writer.close().await,
                Ok(_) => remote.writer.write(buffer.split().freeze()).await?,
                Err(error) => return Err(local("read from the connection", &error)),
            }
        }
    };
    let down = async {
        while let Some(data) = remote.reader.next().await? {
            writer.write_all(&data).await.map_err(|error| local("write to the connection", &error))?;
        }
        writer.shutdown().await.map_err(|error| local("end the connection", &error))
    };
    // The sandbox's end of its direction may be the end of the connection: then the other way is closed there.
    tokio::try_join!(up, down)?;
    remote.finish().await
}
