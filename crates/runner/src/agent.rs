//! The calls that a runner makes to an agent itself: `Watch`, `SetEnvironment` and `Shutdown`, and the filling of its
//! workspace. What the agent answers is hostile until parsed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dispense_api::agent::{
    SetEnvironmentRequest, SetEnvironmentResponse, ShutdownRequest, ShutdownResponse, WatchRequest, WatchResponse,
    watch_response,
};
use dispense_api::frame::{self, Decoder, Frame, FrameError};
use dispense_api::id::SandboxId;
use dispense_api::limits;
use dispense_api::method::Method;
use dispense_api::v1::{ProcessLog, UploadArchive, UploadArchiveRequest, upload_archive_request};
use dispense_backend::{Backend, BackendError, ByteStream};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Largest message of an agent: the log of a process, or several.
const MESSAGE_MAX_BYTES: usize = limits::RESPONSE_MESSAGE_MAX_BYTES;
/// Time that dialling and sending the call may take; both are local.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// An agent that boots on a busy machine has answered by then.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

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
    #[error("the agent refused: {0}")]
    Refused(String),
    #[error("the agent did not take the call in time")]
    Timeout,
}

/// Visits of one sandbox in a second that the server is told of: each costs it a session, and anybody inside makes them.
/// Whoever comes oftener waits for a turn: a client that polls makes a connection for each request.
const VISITS_A_SECOND: u32 = 200;
const SECOND: Duration = Duration::from_secs(1);

/// An open `Watch`.
pub(crate) struct Watch {
    stream: Box<dyn ByteStream>,
    buffer: BytesMut,
    visits: Pace,
    /// A visit whose turn has not come.
    held: Option<(Instant, WatchResponse)>,
}

/// Counts visits by the second.
struct Pace {
    second: Instant,
    count: u32,
}

impl Pace {
    /// When one more is told: at once, or when the next second begins.
    fn turn(&mut self, now: Instant) -> Instant {
        if now >= self.second + SECOND {
            *self = Self { second: now, count: 0 };
        } else if self.count == VISITS_A_SECOND {
            *self = Self { second: self.second + SECOND, count: 0 };
        }
        self.count += 1;
        self.second.max(now)
    }
}

impl Watch {
    /// Calls `Watch` of the agent of a started box; an agent that is still booting takes it when it is up.
    pub(crate) async fn open(
        backend: &dyn Backend,
        sandbox: &SandboxId,
        log_tail_bytes: u32,
    ) -> Result<Self, AgentError> {
        let stream = call(backend, sandbox, Method::Watch, &WatchRequest { log_tail_bytes }).await?;
        Ok(Self { stream, buffer: BytesMut::new(), visits: Pace { second: Instant::now(), count: 0 }, held: None })
    }

    /// The next message. Visits beyond the pace wait, and with them what the agent says after.
    ///
    /// CANCEL SAFETY: what was read stays in the buffer, or is held.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, AgentError> {
        let decoder = Decoder::new(MESSAGE_MAX_BYTES);
        loop {
            if let Some((turn, _)) = &self.held {
                tokio::time::sleep_until(*turn).await;
            }
            if let Some((_, visit)) = self.held.take() {
                return Ok(visit);
            }
            match decoder.decode(&mut self.buffer)? {
                Some(Frame::Message(bytes)) => {
                    let said = WatchResponse::decode(bytes).map_err(|_| FrameError::Malformed("WatchResponse"))?;
                    if !matches!(said.kind, Some(watch_response::Kind::Visit(_))) {
                        return Ok(said);
                    }
                    self.held = Some((self.visits.turn(Instant::now()), said));
                    continue;
                }
                Some(Frame::Status(status)) => return Err(AgentError::Ended(status.message)),
                Some(Frame::End) => return Err(FrameError::UnknownFlags(frame::FLAG_END).into()),
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
    let response: ShutdownResponse = answer(call(backend, sandbox, Method::Shutdown, &request).await?).await?;
    Ok(response.logs)
}

/// Tells the agent what processes inherit from now on. An agent that is still booting takes it when it is up.
pub(crate) async fn set_environment(
    backend: &dyn Backend,
    sandbox: &SandboxId,
    variables: &BTreeMap<String, String>,
) -> Result<(), AgentError> {
    let variables = variables.clone().into_iter().collect();
    let stream = call(backend, sandbox, Method::SetEnvironment, &SetEnvironmentRequest { variables }).await?;
    let taken = answer::<SetEnvironmentResponse>(stream);
    tokio::time::timeout(ANSWER_TIMEOUT, taken).await.map_err(|_| AgentError::Timeout)?.map(drop)
}

/// The one message that a call is answered with.
async fn answer<M: Message + Default>(mut stream: Box<dyn ByteStream>) -> Result<M, AgentError> {
    let decoder = Decoder::new(MESSAGE_MAX_BYTES);
    let mut buffer = BytesMut::new();
    loop {
        match decoder.decode(&mut buffer)? {
            Some(Frame::Message(bytes)) => {
                return M::decode(bytes).map_err(|_| FrameError::Malformed("an answer").into());
            }
            Some(Frame::Status(status)) => return Err(AgentError::Refused(status.message)),
            Some(Frame::End) => return Err(FrameError::UnknownFlags(frame::FLAG_END).into()),
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
                Some(Frame::End) => return Err(FrameError::UnknownFlags(frame::FLAG_END).into()),
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
    frame::encode_call(method.path(), &mut bytes);
    frame::encode(request, &mut bytes);
    let connect = async {
        let mut stream = backend.dial(sandbox).await.map_err(AgentError::Dial)?;
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        Ok(stream)
    };
    tokio::time::timeout(CALL_TIMEOUT, connect).await.map_err(|_| AgentError::Timeout)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_beyond_the_pace_wait_for_the_next_second() {
        let begun = Instant::now();
        let mut pace = Pace { second: begun, count: 0 };
        let turns: Vec<_> = (0..2 * VISITS_A_SECOND + 1).map(|_| pace.turn(begun).duration_since(begun)).collect();
        let of = |second| turns.iter().filter(|turn| **turn == SECOND * second).count();
        assert_eq!((of(0), of(1), of(2)), (200, 200, 1));
        // After a pause nothing waits.
        let later = begun + 5 * SECOND;
        assert_eq!(pace.turn(later), later);
    }
}
