//! Several changes in one call: each item as its own call, some at the same time, results in their order. The doors
//! parse the items and tell the results.

use std::collections::VecDeque;
use std::time::Duration;

use dispense_api::error::{Code, Error};
use dispense_api::method::Method;
use dispense_api::v1;
use futures_util::{StreamExt, stream};

use crate::auth::Principal;
use crate::relay::Relay;
use crate::relay::call::broken;
use crate::sandbox::Sandbox;
use crate::sandbox::lifecycle::Desired;
use crate::sandbox::service::Sandboxes;
use crate::sandbox::spec::invalid;

/// Items of one call.
const ITEMS_MAX: usize = 100;
/// Items at the same time.
const AT_ONCE: usize = 16;
/// Of each stream of a process.
const OUTPUT_MAX_BYTES: usize = 64 << 10;
/// For a sandbox that waits for a runner, and again for one that starts.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What became of a process in one of the sandboxes.
pub(crate) struct Ran {
    pub(crate) exited: v1::ProcessExited,
    /// The end of what it wrote.
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// More was written than is here.
    pub(crate) truncated: bool,
}

/// Does something for each item, which `field` names in a refusal.
pub(crate) async fn each<I, F: Future>(
    field: &str,
    items: Vec<I>,
    action: impl FnMut(I) -> F,
) -> Result<Vec<F::Output>, Error> {
    match items.len() {
        0 => Err(invalid(field, "it is empty")),
        1..=ITEMS_MAX => Ok(stream::iter(items.into_iter().map(action)).buffered(AT_ONCE).collect().await),
        len => Err(invalid(field, format_args!("{len} are over the limit of {ITEMS_MAX}"))),
    }
}

/// Deletes one, and waits for it where that is asked for.
pub(crate) async fn delete(
    sandboxes: &Sandboxes,
    caller: &Principal,
    sandbox: &str,
    force: bool,
    timeout: Option<Duration>,
) -> Result<Sandbox, Error> {
    let deleted = sandboxes.seen_by(caller).delete(sandbox, force).await?;
    sandboxes.settled(deleted, Desired::Deleted, timeout).await
}

/// Runs a command in one, and waits for its end.
pub(crate) async fn exec(
    sandboxes: &Sandboxes,
    relay: &Relay,
    caller: &Principal,
    sandbox: &str,
    start: v1::StartProcess,
    timeout: Duration,
) -> Result<Ran, Error> {
    let ran = tokio::time::timeout(timeout, run(sandboxes, relay, caller, sandbox, start)).await;
    ran.unwrap_or_else(|_| {
        let message = format!("the process has not ended within {} s: it goes on", timeout.as_secs());
        Err(Error::new(Code::DeadlineExceeded, "exec_timeout", message))
    })
}

/// As any caller of `RunProcess` does, with its input closed.
async fn run(
    sandboxes: &Sandboxes,
    relay: &Relay,
    caller: &Principal,
    sandbox: &str,
    start: v1::StartProcess,
) -> Result<Ran, Error> {
    use v1::process_event::Kind;
    let route = sandboxes.seen_by(caller).route(sandbox, Method::RunProcess, START_TIMEOUT).await?;
    let kind = v1::run_process_request::Kind::Start(start);
    let first = v1::RunProcessRequest { sandbox: route.sandbox.to_string(), kind: Some(kind) };
    let mut answers = relay.ask(&route, Method::RunProcess, &caller.origin, &first, START_TIMEOUT).await?;
    answers.requests().end().await;
    let (mut stdout, mut stderr, mut exited) = (Tail::default(), Tail::default(), None);
    while let Some(v1::ProcessEvent { kind }) = answers.next().await? {
        match kind {
            Some(Kind::Output(output)) if output.stream() == v1::OutputStream::Stderr => stderr.push(&output.data),
            Some(Kind::Output(output)) => stdout.push(&output.data),
            Some(Kind::Exited(status)) => exited = Some(status),
            _ => {}
        }
    }
    Ok(Ran {
        exited: exited.ok_or_else(broken)?,
        truncated: stdout.cut || stderr.cut,
        stdout: stdout.bytes(),
        stderr: stderr.bytes(),
    })
}

/// The end of what was written.
#[derive(Default)]
struct Tail {
    kept: VecDeque<u8>,
    cut: bool,
}

impl Tail {
    fn push(&mut self, data: &[u8]) {
        let skip = data.len().saturating_sub(OUTPUT_MAX_BYTES);
        self.kept.extend(&data[skip..]);
        let more = self.kept.len().saturating_sub(OUTPUT_MAX_BYTES);
        self.kept.drain(..more);
        self.cut |= skip > 0 || more > 0;
    }

    fn bytes(self) -> Vec<u8> {
        self.kept.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_end_and_says_that_it_was_cut() {
        let mut tail = Tail::default();
        tail.push(&vec![1; OUTPUT_MAX_BYTES]);
        assert!(!tail.cut);
        tail.push(b"end");
        assert!(tail.cut);
        let bytes = tail.bytes();
        assert!(bytes.len() == OUTPUT_MAX_BYTES && bytes.ends_with(b"end"));
    }
}
