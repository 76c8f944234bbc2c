//! The kept ends of processes' output: taken from the sandbox's own runner, bounded, given back when the agent
//! cannot be asked any more.

use dispense_api::error::Error;
use dispense_api::id::{RunnerId, SandboxId};
use dispense_api::runner::SandboxLog;
use dispense_api::v1::ProcessLog;

use super::Sandbox;
use super::service::Sandboxes;
use crate::auth::Scope;
use crate::job::Job;
use crate::refusal::unknown_sandbox;
use crate::store::{jobs, logs, sandboxes};

/// Jobs that are told with the logs.
const JOBS_MAX: usize = 20;
/// Arguments, name and the like of a process, beside its output.
const PROCESS_MAX_BYTES: usize = 16 << 10;

impl Sandboxes {
    /// Keeps what a runner brings of its own sandboxes; the rest is dropped.
    pub(crate) async fn keep_logs(&self, runner: &RunnerId, logs: Vec<SandboxLog>) -> Result<(), Error> {
        let tail_bytes = usize::try_from(self.orders.log_tail_bytes).unwrap_or(usize::MAX);
        let parsed: Vec<(SandboxId, u64, u32, i64, ProcessLog)> =
            logs.into_iter().filter_map(|log| parse(log, tail_bytes)).collect();
        let runner = runner.clone();
        let write = self.store.write(move |tx| {
            let (parsed, runner) = (parsed.clone(), runner.clone());
            Box::pin(async move {
                for (id, generation, pid, started_at, log) in parsed {
                    let known = sandboxes::get(&mut *tx, &id).await?;
                    if known
                        .is_some_and(|row| row.runner.as_ref() == Some(&runner) && row.life.generation.0 == generation)
                    {
                        logs::keep(&mut *tx, &id, pid, started_at, &log).await?;
                    }
                }
                Ok(())
            })
        });
        Ok(write.await?)
    }

    /// What is kept of a sandbox, also of a deleted one; of several that had a name, the last.
    pub(crate) async fn logs(&self, id_or_name: &str) -> Result<(Sandbox, Vec<ProcessLog>, Vec<Job>), Error> {
        let readers = self.store.readers();
        let found = sandboxes::find_any(readers, id_or_name).await?;
        let sandbox = found.ok_or_else(|| unknown_sandbox(id_or_name))?;
        let logs = logs::of_sandbox(readers, &sandbox.id).await?;
        let mut jobs = jobs::list(readers, &Scope::All, Some(&sandbox.id), None, None, JOBS_MAX).await?;
        jobs.reverse();
        Ok((sandbox, logs, jobs))
    }
}

/// One that names a sandbox and a process, cut to what is kept.
fn parse(log: SandboxLog, tail_bytes: usize) -> Option<(SandboxId, u64, u32, i64, ProcessLog)> {
    let sandbox = log.sandbox_id.parse().ok()?;
    let mut kept = log.log?;
    let process = kept.process.as_mut()?;
    if prost::Message::encoded_len(process) > PROCESS_MAX_BYTES {
        process.args.truncate(1);
        process.args.iter_mut().for_each(|arg| *arg = super::spec::clip(arg));
        (process.cwd, process.name) = (super::spec::clip(&process.cwd), super::spec::clip(&process.name));
    }
    let started_at = super::view::micros(&process.started_at.unwrap_or_default());
    let pid = process.pid;
    kept.tails.truncate(3);
    for tail in &mut kept.tails {
        let more = tail.data.len().saturating_sub(tail_bytes);
        tail.offset = tail.offset.saturating_add(more as u64);
        tail.data = tail.data.split_off(more);
    }
    Some((sandbox, log.generation, pid, started_at, kept))
}
