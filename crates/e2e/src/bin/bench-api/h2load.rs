//! A load generator that we did not write, nghttp2's `h2load`. It costs a fraction of one on a gRPC library, so that more of a
//! machine that both share is the server's. It counts answers and does not open them: our own does.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use dispense_api::frame;
use dispense_api::service::GetSandboxRequest;
use tempfile::NamedTempFile;

const PROGRAM: &str = "/usr/bin/h2load";
const WARM_UP_SECS: u64 = 1;

/// Whether it is there.
pub(crate) fn available() -> bool {
    let there = Path::new(PROGRAM).is_file();
    if !there {
        println!("not measured: calls a second as h2load counts them (`apt-get install nghttp2-client`)");
    }
    there
}

/// Calls a second, each of `in_flight` callers calling again when it has its answer.
pub(crate) fn rate(
    address: &str,
    key: &str,
    identifier: &str,
    (connections, in_flight): (usize, usize),
    time: Duration,
) -> Result<f64> {
    let mut body = BytesMut::new();
    // As gRPC frames it.
    frame::encode(&GetSandboxRequest { identifier: identifier.to_owned() }, &mut body);
    let mut file = NamedTempFile::new()?;
    file.write_all(&body)?;
    let mut command = Command::new(PROGRAM);
    command.args(["--threads", "1", "--clients", &connections.to_string()]);
    command.args(["--max-concurrent-streams", &(in_flight / connections).to_string()]);
    command.args(["--duration", &time.as_secs().to_string(), "--warm-up-time", &WARM_UP_SECS.to_string()]);
    for header in ["content-type: application/grpc", "te: trailers", &format!("x-api-key: {key}")] {
        command.args(["--header", header]);
    }
    command.arg("--data").arg(file.path()).arg(format!("http://{address}/dispense.DispenseService/GetSandbox"));
    let output = command.stdin(Stdio::null()).output().context("h2load")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate = text.split_once("s, ").and_then(|(_, rest)| rest.split_once(" req/s")?.0.parse().ok());
    ensure!(text.contains(" 0 failed, 0 errored, 0 timeout"), "calls failed: {text}");
    rate.with_context(|| format!("h2load said: {text}"))
}
