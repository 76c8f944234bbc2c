//! What a runner is told of a sandbox.

use dispense_api::id::SandboxId;
use dispense_api::runner::{Desired, DesiredState, ServerMessage, server_message};

use super::Sandbox;
use super::agents::REPORT_INTERVAL;
use super::lifecycle::Wanted;
use crate::auth::secret::ServerSecret;

/// What is wanted of it.
pub(super) fn order(sandbox: &Sandbox, secret: &ServerSecret) -> ServerMessage {
    let generation = sandbox.life.generation;
    let message = match sandbox.life.wanted() {
        None | Some(Wanted::Absent) => return absent(&sandbox.id, generation.0),
        Some(Wanted::Stopped) => Desired {
            sandbox_id: sandbox.id.to_string(),
            generation: generation.0,
            state: DesiredState::Stopped.into(),
            ..Desired::default()
        },
        Some(Wanted::Running) => Desired {
            sandbox_id: sandbox.id.to_string(),
            generation: generation.0,
            state: DesiredState::Running.into(),
            spec: Some(sandbox.spec.wire()),
            name: sandbox.name.clone(),
            sandbox_token: secret.sandbox_token(&sandbox.id, generation),
            report_interval_secs: u32::try_from(REPORT_INTERVAL.as_secs()).unwrap_or(u32::MAX),
        },
    };
    ServerMessage { kind: Some(server_message::Kind::Desired(message)) }
}
/// That nothing of it may be left.
pub(super) fn absent(id: &SandboxId, generation: u64) -> ServerMessage {
    let message =
        Desired { sandbox_id: id.to_string(), generation, state: DesiredState::Absent.into(), ..Desired::default() };
    ServerMessage { kind: Some(server_message::Kind::Desired(message)) }
}
