//! Ports: byte streams to what listens on a sandbox's loopback.

use bytes::Bytes;
use dispense_api::error::{Code, Error, reason};
use dispense_api::v1;
use dispense_api::v1::{listen_port_response, open_port_request, open_port_response};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::retry::idempotent;
use crate::{Client, STREAM_MESSAGES, error};

/// A connection to a port; each direction ends by itself.
pub struct PortStream {
    /// Towards the sandbox.
    pub writer: PortWriter,
    /// From the sandbox.
    pub reader: PortReader,
}

impl PortStream {
    /// Ends this side's direction, and waits until the sandbox has taken all of it and ended the other; dropped before,
    /// what is under way may be lost.
    pub async fn finish(mut self) -> Result<(), Error> {
        drop(self.writer);
        while self.reader.0.message().await.map_err(error::of)?.is_some() {}
        Ok(())
    }
}

/// Writes to a port. Dropping it ends the direction.
pub struct PortWriter(mpsc::Sender<open_port_request::Kind>);

impl PortWriter {
    /// Sends bytes; waits while the other side does not read.
    pub async fn write(&self, data: Bytes) -> Result<(), Error> {
        self.send(open_port_request::Kind::Data(data)).await
    }

    /// Ends this direction; the other goes on.
    pub async fn close(&self) -> Result<(), Error> {
        self.send(open_port_request::Kind::Eof(true)).await
    }

    async fn send(&self, kind: open_port_request::Kind) -> Result<(), Error> {
        let sent = self.0.send(kind).await;
        sent.map_err(|_| Error::new(Code::Cancelled, "port_closed", "the connection to the port is closed"))
    }
}

/// Reads from a port.
pub struct PortReader(Streaming<v1::OpenPortResponse>);

impl PortReader {
    /// The next bytes; `None` when the sandbox's side has ended.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.0.message().await.map_err(error::of)?.and_then(|message| message.kind) {
                Some(open_port_response::Kind::Data(data)) => return Ok(Some(data)),
                Some(open_port_response::Kind::Eof(_)) | None => return Ok(None),
                Some(open_port_response::Kind::Connected(_)) => {}
            }
        }
    }
}

/// A port of the sandbox whose connections come here.
pub struct PortListener {
    /// Which.
    pub port: u16,
    stream: Streaming<v1::ListenPortResponse>,
}

impl PortListener {
    /// The number of the next connection, for [`Client::take_connection`]; `None` when the sandbox has ended.
    pub async fn next(&mut self) -> Result<Option<u64>, Error> {
        loop {
            match self.stream.message().await.map_err(error::of)? {
                None => return Ok(None),
                Some(v1::ListenPortResponse { kind: Some(listen_port_response::Kind::Connection(number)) }) => {
                    return Ok(Some(number));
                }
                Some(_) => {}
            }
        }
    }
}

impl Client {
    /// Opens a byte stream to a TCP port on the sandbox's loopback.
    pub async fn open_port(&self, sandbox: &str, port: u16) -> Result<PortStream, Error> {
        self.connect_port(v1::OpenPortRequest { sandbox: sandbox.to_owned(), port: port.into(), ..Default::default() })
            .await
    }

    /// Takes a connection that came to a listener of [`Client::listen_port`], once.
    pub async fn take_connection(&self, sandbox: &str, connection: u64) -> Result<PortStream, Error> {
        self.connect_port(v1::OpenPortRequest { sandbox: sandbox.to_owned(), connection, ..Default::default() }).await
    }

    /// Listens on a port of the sandbox's loopback, 0 for a free one, until the listener is dropped.
    pub async fn listen_port(&self, sandbox: &str, port: u16) -> Result<PortListener, Error> {
        let at = Some(v1::listen_port_request::At::Port(port.into()));
        let request = v1::ListenPortRequest { sandbox: sandbox.to_owned(), at };
        let mut stream = self.ports().listen_port(request).await.map_err(error::of)?.into_inner();
        match stream.message().await.map_err(error::of)?.and_then(|message| message.kind) {
            Some(listen_port_response::Kind::Listening(listening)) => {
                let port = u16::try_from(listening.port).unwrap_or_default();
                Ok(PortListener { port, stream })
            }
            _ => Err(Error::new(Code::Internal, reason::PROTOCOL, "the stream does not begin with `listening`")),
        }
    }

    async fn connect_port(&self, first: v1::OpenPortRequest) -> Result<PortStream, Error> {
        let (writer, rest) = mpsc::channel(STREAM_MESSAGES);
        let rest = ReceiverStream::new(rest).map(|kind| v1::OpenPortRequest { kind: Some(kind), ..Default::default() });
        let messages = tokio_stream::once(first).chain(rest);
        let mut stream = self.ports().open_port(messages).await.map_err(error::of)?.into_inner();
        let first = stream.message().await.map_err(error::of)?.and_then(|message| message.kind);
        if !matches!(first, Some(open_port_response::Kind::Connected(_))) {
            return Err(Error::new(Code::Internal, reason::PROTOCOL, "the stream does not begin with `connected`"));
        }
        Ok(PortStream { writer: PortWriter(writer), reader: PortReader(stream) })
    }

    /// TCP ports that listen in the sandbox.
    pub async fn list_ports(&self, sandbox: &str) -> Result<Vec<v1::Port>, Error> {
        let request = v1::ListPortsRequest { sandbox: sandbox.to_owned() };
        Ok(idempotent(|| async { self.ports().list_ports(request.clone()).await }).await?.ports)
    }

    /// Tells the ports that listen, then each that opens or closes, until the stream is dropped.
    pub async fn watch_ports(
        &self,
        sandbox: &str,
    ) -> Result<impl tokio_stream::Stream<Item = Result<v1::PortEvent, Error>> + use<>, Error> {
        let request = v1::WatchPortsRequest { sandbox: sandbox.to_owned() };
        let stream = idempotent(|| async { self.ports().watch_ports(request.clone()).await }).await?;
        Ok(stream.map(|event| event.map_err(error::of)))
    }
}
