//! The two calls that a runner makes to an agent itself: `Watch` and `Shutdown`. What the agent answers is
//! hostile until parsed.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dispense_api::agent::{ShutdownRequest, ShutdownResponse, WatchRequest, WatchResponse};
use dispense_api::frame::{self, Decoder, Frame, FrameError};
use dispense_api::id::SandboxId;
use dispense_api::limits;
use dispense_api::method::Method;
use dispense_api::v1::{ProcessLog, UploadArchive, UploadArchiveRequest, upload_archive_request};
use dispense_backend::{Backend, BackendError, ByteStream};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Largest message of an agent: the log of a process, or several.
const MESSAGE_MAX_BYTES: usize = limits::RESPONSE_MESSAGE_MAX_BYTES;
/// Time that dialling and sending the call may take; both are local.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a call to the agent ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("failed to dial the agent")]
    Dial(#[source] BackendError),
    #[error("failed to talk to the agent")]
    Io(#[from] std::io::Error),
    #[error("the agent broke the protocol")]
    Frame(#[from] FrameError),
    #[error("the agent ended the call: {0}")]
    Ended(String),
    #[error("the agent did not take the call in time")]
    Timeout,
}

/// An open `Watch`.
pub(crate) struct Watch {
    stream: Box<dyn ByteStream>,
    buffer: BytesMut,
}

impl Watch {
    /// Calls `Watch` of the agent of a started box; an agent that is still booting takes it when it is up.
    pub(crate) async fn open(
        backend: &dyn Backend,
        sandbox: &SandboxId,
        log_tail_bytes: u32,
    ) -> Result<Self, AgentError> {
        let stream = call(backend, sandbox, Method::Watch, &WatchRequest { log_tail_bytes }).await?;
        Ok(Self { stream, buffer: BytesMut::new() })
    }

    /// The next message.
    ///
    /// CANCEL SAFETY: what was read stays in the buffer.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, AgentError> {
        let decoder = Decoder::new(MESSAGE_MAX_BYTES);
        loop {
            match decoder.decode(&mut self.buffer)? {
                Some(Frame::Message(bytes)) => {
                    return WatchResponse::decode(bytes).map_err(|_| FrameError::Malformed("WatchResponse").into());
                }
                Some(Frame::Status(status)) => return Err(AgentError::Ended(status.message)),
                None => {}
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(AgentError::Ended("it closed the stream".to_owned()));
            }
        }
    }
}

/// Asks the agent to end its processes and itself. Returns when it is about to end, with the logs that were not
/// told before.
pub(crate) async fn shut_down(
    backend: &dyn Backend,
    sandbox: &SandboxId,
    grace: Duration,
    log_tail_bytes: u32,
) -> Result<Vec<ProcessLog>, AgentError> {
    let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
    let request = ShutdownRequest { grace_ms, log_tail_bytes };
    let mut stream = call(backend, sandbox, Method::Shutdown, &request).await?;
    let decoder = Decoder::new(MESSAGE_MAX_BYTES);
    let mut buffer = BytesMut::new();
    loop {
        match decoder.decode(&mut buffer)? {
            Some(Frame::Message(bytes)) => {
                let response = ShutdownResponse::decode(bytes);
                return Ok(response.map_err(|_| FrameError::Malformed("ShutdownResponse"))?.logs);
            }
            Some(Frame::Status(status)) => return Err(AgentError::Ended(status.message)),
            None => {}
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(AgentError::Ended("it closed the stream".to_owned()));
        }
    }
}

/// Unpacks a tar stream into a directory of the sandbox. Returns when the agent says that all of it is there.
pub(crate) async fn upload(
    backend: &dyn Backend,
    sandbox: &SandboxId,
    path: &str,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<(), AgentError> {
    let request = |kind| UploadArchiveRequest { sandbox: String::new(), kind: Some(kind) };
    let open = UploadArchive { path: path.to_owned(), owner: String::new() };
    let first = request(upload_archive_request::Kind::Open(open));
    let (mut reader, mut writer) = tokio::io::split(call(backend, sandbox, Method::UploadArchive, &first).await?);
    let send = async {
        let mut buffer = BytesMut::new();
        while let Some(chunk) = chunks.recv().await {
            buffer.clear();
            frame::encode(&request(upload_archive_request::Kind::Data(chunk)), &mut buffer);
            writer.write_all(&buffer).await?;
        }
        writer.shutdown().await
    };
    let answer = async {
        let decoder = Decoder::new(MESSAGE_MAX_BYTES);
        let mut buffer = BytesMut::new();
        loop {
            match decoder.decode(&mut buffer)? {
                Some(Frame::Status(status)) if status.code.is_empty() => return Ok(()),
                Some(Frame::Status(status)) => return Err(AgentError::Ended(status.message)),
                Some(Frame::Message(_)) => {}
                None if reader.read_buf(&mut buffer).await? == 0 => {
                    return Err(AgentError::Ended("it closed the stream".to_owned()));
                }
                None => {}
            }
        }
    };
    tokio::pin!(answer);
    // An agent that refuses says so before the end of the stream, and then takes no more of it.
    tokio::select! {
        ended = &mut answer => ended,
        _ = send => answer.await,
    }
}

async fn call(
    backend: &dyn Backend,
    sandbox: &SandboxId,
    method: Method,
    request: &impl Message,
) -> Result<Box<dyn ByteStream>, AgentError> {
    let mut bytes = BytesMut::new();
    frame::encode_call(method.path(), "", "", &mut bytes);
    frame::encode(request, &mut bytes);
    let connect = async {
        let mut stream = backend.dial(sandbox).await.map_err(AgentError::Dial)?;
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        Ok(stream)
    };
    tokio::time::timeout(CALL_TIMEOUT, connect).await.map_err(|_| AgentError::Timeout)?
}
