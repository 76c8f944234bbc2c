//! Sweeps: idempotent passes over rows that repair and expire. Nothing is remembered between two passes,
//! so a crash at any moment leaves the next pass the same work.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::MICROS_PER_SEC;
use crate::planted::{self, Bug};
use crate::sandbox::service::Sandboxes;
use crate::store::{jobs, sandboxes};

/// Between passes; a pass that finds nothing costs two indexed queries.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Sweeps until `shutdown`.
pub(crate) async fn sweep_task(sandboxes: Arc<Sandboxes>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(SWEEP_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let result = tokio::select! {
            () = shutdown.cancelled() => return,
            () = sandboxes.fleet.room_changed.notified() => place_once(&sandboxes).await,
            _ = tick.tick() => sweep_once(&sandboxes).await,
        };
        if let Err(error) = result {
            tracing::warn!(%error, "sweep: the next one tries again");
        }
    }
}

async fn sweep_once(sandboxes: &Sandboxes) -> Result<(), dispense_api::error::Error> {
    if let Some(jump) = sandboxes.clock.jump() {
        follow_jump(sandboxes, jump).await?;
    }
    for (runner, last_seen_at) in sandboxes.fleet.newly_lost() {
        tracing::warn!(%runner, "runner is offline: its lease has ended");
        sandboxes.runner_lost(&runner, last_seen_at).await?;
    }
    for sandbox in sandboxes.agents.newly_silent() {
        sandboxes.agent_silent(&sandbox).await?;
    }
    for sandbox in sandboxes::expired(sandboxes.store.readers(), sandboxes.clock.now()).await? {
        if planted::has(Bug::ReapByTimer) && !planted::is_armed(sandbox.as_str()) {
            continue;
        }
        tracing::info!(%sandbox, "sandbox has expired");
        sandboxes.delete(sandbox.as_str(), false).await?;
    }
    for (sandbox, job) in jobs::overdue(sandboxes.store.readers(), sandboxes.clock.now()).await? {
        tracing::warn!(%sandbox, %job, "job is overdue");
        sandboxes.overdue(&sandbox, job).await?;
    }
    for (sandbox, limit_micros) in sandboxes::auto_stopped(sandboxes.store.readers()).await? {
        let limit = Duration::from_micros(u64::try_from(limit_micros).unwrap_or(u64::MAX));
        if sandboxes.agents.idle(&sandbox).is_some_and(|idle| idle >= limit) {
            tracing::info!(%sandbox, "sandbox is stopped: nobody uses it");
            sandboxes.park(&sandbox).await?;
        }
    }
    for sandbox in sandboxes::to_drain(sandboxes.store.readers()).await? {
        sandboxes.park(&sandbox).await?;
    }
    place_once(sandboxes).await
}

/// The machine's clock was set: what was to last an hour still does.
async fn follow_jump(sandboxes: &Sandboxes, jump: i64) -> Result<(), dispense_api::error::Error> {
    tracing::warn!(seconds = jump / MICROS_PER_SEC, "the machine's clock has jumped: deadlines are moved along");
    let (clock, live) = (sandboxes.clock.clone(), sandboxes.live.clone());
    let moved = sandboxes.store.write_then(
        move |tx| {
            Box::pin(async move {
                sandboxes::move_deadlines(&mut *tx, jump).await?;
                jobs::move_deadlines(tx, jump).await
            })
        },
        move |()| {
            clock.follow(jump);
            live.forget();
        },
    );
    Ok(moved.await?)
}

/// Places what waits, oldest first.
async fn place_once(sandboxes: &Sandboxes) -> Result<(), dispense_api::error::Error> {
    for sandbox in sandboxes::pending(sandboxes.store.readers()).await? {
        sandboxes.place(&sandbox).await?;
    }
    Ok(())
}
