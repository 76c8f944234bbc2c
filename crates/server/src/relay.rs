//! The relay: pairs a caller with the stream that a runner dials back.
//!
//! ```text
//! door ── open(route) ──► OpenSession ──► runner
//! door ◄── Session ── accept(session) ◄── Session stream of the same runner
//! ```
//!
//! A session whose call is over waits for the next one ([`kept`]).
//!
//! INVARIANT: a session id is unguessable, works once, and only for the runner it was sent to.

pub(crate) mod call;
mod kept;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dispense_api::error::{Code, Error, reason};
use dispense_api::id::{Generation, RunnerId, SandboxId, SessionId};
use dispense_api::runner::{OpenSession, ServerMessage, server_message};
use dispense_api::trace::Span;
use tokio::sync::oneshot;

use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::sandbox::Sandbox;
use kept::{Agent, Kept};
use session::{Frames, Session};

/// Sessions that wait for their dial-back; past it callers are told to come again.
const WAITING_MAX: usize = 16_384;
/// For the way back, after the runner's own deadline.
const DIAL_BACK_SLACK: Duration = Duration::from_secs(5);

/// Where the agent of a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) sandbox: SandboxId,
    pub(crate) generation: Generation,
    /// Of the sandbox's row.
    pub(crate) revision: u64,
    pub(crate) runner: RunnerId,
    pub(crate) group: String,
    pub(crate) owner: String,
    /// Inside, where they are.
    pub(crate) agent_ports: [Option<u16>; 2],
}

impl Route {
    /// To a sandbox on its runner.
    pub(crate) fn to(sandbox: &Sandbox, runner: &RunnerId) -> Self {
        Self {
            sandbox: sandbox.id.clone(),
            generation: sandbox.life.generation,
            revision: sandbox.revision,
            runner: runner.clone(),
            group: sandbox.group.clone(),
            owner: sandbox.owner.clone(),
            agent_ports: sandbox.spec.agent_ports(),
        }
    }
}

/// Where a call came from, for the logs and traces of everybody that it passes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) request_id: String,
    /// The trace context of the request's span; empty where nobody traces.
    pub(crate) trace: String,
}

struct Waiting {
    runner: RunnerId,
    /// Of the runner, over which the session was asked for.
    link: u64,
    reply: oneshot::Sender<Result<Frames, Error>>,
}

/// Sessions that were asked for and not yet dialled back.
pub(crate) struct Relay {
    fleet: Arc<Fleet>,
    waiting: Mutex<HashMap<SessionId, Waiting>>,
    kept: Arc<Kept>,
    metrics: Arc<Metrics>,
}

/// Forgets a session whose caller gave up.
struct Forget<'a>(&'a Relay, SessionId);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().expect("no holder panics").remove(&self.1);
    }
}

impl Relay {
    pub(crate) fn new(fleet: Arc<Fleet>, metrics: Arc<Metrics>) -> Self {
        Self { fleet, waiting: Mutex::default(), kept: Arc::default(), metrics }
    }

    /// Ends the sessions that wait for a call, and keeps no more.
    pub(crate) fn close(&self) {
        self.kept.close();
    }

    /// A session with an agent, for one call; the runner waits up to `timeout` for a sandbox that is starting.
    ///
    /// CANCEL SAFETY: dropping the future forgets the session; a late dial-back is refused.
    pub(crate) async fn open(&self, route: &Route, trace: &str, timeout: Duration) -> Result<Session, Error> {
        self.metrics.agent_called();
        let link = self.fleet.link(&route.runner).ok_or_else(|| offline(route))?;
        let agent = Agent { sandbox: route.sandbox.clone(), version: (route.revision, link) };
        let (waiting, keeps) = self.kept.take(&agent);
        let frames = match waiting {
            Some(frames) => frames,
            None => self.open_new(route, link, trace, timeout).await?,
        };
        Ok(Session::new(frames, self.kept.clone(), agent, keeps))
    }

    /// A new session, and its span.
    async fn open_new(&self, route: &Route, link: u64, trace: &str, timeout: Duration) -> Result<Frames, Error> {
        self.metrics.session_opened();
        let mut span = Span::below("relay.open", trace);
        let trace = span.as_ref().map(Span::traceparent).unwrap_or_default();
        self.order(route, link, trace, timeout).await.inspect_err(|error| {
            if let Some(span) = &mut span {
                span.fail(error.message.clone());
            }
        })
    }

    /// Orders a session of the runner, and waits until it has dialled back.
    async fn order(&self, route: &Route, link: u64, traceparent: String, timeout: Duration) -> Result<Frames, Error> {
        let session = SessionId::random();
        let (reply, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().expect("no holder panics");
            if waiting.len() >= WAITING_MAX {
                return Err(Error::new(
                    Code::ResourceExhausted,
                    "sessions_exhausted",
                    "too many sessions are being opened: try again in a second",
                ));
            }
            waiting.insert(session.clone(), Waiting { runner: route.runner.clone(), link, reply });
        }
        let _forget = Forget(self, session.clone());
        let open = OpenSession {
            session_id: session.to_string(),
            sandbox_id: route.sandbox.to_string(),
            generation: route.generation.0,
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            traceparent,
        };
        let message = ServerMessage { kind: Some(server_message::Kind::OpenSession(open)) };
        if !self.fleet.send_over(&route.runner, link, message) {
            return Err(offline(route));
        }
        match tokio::time::timeout(timeout + DIAL_BACK_SLACK, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(offline(route)),
            Err(_) => {
                let message = format!(
                    "the runner of sandbox {} did not open a session within {} s: try again",
                    route.sandbox,
                    timeout.as_secs()
                );
                Err(Error::new(Code::DeadlineExceeded, reason::AGENT_UNREACHABLE, message))
            }
        }
    }

    /// A sandbox runs no more.
    pub(crate) fn ended(&self, sandbox: &SandboxId) {
        self.kept.end(sandbox);
    }

    /// A runner's link has ended: nobody dials back what was asked for over it, and what waits is of no more use.
    pub(crate) fn cut(&self, link: u64) {
        self.waiting.lock().expect("no holder panics").retain(|_, waiting| waiting.link != link);
        self.kept.forget(link);
    }

    /// A runner has dialled back.
    pub(crate) fn accept(&self, runner: &RunnerId, session: &SessionId, frames: Frames) -> Result<(), Error> {
        let unknown = || Error::new(Code::NotFound, reason::PROTOCOL, "nobody waits for this session");
        let waiting = self.take(runner, session).ok_or_else(unknown)?;
        waiting.reply.send(Ok(frames)).map_err(|_| unknown())
    }

    /// A runner cannot open a session.
    pub(crate) fn denied(&self, runner: &RunnerId, session: &SessionId, why: &str, message: String) {
        if let Some(waiting) = self.take(runner, session) {
            let code = match why {
                reason::SANDBOX_NOT_RUNNING => Code::FailedPrecondition,
                reason::AGENT_UNREACHABLE => Code::Unavailable,
                // Why the box could not be made.
                _ => Code::FailedPrecondition,
            };
            // A caller that gave up needs no answer.
            let _ = waiting.reply.send(Err(Error::new(code, why, message)));
        }
    }

    fn take(&self, runner: &RunnerId, session: &SessionId) -> Option<Waiting> {
        let mut waiting = self.waiting.lock().expect("no holder panics");
        if waiting.get(session).is_some_and(|waiting| waiting.runner == *runner) {
            return waiting.remove(session);
        }
        None
    }
}

fn offline(route: &Route) -> Error {
    let message = format!(
        "the runner of sandbox {} is offline: it can be reached again when its machine is back (`dispense runner list`)",
        route.sandbox
    );
    Error::new(Code::Unavailable, reason::RUNNER_OFFLINE, message).with("runner", route.runner.to_string())
}
