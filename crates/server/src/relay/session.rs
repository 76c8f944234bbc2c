//! A session: the byte stream to an agent, which carries one call after the other.
//!
//! INVARIANT: a session is kept for another call only when this one is over in both directions, by the agent's status and
//! by the end of the caller's requests. Nothing of one call is ever read as part of the next.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use dispense_api::agent::Call;
use dispense_api::frame::{self, Boundaries, FrameError};
use dispense_api::limits;
use dispense_api::method::Method;
use dispense_api::runner::{SessionFrame, session_frame::Kind};
use futures_util::Stream;
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tonic::Streaming;

use super::Origin;
use super::kept::{Agent, Kept};

/// The frames of a session, as its runner has dialled it back.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(crate) inbound: Streaming<SessionFrame>,
    pub(crate) outbound: mpsc::Sender<SessionFrame>,
}

/// A session that carries a call.
pub(crate) struct Session {
    pub(crate) inbound: Inbound,
    pub(crate) outbound: Outbound,
}

/// What comes from the agent. When it is dropped before the call is over, the session is, and the call is cancelled.
pub(crate) struct Inbound {
    /// None when the call is over.
    frames: Option<Streaming<SessionFrame>>,
    outbound: Outbound,
    kept: Arc<Kept>,
    agent: Agent,
}

/// What goes to the agent. Whoever has one does not keep the session alive.
#[derive(Clone)]
pub(crate) struct Outbound(Arc<Mutex<Stage>>);

/// Why bytes were not sent.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// Nobody takes them any more.
    Gone,
    /// They are no messages.
    Malformed(FrameError),
}

/// Where the requests of the call are.
enum Stage {
    Open {
        frames: mpsc::Sender<SessionFrame>,
        /// The agent is known to take their end as a frame.
        keeps: bool,
        /// Of what was sent: an end inside a message would be a part of it.
        boundaries: Boundaries,
    },
    /// By their frame.
    Ended(mpsc::Sender<SessionFrame>),
    /// With the session's direction, which carries no other call.
    Closed { _frames: mpsc::Sender<SessionFrame> },
    /// The call is.
    Over,
}

impl Session {
    /// For the next call. `keeps`: the agent is known to keep sessions.
    pub(super) fn new(frames: Frames, kept: Arc<Kept>, agent: Agent, keeps: bool) -> Self {
        let boundaries = Boundaries::new(limits::REQUEST_MESSAGE_MAX_BYTES);
        let stage = Stage::Open { frames: frames.outbound, keeps, boundaries };
        let outbound = Outbound(Arc::new(Mutex::new(stage)));
        Self { inbound: Inbound { frames: Some(frames.inbound), outbound: outbound.clone(), kept, agent }, outbound }
    }
}

/// The first frame of a call over a session.
pub(crate) fn call(method: Method, origin: &Origin, buffer: &mut BytesMut) {
    let call = Call {
        method: method.path().to_owned(),
        request_id: origin.request_id.clone(),
        traceparent: origin.trace.clone(),
        keep: true,
    };
    frame::encode(&call, buffer);
}

fn data(bytes: Bytes) -> SessionFrame {
    SessionFrame { kind: Some(Kind::Data(bytes)) }
}

impl Inbound {
    /// The next bytes; else why there are none.
    pub(crate) fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, String>> {
        let Some(frames) = &mut self.frames else { return Poll::Ready(Err("the call is over".to_owned())) };
        let why = match ready!(Pin::new(frames).poll_next(context)) {
            Some(Ok(SessionFrame { kind: Some(Kind::Data(data)) })) => return Poll::Ready(Ok(data)),
            Some(Ok(SessionFrame { kind: Some(Kind::Reset(why)) })) => why,
            Some(Ok(SessionFrame { kind: Some(Kind::Eof(_)) })) => "it ended".to_owned(),
            Some(Ok(_)) => "its runner sent a frame that does not belong there".to_owned(),
            Some(Err(status)) => format!("its runner is gone: {}", status.message()),
            None => "its runner is gone".to_owned(),
        };
        Poll::Ready(Err(why))
    }

    /// The call is over: its status has come, and nothing after it. `kept`: the agent takes another one.
    pub(crate) fn over(&mut self, kept: bool) {
        let Some(inbound) = self.frames.take() else { return };
        let outbound = self.outbound.over(kept);
        if kept {
            self.kept.keeps(&self.agent);
        }
        if let Some(outbound) = outbound {
            self.kept.put(&self.agent, Frames { inbound, outbound });
        }
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        // Also where requests are still being sent.
        self.outbound.over(false);
    }
}

impl Outbound {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().expect("no holder panics")
    }

    async fn room(&self) -> Option<mpsc::OwnedPermit<SessionFrame>> {
        let frames = match &*self.stage() {
            Stage::Open { frames, .. } => frames.clone(),
            _ => return None,
        };
        frames.reserve_owned().await.ok()
    }

    /// Sends bytes of the call: messages, which may be cut anywhere.
    pub(crate) async fn send(&self, bytes: Bytes) -> Result<(), Unsent> {
        let room = self.room().await.ok_or(Unsent::Gone)?;
        let mut stage = self.stage();
        let Stage::Open { boundaries, .. } = &mut *stage else { return Err(Unsent::Gone) };
        boundaries.advance(&bytes).map_err(Unsent::Malformed)?;
        room.send(data(bytes));
        Ok(())
    }

    /// The same for the last bytes. Their end goes with them where the agent is known to take it so.
    pub(crate) async fn send_last(&self, mut bytes: BytesMut) -> Result<(), Unsent> {
        let room = self.room().await.ok_or(Unsent::Gone)?;
        let mut stage = self.stage();
        let Stage::Open { frames, keeps, boundaries } = &mut *stage else { return Err(Unsent::Gone) };
        boundaries.advance(&bytes).map_err(Unsent::Malformed)?;
        if *keeps && boundaries.between() {
            bytes.extend_from_slice(&frame::END);
            let frames = frames.clone();
            *stage = Stage::Ended(frames);
        }
        room.send(data(bytes.freeze()));
        Ok(())
    }

    /// Says that there are no more requests.
    pub(crate) async fn end_requests(&self) {
        let Some(room) = self.room().await else { return };
        let mut stage = self.stage();
        *stage = match std::mem::replace(&mut *stage, Stage::Over) {
            Stage::Open { frames, keeps: true, boundaries } if boundaries.between() => {
                room.send(data(Bytes::from_static(&frame::END)));
                Stage::Ended(frames)
            }
            Stage::Open { frames, .. } => {
                room.send(SessionFrame { kind: Some(Kind::Eof(true)) });
                Stage::Closed { _frames: frames }
            }
            other => other,
        };
    }

    /// Cuts the call.
    pub(crate) async fn reset(&self, why: String) {
        let Some(room) = self.room().await else { return };
        let mut stage = self.stage();
        *stage = match std::mem::replace(&mut *stage, Stage::Over) {
            Stage::Open { frames, .. } => {
                room.send(SessionFrame { kind: Some(Kind::Reset(why)) });
                Stage::Closed { _frames: frames }
            }
            other => other,
        };
    }

    /// Ends the call; its direction when it takes another one.
    fn over(&self, kept: bool) -> Option<mpsc::Sender<SessionFrame>> {
        match std::mem::replace(&mut *self.stage(), Stage::Over) {
            // Where there is no room, or a message has begun, the caller sends more than the agent wants to know.
            Stage::Open { frames, boundaries, .. } if kept && boundaries.between() => {
                frames.try_send(data(Bytes::from_static(&frame::END))).is_ok().then_some(frames)
            }
            Stage::Ended(frames) if kept => Some(frames),
            _ => None,
        }
    }

    /// For those who poll.
    pub(super) fn polled(self) -> PolledOutbound {
        let frames = match &*self.stage() {
            Stage::Open { frames, .. } => Some(PollSender::new(frames.clone())),
            _ => None,
        };
        PolledOutbound { outbound: self, frames }
    }
}

/// What goes to the agent, for those who poll.
pub(super) struct PolledOutbound {
    outbound: Outbound,
    frames: Option<PollSender<SessionFrame>>,
}

impl PolledOutbound {
    /// Waits for room for one message.
    pub(super) fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(frames) = &mut self.frames else { return Poll::Ready(Err(gone())) };
        frames.poll_reserve(context).map_err(|_| gone())
    }

    /// Sends a message, in the room that was waited for.
    pub(super) fn send(&mut self, message: &impl Message) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        frame::encode(message, &mut bytes);
        let mut stage = self.outbound.stage();
        let (Stage::Open { boundaries, .. }, Some(frames)) = (&mut *stage, &mut self.frames) else {
            return Err(gone());
        };
        boundaries.advance(&bytes).map_err(io::Error::other)?;
        frames.send_item(data(bytes.freeze())).map_err(|_| gone())
    }
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
