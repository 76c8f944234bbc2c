//! Ports of the sandbox: byte streams to them, and who listens.

mod diag;
mod listen;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::BytesMut;
use dispense_api::error::{Code, Error};
use dispense_api::limits;
use dispense_api::v1::{
    ListPortsRequest, ListPortsResponse, OpenPortRequest, OpenPortResponse, Port, PortEvent, WatchPortsRequest,
    open_port_request, open_port_response, port_event,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::call::{Requests, Responses, gone};
use crate::serve::Agent;

pub(crate) use listen::{Came, Stay, Waiting, listen};

/// A port on loopback answers at once, or nobody listens.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between looks for listening ports while somebody watches.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

pub(crate) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let first: OpenPortRequest = requests.only().await?;
    let (came, stay) = if first.connection > 0 {
        agent.waiting.take(first.connection)?
    } else {
        let port = u16::try_from(first.port).ok().filter(|port| *port > 0);
        let port =
            port.ok_or_else(|| Error::new(Code::InvalidArgument, "port_invalid", "`port` is not one of 1 to 65535"))?;
        (Came::Tcp(connect(port).await?), None)
    };
    let idle_timeout = stay.as_ref().and_then(|stay| stay.idle_timeout);
    let connected = OpenPortResponse { kind: Some(open_port_response::Kind::Connected(true)) };
    responses.send(&connected).await.map_err(gone)?;
    match came {
        Came::Tcp(stream) => {
            let (reader, writer) = stream.into_split();
            carry(first, reader, writer, idle_timeout, requests, responses).await
        }
        Came::Unix(stream) => {
            let (reader, writer) = stream.into_split();
            carry(first, reader, writer, idle_timeout, requests, responses).await
        }
    }
}

/// Carries one connection; each direction ends by itself.
async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    first: OpenPortRequest,
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    idle_timeout: Option<Duration>,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let failed = |error: io::Error| {
        let message = format!("the program in the sandbox ended the connection: {error}");
        Error::new(Code::Unavailable, "port_failed", message)
    };
    let spoke = watch::Sender::new(());
    let up = async {
        let mut buffer = BytesMut::new();
        loop {
            // What small messages leave of a buffer is used before there is another one.
            if buffer.capacity() < limits::DATA_CHUNK_BYTES / 16 {
                buffer.reserve(limits::DATA_CHUNK_BYTES / 4);
            }
            let count = reader.read_buf(&mut buffer).await.map_err(failed)?;
            spoke.send_replace(());
            let kind = if count == 0 {
                open_port_response::Kind::Eof(true)
            } else {
                open_port_response::Kind::Data(buffer.split().freeze())
            };
            responses.send(&OpenPortResponse { kind: Some(kind) }).await.map_err(gone)?;
            if count == 0 {
                return Ok(());
            }
        }
    };
    let down = async {
        let mut message = Some(first);
        while let Some(request) = message {
            match request.kind {
                Some(open_port_request::Kind::Data(data)) => writer.write_all(&data).await.map_err(failed)?,
                Some(open_port_request::Kind::Eof(_)) => break,
                None => {}
            }
            message = requests.next().await?;
            spoke.send_replace(());
        }
        if requests.gone() {
            return Err(Error::new(Code::Cancelled, "gone", "the caller has gone"));
        }
        writer.shutdown().await.map_err(failed)
    };
    // Each direction ends by itself; an error ends both.
    let both = async { tokio::try_join!(up, down).map(|_| ()) };
    let Some(idle_timeout) = idle_timeout else { return both.await };
    tokio::select! {
        ended = both => ended,
        () = silence(spoke.subscribe(), idle_timeout) => {
            let message = format!("nothing was said for {} s (AGENT_IDLE_TIMEOUT)", idle_timeout.as_secs());
            Err(Error::new(Code::DeadlineExceeded, "idle", message))
        }
    }
}

/// Returns when nobody has spoken for so long.
async fn silence(mut spoke: watch::Receiver<()>, timeout: Duration) {
    // The sender lives as long as the connection.
    while tokio::time::timeout(timeout, spoke.changed()).await.is_ok() {}
}

async fn connect(port: u16) -> Result<TcpStream, Error> {
    let mut last = None;
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(SocketAddr::new(ip, port))).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).ok();
                return Ok(stream);
            }
            Ok(Err(error)) => last = last.or(Some(error.to_string())),
            Err(_) => last = last.or(Some("it does not answer".to_owned())),
        }
    }
    let why = last.unwrap_or_default();
    Err(Error::new(
        Code::Unavailable,
        "port_closed",
        format!("nothing listens on port {port} of the sandbox ({why}): start the program first"),
    ))
}

pub(crate) async fn list<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let _: ListPortsRequest = requests.only().await?;
    let owners = owners();
    let ports = of_programs(agent).map(|listener| {
        let pid = owners.get(&listener.inode).copied().unwrap_or(0);
        Port { port: listener.port.into(), address: listener.address.to_string(), pid }
    });
    let ports = ports.collect();
    responses.gather(&ListPortsResponse { ports });
    Ok(())
}

pub(crate) async fn watch<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let _: WatchPortsRequest = requests.only().await?;
    let mut watch = PortWatch::default();
    let mut ready = false;
    while !requests.gone() {
        for event in watch.look(of_programs(agent)) {
            responses.send(&event).await.map_err(gone)?;
        }
        if !ready {
            ready = true;
            responses.send(&PortEvent { kind: Some(port_event::Kind::Ready(true)) }).await.map_err(gone)?;
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
    Err(Error::new(Code::Cancelled, "gone", "the caller has gone"))
}

/// What opened and closed between looks.
#[derive(Debug, Default)]
pub(crate) struct PortWatch {
    known: BTreeMap<u16, Port>,
}

impl PortWatch {
    /// Events since the last look, by who listens now.
    fn look(&mut self, listening: impl Iterator<Item = Listener>) -> Vec<PortEvent> {
        // Whose it is costs a walk over all processes: `ListPorts` tells.
        let port =
            |listener: Listener| Port { port: listener.port.into(), address: listener.address.to_string(), pid: 0 };
        let now: BTreeMap<u16, Port> = listening.map(|listener| (listener.port, port(listener))).collect();
        let event = |kind| PortEvent { kind: Some(kind) };
        let closed = self.known.iter().filter(|(port, _)| !now.contains_key(port));
        let opened = now.iter().filter(|(port, _)| !self.known.contains_key(port));
        let events = closed
            .map(|(_, port)| event(port_event::Kind::Closed(port.clone())))
            .chain(opened.map(|(_, port)| event(port_event::Kind::Opened(port.clone()))))
            .collect();
        self.known = now;
        events
    }
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listener {
    port: u16,
    address: IpAddr,
    inode: u32,
}

/// Who listens besides the agent itself, in the order of the ports.
fn of_programs(agent: &Agent) -> impl Iterator<Item = Listener> {
    listening().into_values().filter(|listener| !agent.visits.owns(listener.port))
}

/// Listening ports by number, the IPv4 socket of a port that has both.
fn listening() -> BTreeMap<u16, Listener> {
    // A kernel without `inet_diag` has the same in its files.
    let found = diag::listeners().unwrap_or_else(|_| from_procfs());
    found.into_iter().map(|listener| (listener.port, listener)).collect()
}

fn from_procfs() -> Vec<Listener> {
    let files = ["/proc/self/net/tcp6", "/proc/self/net/tcp"].map(|file| fs::read_to_string(file).unwrap_or_default());
    files.iter().flat_map(|text| text.lines().skip(1).filter_map(parse_line)).collect()
}

/// State of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

fn parse_line(line: &str) -> Option<Listener> {
    let mut words = line.split_whitespace();
    let (address, port) = words.nth(1)?.split_once(':')?;
    if words.nth(1)? != LISTEN {
        return None;
    }
    let inode = words.nth(5)?.parse().ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(Listener { port, address: parse_address(address)?, inode })
}

/// Words of 32 bits in the machine's order.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let words = hex.as_bytes().chunks(8).map(|word| {
        let value = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(value.to_ne_bytes())
    });
    let bytes: Vec<u8> = words.collect::<Option<Vec<_>>>()?.concat();
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Which process has which socket open, by inode.
fn owners() -> HashMap<u32, u32> {
    let mut owners = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        for fd in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(fd.path()) else { continue };
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                owners.entry(inode).or_insert(pid);
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line = "   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000 100 0 0 10 0";
        let found = parse_line(line).expect("listening");
        assert_eq!((found.port, found.address.to_string().as_str(), found.inode), (3000, "127.0.0.1", 4242));
        assert_eq!(parse_line(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(parse_line("garbage"), None);
    }
}
