//! The agent of a fake box: answers `Watch` with a hello and `Shutdown` with its end; it has no processes,
//! files or ports, and says so.

use bytes::BytesMut;
use dispense_api::agent::{AgentHello, Call, ShutdownResponse, Status, WatchResponse, watch_response};
use dispense_api::error::{Code, Error};
use dispense_api::frame::{self, Decoder, Frame};
use dispense_api::id::SandboxId;
use dispense_api::limits;
use dispense_api::method::Method;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;

use crate::BoxExit;

/// Answers one call. `true` when it asked the agent to end.
pub(super) async fn serve(
    mut stream: DuplexStream,
    sandbox: &SandboxId,
    mut ended: watch::Receiver<Option<BoxExit>>,
) -> bool {
    let Some(call) = first_call(&mut stream).await else { return false };
    let mut answer = BytesMut::new();
    match Method::parse(&call.method) {
        Some(Method::Watch) => {
            let hello = AgentHello {
                version: dispense_api::VERSION.to_owned(),
                sandbox_id: sandbox.to_string(),
                hostname: "fake".to_owned(),
            };
            frame::encode(&WatchResponse { kind: Some(watch_response::Kind::Hello(hello)) }, &mut answer);
            if stream.write_all(&answer).await.is_ok() {
                // Until the box ends; then the stream is cut, as that of a dead agent.
                let _ = ended.wait_for(Option::is_some).await;
            }
            false
        }
        Some(Method::Shutdown) => {
            frame::encode(&ShutdownResponse::default(), &mut answer);
            frame::encode_status(&Status::default(), &mut answer);
            // The caller sees the end either way.
            let _ = stream.write_all(&answer).await;
            true
        }
        _ => {
            let error = Error::new(Code::Unimplemented, "fake", format!("a fake box does not answer {}", call.method));
            frame::encode_status(&error.into(), &mut answer);
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
            false
        }
    }
}

async fn first_call(stream: &mut DuplexStream) -> Option<Call> {
    let decoder = Decoder::new(limits::REQUEST_MESSAGE_MAX_BYTES);
    let mut buffer = BytesMut::new();
    loop {
        match decoder.decode(&mut buffer).ok()? {
            Some(Frame::Message(bytes)) => return Call::decode(bytes).ok(),
            Some(Frame::Status(_)) => return None,
            None => {}
        }
        if stream.read_buf(&mut buffer).await.ok()? == 0 {
            return None;
        }
    }
}
