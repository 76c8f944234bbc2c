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
use dispense_api::frame;
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

/// Where the requests of the call are.
enum Stage {
    Open {
        frames: mpsc::Sender<SessionFrame>,
        /// The agent is known to take their end as a frame.
        keeps: bool,
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
        let stage = Stage::Open { frames: frames.outbound, keeps };
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

    /// Sends bytes of the call; `false` when nobody takes them any more.
    pub(crate) async fn send(&self, bytes: Bytes) -> bool {
        let Some(room) = self.room().await else { return false };
        let stage = self.stage();
        let open = matches!(*stage, Stage::Open { .. });
        if open {
            room.send(data(bytes));
        }
        open
    }

    /// Sends bytes that end the requests, as far as the agent is known to be told so; `false` when nobody takes them.
    pub(crate) async fn send_last(&self, mut bytes: BytesMut) -> bool {
        let Some(room) = self.room().await else { return false };
        let mut stage = self.stage();
        match std::mem::replace(&mut *stage, Stage::Over) {
            Stage::Open { frames, keeps: true } => {
                bytes.extend_from_slice(&frame::END);
                *stage = Stage::Ended(frames);
            }
            open @ Stage::Open { .. } => *stage = open,
            other => {
                *stage = other;
                return false;
            }
        }
        room.send(data(bytes.freeze()));
        true
    }

    /// Says that there are no more requests. `whole`: none has begun and not ended.
    pub(crate) async fn end_requests(&self, whole: bool) {
        let Some(room) = self.room().await else { return };
        let mut stage = self.stage();
        *stage = match std::mem::replace(&mut *stage, Stage::Over) {
            Stage::Open { frames, keeps: true } if whole => {
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
        if let Stage::Open { frames, .. } = std::mem::replace(&mut *stage, Stage::Over) {
            room.send(SessionFrame { kind: Some(Kind::Reset(why)) });
            *stage = Stage::Closed { _frames: frames };
        }
    }

    /// Ends the call; its direction when it takes another one.
    fn over(&self, kept: bool) -> Option<mpsc::Sender<SessionFrame>> {
        match std::mem::replace(&mut *self.stage(), Stage::Over) {
            // Where there is no room the caller sends more than the agent wants to know.
            Stage::Open { frames, .. } if kept => {
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
        let stage = self.outbound.stage();
        match (&*stage, &mut self.frames) {
            (Stage::Open { .. }, Some(frames)) => frames.send_item(data(bytes.freeze())).map_err(|_| gone()),
            _ => Err(gone()),
        }
    }
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
