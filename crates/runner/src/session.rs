//! One session: the byte stream between the server and an agent, for one call after the other. The bytes are copied and
//! never read.
//!
//! Each direction ends by itself (`eof`), so half-closed streams live on; `reset` ends both.

use std::time::Duration;

use bytes::BytesMut;
use dispense_api::error::{Code, Error, reason};
use dispense_api::id::{Generation, SandboxId};
use dispense_api::limits;
use dispense_api::runner::{OpenSession, SessionFrame, session_frame::Kind};
use dispense_api::trace::Span;
use dispense_backend::{Backend, ByteStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::link::RunnerLink;
use crate::owner::Phase;
use crate::supervisor::Supervisor;

/// Frames between the agent's reader and HTTP/2, which has a window of its own.
const FRAMES_IN_FLIGHT: usize = 4;
/// Longest that a server may ask a session to wait for its box.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// After both directions have ended, until the server has read the last frame: its own reader may be slow.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Dialling a started box is local.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a session that the server asked for and carries it to its end. An error is told as `SessionDenied`.
pub(crate) async fn run(
    request: OpenSession,
    backend: &dyn Backend,
    supervisor: &Supervisor,
    mut link: RunnerLink,
) -> Result<(), Error> {
    let sandbox: SandboxId = request.sandbox_id.parse().map_err(|_| protocol("an OpenSession without a sandbox id"))?;
    let timeout = Duration::from_millis(request.timeout_ms.into()).min(WAIT_MAX);
    let mut span = Span::below("session", &request.traceparent);
    let dialling = Span::below("session.dial", &span.as_ref().map(Span::traceparent).unwrap_or_default());
    let dial = async {
        wait_until_dialable(supervisor, &sandbox, Generation(request.generation), timeout).await?;
        let dialled = tokio::time::timeout(DIAL_TIMEOUT, backend.dial(&sandbox)).await;
        match dialled {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(unreachable(&sandbox, &error.to_string())),
            Err(_) => Err(unreachable(&sandbox, "it does not accept")),
        }
    };
    let stream = dial.await.inspect_err(|error| {
        if let Some(span) = &mut span {
            span.fail(error.message.clone());
        }
    })?;
    drop(dialling);
    let (frames, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
    let accept = SessionFrame { kind: Some(Kind::Accept(request.session_id)) };
    frames.try_send(accept).map_err(|_| protocol("a fresh channel takes a frame"))?;
    let answer = link.session(ReceiverStream::new(receiver)).await;
    let mut inbound =
        answer.map_err(|status| Error::new(Code::Unavailable, reason::PROTOCOL, status.message()))?.into_inner();
    // What the session is for is told by each call: it may carry many.
    drop(span);
    copy(stream, &mut inbound, &frames).await;
    drop(frames);
    // The last frames are still on their way; HTTP/2 throws them away when the answer is dropped before the
    // server has read them and ended it.
    let read_to_end = async { while let Ok(Some(_)) = inbound.message().await {} };
    if tokio::time::timeout(CLOSE_TIMEOUT, read_to_end).await.is_err() {
        tracing::debug!("the server did not end a session");
    }
    Ok(())
}

async fn wait_until_dialable(
    supervisor: &Supervisor,
    sandbox: &SandboxId,
    generation: Generation,
    timeout: Duration,
) -> Result<(), Error> {
    let stale = || {
        Error::new(
            Code::FailedPrecondition,
            reason::SANDBOX_NOT_RUNNING,
            format!("sandbox {sandbox} is not on this runner"),
        )
    };
    let mut phase = supervisor.phase(sandbox).ok_or_else(stale)?;
    if supervisor.generation(sandbox).is_some_and(|newest| newest != generation) {
        return Err(stale());
    }
    let ready = async {
        loop {
            match &*phase.borrow_and_update() {
                Phase::Dialable(_) => return Ok(()),
                Phase::Closed(reason, message) => {
                    return Err(Error::new(Code::FailedPrecondition, *reason, message.clone()));
                }
                Phase::Waiting => {}
            }
            phase.changed().await.map_err(|_| stale())?;
        }
    };
    let late = || {
        Error::new(
            Code::DeadlineExceeded,
            reason::AGENT_UNREACHABLE,
            format!("sandbox {sandbox} did not start in time"),
        )
    };
    tokio::time::timeout(timeout, ready).await.map_err(|_| late())?
}

/// Copies both directions until both have ended, or either failed.
async fn copy(stream: Box<dyn ByteStream>, inbound: &mut Streaming<SessionFrame>, frames: &mpsc::Sender<SessionFrame>) {
    let (reader, mut writer) = tokio::io::split(stream);
    let up = copy_up(reader, frames);
    // Borrowed: HTTP/2 cancels both directions when the stream of one is dropped.
    let down = copy_down(inbound, &mut writer);
    tokio::pin!(up, down);
    let (mut up_ended, mut down_ended) = (false, false);
    while !(up_ended && down_ended) {
        let result = tokio::select! {
            result = &mut up, if !up_ended => { up_ended = true; result }
            result = &mut down, if !down_ended => { down_ended = true; result }
        };
        if let Err(why) = result {
            let reset = SessionFrame { kind: Some(Kind::Reset(why)) };
            // A full channel means that nobody takes frames any more: the end of the stream says the same.
            let _ = frames.try_send(reset);
            return;
        }
    }
}

async fn copy_up(mut reader: ReadHalf<Box<dyn ByteStream>>, frames: &mpsc::Sender<SessionFrame>) -> Result<(), String> {
    let mut buffer = BytesMut::new();
    loop {
        // What small messages leave of a buffer is used before there is another one.
        if buffer.capacity() < limits::DATA_CHUNK_BYTES / 4 {
            buffer.reserve(limits::DATA_CHUNK_BYTES);
        }
        let count = reader.read_buf(&mut buffer).await.map_err(|error| error.to_string())?;
        let kind = if count == 0 { Kind::Eof(true) } else { Kind::Data(buffer.split().freeze()) };
        let sent = frames.send(SessionFrame { kind: Some(kind) }).await;
        sent.map_err(|_| "the server closed the session".to_owned())?;
        if count == 0 {
            return Ok(());
        }
    }
}

async fn copy_down(
    inbound: &mut Streaming<SessionFrame>,
    writer: &mut WriteHalf<Box<dyn ByteStream>>,
) -> Result<(), String> {
    loop {
        let frame = inbound.message().await.map_err(|status| status.message().to_owned())?;
        match frame.and_then(|frame| frame.kind) {
            // An agent that takes no more has answered already, or is dead: the other direction tells which.
            Some(Kind::Data(data)) if writer.write_all(&data).await.is_err() => return Ok(()),
            Some(Kind::Data(_)) => {}
            Some(Kind::Eof(_)) => {
                let _ = writer.shutdown().await;
                return Ok(());
            }
            Some(Kind::Reset(why)) => return Err(why),
            Some(Kind::Accept(_)) => return Err("the server sent an `accept`".to_owned()),
            None => return Err("the server ended the session".to_owned()),
        }
    }
}

fn protocol(message: &str) -> Error {
    Error::new(Code::Internal, reason::PROTOCOL, message)
}

fn unreachable(sandbox: &SandboxId, why: &str) -> Error {
    Error::new(
        Code::Unavailable,
        reason::AGENT_UNREACHABLE,
        format!("the agent of sandbox {sandbox} cannot be reached: {why}"),
    )
}
