//! Heartbeats by HTTP: `POST {server}/api/v1/sandboxes/{id}/status` with the sandbox's token. The first at once,
//! one each interval, the last with `stopped`. A failed one is told and the next is sent in its time.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpStream;

use super::{hostname, report};
use crate::serve::Agent;
use crate::usage::CpuMeter;

/// One report, from the connection to the answer.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The last report must not hold the end up.
const LAST_REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Of an answer, which is one line of JSON.
const ANSWER_MAX_BYTES: usize = 64 << 10;

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    sandbox_id: &'a str,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_percent: Option<f64>,
    #[serde(rename = "memoryMB", skip_serializing_if = "Option::is_none")]
    memory_mb: Option<u64>,
    session_count: u32,
    uptime_secs: u64,
    hostname: String,
    timestamp: String,
}

#[derive(Debug, thiserror::Error)]
enum BeatError {
    #[error("`{0}` is not an address like http://HOST:PORT that this agent can reach by itself")]
    Address(String),
    #[error("connection failed: {0}")]
    Connect(#[from] std::io::Error),
    #[error("HTTP failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("the answer is too large or was cut")]
    Answer,
    #[error("the request cannot be made: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("the server answered {0}")]
    Status(u16),
}

/// Reports to the server until the agent shuts down; returns at once when there is no server to report to.
pub(crate) async fn beat(agent: Arc<Agent>) {
    let Some(url) = agent.config.server_url.clone() else { return };
    let mut cpu = CpuMeter::default();
    let mut interval = tokio::time::interval(agent.config.report_interval);
    loop {
        let (status, timeout) = tokio::select! {
            _ = interval.tick() => ("running", REPORT_TIMEOUT),
            () = agent.shutdown.cancelled() => ("stopped", LAST_REPORT_TIMEOUT),
        };
        let sent = tokio::time::timeout(timeout, send(&agent, &url, &mut cpu, status)).await;
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%url, %error, "heartbeat failed"),
            Err(_) => tracing::warn!(%url, "heartbeat was not answered in time"),
        }
        if status == "stopped" {
            return;
        }
    }
}

async fn send(agent: &Agent, url: &str, cpu: &mut CpuMeter, status: &str) -> Result<(), BeatError> {
    let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let authority = authority.ok_or_else(|| BeatError::Address(url.to_owned()))?;
    let address = resolve(authority).ok_or_else(|| BeatError::Address(url.to_owned()))?;
    let now = report(agent, cpu, status);
    let body = Body {
        sandbox_id: &agent.config.sandbox_id,
        status,
        cpu_percent: now.cpu_percent,
        memory_mb: now.memory_mb,
        session_count: now.session_count,
        uptime_secs: now.uptime_secs,
        hostname: hostname(),
        timestamp: OffsetDateTime::from(SystemTime::now()).format(&Rfc3339).unwrap_or_default(),
    };
    let json = serde_json::to_vec(&body).unwrap_or_default();
    let request = Request::post(format!("/api/v1/sandboxes/{}/status", agent.config.sandbox_id))
        .header("host", authority)
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {}", agent.config.token))
        .body(Full::new(Bytes::from(json)))?;
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await.map_err(|_| BeatError::Answer)?;
        if status.is_success() { Ok(()) } else { Err(BeatError::Status(status.as_u16())) }
    };
    tokio::select! {
        result = exchange => result,
        result = connection => Err(result.err().map_or(BeatError::Answer, BeatError::Http)),
    }
}

/// An address, or a name of `/etc/hosts`. Not by `getaddrinfo`, which loads the sandbox's own modules.
fn resolve(authority: &str) -> Option<SocketAddr> {
    if let Ok(address) = authority.parse() {
        return Some(address);
    }
    let (host, port) =
        authority.rsplit_once(':').map_or((authority, 80), |(host, port)| (host, port.parse().unwrap_or(0)));
    let ip: IpAddr = host.parse().ok().or_else(|| {
        let hosts = fs::read_to_string("/etc/hosts").ok()?;
        let line = hosts.lines().find(|line| line.split_whitespace().skip(1).any(|name| name == host))?;
        line.split_whitespace().next()?.parse().ok()
    })?;
    (port > 0).then(|| SocketAddr::new(ip, port))
}
