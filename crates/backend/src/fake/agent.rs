//! The agent of a fake box: says hello and reports, shuts down, and runs one kind of process, `count N`, which
//! writes N bytes and ends. It has no files or ports, and says so.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dispense_api::agent::{
    AgentHello, Call, Report, SetEnvironmentRequest, SetEnvironmentResponse, ShutdownResponse, Status, WatchResponse,
    watch_response,
};
use dispense_api::error::{Code, Error, reason};
use dispense_api::frame::{self, Decoder, Frame};
use dispense_api::id::SandboxId;
use dispense_api::limits;
use dispense_api::method::Method;
use dispense_api::v1::{self, attach_process_request, process_event, run_process_request};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;

use super::{FakeMachine, FakeProcess};
use crate::BoxExit;

/// Between reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);
/// What a process writes at once, and how long it rests then.
const CHUNK_BYTES: u64 = 4096;
const CHUNK_INTERVAL: Duration = Duration::from_millis(50);

/// The byte that a `count` writes at an offset.
pub fn count_byte(offset: u64) -> u8 {
    (offset % 251) as u8
}

/// What a call came to.
pub(super) enum Answered {
    Done,
    /// The agent was asked to end.
    ShutDown,
}

struct Peer {
    stream: DuplexStream,
    buffer: BytesMut,
    answer: BytesMut,
    /// The stream takes another call after this one.
    kept: bool,
}

impl Peer {
    async fn frame(&mut self) -> Option<Frame> {
        let decoder = Decoder::new(limits::REQUEST_MESSAGE_MAX_BYTES);
        loop {
            if let Some(frame) = decoder.decode(&mut self.buffer).ok()? {
                return Some(frame);
            }
            if self.stream.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    async fn message<M: Message + Default>(&mut self) -> Option<M> {
        match self.frame().await? {
            Frame::Message(bytes) => M::decode(bytes).ok(),
            Frame::Status(_) | Frame::End => None,
        }
    }

    async fn send(&mut self, message: &impl Message) -> Option<()> {
        frame::encode(message, &mut self.answer);
        let bytes = self.answer.split();
        self.stream.write_all(&bytes).await.ok()
    }

    async fn finish(&mut self, result: Result<(), Error>) {
        let status = result.map_or_else(Status::from, |()| Status::default());
        frame::encode_status(&Status { kept: self.kept, ..status }, &mut self.answer);
        let bytes = self.answer.split();
        // A caller that is gone needs no answer.
        let _ = self.stream.write_all(&bytes).await;
        if !self.kept {
            let _ = self.stream.shutdown().await;
        }
    }
}

/// Answers calls.
pub(super) async fn serve(
    stream: DuplexStream,
    machine: &FakeMachine,
    sandbox: &SandboxId,
    mut ended: watch::Receiver<Option<BoxExit>>,
) -> Answered {
    let mut peer = Peer { stream, buffer: BytesMut::new(), answer: BytesMut::new(), kept: false };
    // When the box ends every stream is cut, as those of a dead agent.
    tokio::select! {
        answered = calls(&mut peer, machine, sandbox) => answered.unwrap_or(Answered::Done),
        _ = ended.wait_for(Option::is_some) => Answered::Done,
    }
}

async fn calls(peer: &mut Peer, machine: &FakeMachine, sandbox: &SandboxId) -> Option<Answered> {
    loop {
        let call = peer.message::<Call>().await?;
        peer.kept = call.keep && !machine.old_agents.load(Ordering::Relaxed);
        if Method::parse(&call.method) == Some(Method::Shutdown) {
            let _ = peer.send(&ShutdownResponse::default()).await;
            peer.finish(Ok(())).await;
            return Some(Answered::ShutDown);
        }
        answer(peer, machine, sandbox, &call.method).await?;
        while peer.kept && !matches!(peer.frame().await?, Frame::End) {}
        if !peer.kept {
            return None;
        }
    }
}

async fn answer(peer: &mut Peer, machine: &FakeMachine, sandbox: &SandboxId, method: &str) -> Option<()> {
    let known = Method::parse(method);
    match known {
        Some(Method::Watch) => watch(peer, sandbox).await,
        Some(Method::SetEnvironment) => {
            let request: SetEnvironmentRequest = peer.message().await?;
            machine.set_environment(sandbox, request.variables.into_iter().collect());
            peer.send(&SetEnvironmentResponse {}).await?;
            peer.finish(Ok(())).await;
            Some(())
        }
        Some(Method::RunProcess) => {
            let request: v1::RunProcessRequest = peer.message().await?;
            let Some(run_process_request::Kind::Start(start)) = request.kind else { return None };
            let process = machine.start(sandbox, &start)?;
            count(peer, &process, 0).await
        }
        Some(Method::AttachProcess) => {
            let request: v1::AttachProcessRequest = peer.message().await?;
            let Some(attach_process_request::Kind::Open(open)) = request.kind else { return None };
            match open.process.and_then(|process| process.by) {
                Some(v1::process_ref::By::Pid(pid)) if let Some(process) = machine.process(sandbox, pid) => {
                    count(peer, &process, open.stdout_offset).await
                }
                _ => {
                    let error = Error::new(Code::NotFound, reason::PROCESS_UNKNOWN, "there is no such process");
                    peer.finish(Err(error)).await;
                    Some(())
                }
            }
        }
        _ => {
            let message = format!("a fake box does not answer {method}");
            peer.finish(Err(Error::new(Code::Unimplemented, "fake", message))).await;
            Some(())
        }
    }
}

async fn watch(peer: &mut Peer, sandbox: &SandboxId) -> Option<()> {
    let hello = AgentHello {
        version: dispense_api::VERSION.to_owned(),
        sandbox_id: sandbox.to_string(),
        hostname: "fake".to_owned(),
    };
    peer.send(&WatchResponse { kind: Some(watch_response::Kind::Hello(hello)) }).await?;
    let mut interval = tokio::time::interval(REPORT_INTERVAL);
    let mut uptime_secs = 0;
    loop {
        interval.tick().await;
        let report = Report { status: "running".to_owned(), uptime_secs, idle_secs: uptime_secs, ..Report::default() };
        peer.send(&WatchResponse { kind: Some(watch_response::Kind::Report(report)) }).await?;
        uptime_secs += REPORT_INTERVAL.as_secs();
    }
}

async fn count(peer: &mut Peer, process: &FakeProcess, mut offset: u64) -> Option<()> {
    let event = |kind| v1::ProcessEvent { kind: Some(kind) };
    peer.send(&event(process_event::Kind::Started(process.describe()))).await?;
    while offset < process.total {
        let end = (offset + CHUNK_BYTES).min(process.total);
        let data: Bytes = (offset..end).map(count_byte).collect();
        let output = v1::ProcessOutput { stream: v1::OutputStream::Stdout.into(), offset, data };
        peer.send(&event(process_event::Kind::Output(output))).await?;
        offset = end;
        tokio::time::sleep(CHUNK_INTERVAL).await;
    }
    let status = Some(v1::process_exited::Status::Code(0));
    let exited = event(process_event::Kind::Exited(v1::ProcessExited { status, ..Default::default() }));
    // It goes with the status.
    frame::encode(&exited, &mut peer.answer);
    peer.finish(Ok(())).await;
    Some(())
}
