//! What the agent says of itself: to its runner by `Watch`, and to the server by HTTP where it can reach it.

mod heartbeat;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dispense_api::agent::{
    AgentHello, Report, ShutdownRequest, ShutdownResponse, WatchRequest, WatchResponse, watch_response,
};
use dispense_api::error::Error;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::call::{Requests, Responses, gone};
use crate::serve::Agent;
use crate::usage::{self, CpuMeter};

pub(crate) use heartbeat::beat;

/// Of one stream in one log: two of them fit into a message.
const TAIL_MAX_BYTES: usize = 1 << 20;
/// Logs in the answer of `Shutdown`: they fit into a message.
const LAST_LOGS_MAX_BYTES: usize = 3 << 20;

/// What is true now.
pub(crate) fn report(agent: &Agent, cpu: &mut CpuMeter, status: &str) -> Report {
    Report {
        status: status.to_owned(),
        cpu_percent: cpu.percent(),
        memory_mb: usage::memory_mb(),
        session_count: agent.sessions.load(Ordering::Relaxed),
        uptime_secs: agent.started.elapsed().as_secs(),
        hostname: hostname(),
        process_count: agent.processes.live(),
        idle_secs: if agent.sessions.load(Ordering::Relaxed) > 0 { 0 } else { agent.activity.idle_secs() },
    }
}

pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

pub(crate) async fn watch<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Arc<Agent>,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: WatchRequest = requests.only().await?;
    let tail_bytes = tail_bytes(request.log_tail_bytes);
    let hello = AgentHello {
        version: dispense_api::VERSION.to_owned(),
        sandbox_id: agent.config.sandbox_id.clone(),
        hostname: hostname(),
    };
    let message = |kind| WatchResponse { kind: Some(kind) };
    responses.send(&message(watch_response::Kind::Hello(hello))).await.map_err(gone)?;
    let mut cpu = CpuMeter::default();
    let mut reports = tokio::time::interval(agent.config.report_interval);
    let mut ends = agent.processes.ends();
    // What ended while nobody watched is told at once.
    ends.mark_changed();
    loop {
        tokio::select! {
            () = agent.shutdown.cancelled() => {
                let last = report(agent, &mut cpu, "stopped");
                return responses.send(&message(watch_response::Kind::Report(last))).await.map_err(gone);
            }
            changed = ends.changed(), if tail_bytes > 0 => {
                changed.map_err(|_| ended())?;
                for log in agent.processes.untold(true, tail_bytes) {
                    responses.send(&message(watch_response::Kind::Log(log))).await.map_err(gone)?;
                }
            }
            visit = agent.visits.next() => {
                responses.send(&message(watch_response::Kind::Visit(visit))).await.map_err(gone)?;
            }
            _ = reports.tick() => {
                let report = report(agent, &mut cpu, "running");
                responses.send(&message(watch_response::Kind::Report(report))).await.map_err(gone)?;
            }
        }
    }
}

pub(crate) async fn shut_down<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Arc<Agent>,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: ShutdownRequest = requests.only().await?;
    agent.shutdown_grace_ms.store(request.grace_ms, Ordering::Relaxed);
    agent.shutdown.cancel();
    agent.over.cancelled().await;
    let tail_bytes = tail_bytes(request.log_tail_bytes);
    let mut response = ShutdownResponse::default();
    if tail_bytes > 0 {
        let mut room = LAST_LOGS_MAX_BYTES;
        // The newest say most of why somebody ends the sandbox.
        for log in agent.processes.untold(false, tail_bytes).into_iter().rev() {
            room = room.saturating_sub(log.encoded_len());
            if room == 0 {
                break;
            }
            response.logs.insert(0, log);
        }
    }
    responses.gather(&response);
    Ok(())
}

/// What is told of one stream fits into a message, whatever the server asks for.
fn tail_bytes(asked: u32) -> usize {
    usize::try_from(asked).unwrap_or(usize::MAX).min(TAIL_MAX_BYTES)
}

fn ended() -> Error {
    Error::new(dispense_api::error::Code::Unavailable, "agent_ended", "the agent ends")
}
