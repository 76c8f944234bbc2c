//! What a runner is told of a sandbox.

use std::sync::Arc;

use dispense_api::id::SandboxId;
use dispense_api::runner::{Desired, DesiredState, ServerMessage, server_message};
use dispense_api::v1;

use super::Sandbox;
use super::lifecycle::Wanted;
use crate::auth::secret::ServerSecret;

/// Writes orders.
#[derive(Clone)]
pub(crate) struct Orders {
    pub(crate) secret: Arc<ServerSecret>,
    /// Of each stream of a finished process, kept by this server.
    pub(crate) log_tail_bytes: u32,
}

impl Orders {
    /// What is wanted of it, with the trace context of who asked.
    pub(super) fn traced(&self, sandbox: &Sandbox, trace: String) -> ServerMessage {
        let mut message = self.of(sandbox);
        if let Some(server_message::Kind::Desired(desired)) = &mut message.kind {
            desired.traceparent = trace;
        }
        message
    }

    /// What is wanted of it.
    pub(super) fn of(&self, sandbox: &Sandbox) -> ServerMessage {
        let generation = sandbox.life.generation;
        let message = match sandbox.life.wanted() {
            None | Some(Wanted::Absent) => return self.absent(&sandbox.id, generation.0),
            Some(Wanted::Stopped) => Desired {
                sandbox_id: sandbox.id.to_string(),
                generation: generation.0,
                state: DesiredState::Stopped.into(),
                log_tail_bytes: self.log_tail_bytes,
                ..Desired::default()
            },
            Some(Wanted::Running) => Desired {
                sandbox_id: sandbox.id.to_string(),
                generation: generation.0,
                state: DesiredState::Running.into(),
                spec: Some(v1::SandboxSpec { content: content(sandbox), ..sandbox.spec.wire() }),
                name: sandbox.name.clone(),
                sandbox_token: self.secret.sandbox_token(&sandbox.id, generation),
                report_interval_secs: u32::try_from(sandbox.spec.report_interval().as_secs()).unwrap_or(u32::MAX),
                log_tail_bytes: self.log_tail_bytes,
                traceparent: String::new(),
            },
        };
        ServerMessage { kind: Some(server_message::Kind::Desired(message)) }
    }

    /// That nothing of it may be left.
    pub(super) fn absent(&self, id: &SandboxId, generation: u64) -> ServerMessage {
        let message = Desired {
            sandbox_id: id.to_string(),
            generation,
            state: DesiredState::Absent.into(),
            log_tail_bytes: self.log_tail_bytes,
            ..Desired::default()
        };
        ServerMessage { kind: Some(server_message::Kind::Desired(message)) }
    }
}

/// What its workspace is filled with; nothing once it has run, since then it is the user's.
fn content(sandbox: &Sandbox) -> Option<v1::Content> {
    let content = sandbox.spec.content.as_ref().filter(|_| !sandbox.life.started)?;
    Some(content.wire(&sandbox.name))
}
