//! What the agent says of itself: to its runner by `Watch`, and to the server by HTTP where it can reach it.

mod heartbeat;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dispense_api::agent::{
    AgentHello, Report, ShutdownRequest, ShutdownResponse, WatchRequest, WatchResponse, watch_response,
};
use dispense_api::error::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::call::{Requests, Responses, gone};
use crate::serve::Agent;
use crate::usage::{self, CpuMeter};

pub(crate) use heartbeat::beat;

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
    let _: WatchRequest = requests.only().await?;
    let hello = AgentHello {
        version: dispense_api::VERSION.to_owned(),
        sandbox_id: agent.config.sandbox_id.clone(),
        hostname: hostname(),
    };
    let message = |kind| WatchResponse { kind: Some(kind) };
    responses.send(&message(watch_response::Kind::Hello(hello))).await.map_err(gone)?;
    let mut cpu = CpuMeter::default();
    let mut reports = tokio::time::interval(agent.config.report_interval);
    loop {
        tokio::select! {
            () = agent.shutdown.cancelled() => {
                let last = report(agent, &mut cpu, "stopped");
                return responses.send(&message(watch_response::Kind::Report(last))).await.map_err(gone);
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
    responses.send(&ShutdownResponse {}).await.map_err(gone)?;
    agent.shutdown_grace_ms.store(request.grace_ms, Ordering::Relaxed);
    agent.shutdown.cancel();
    Ok(())
}
