//! What is kept for a while only: rows go when their time is over, some at a time, so that however much there is,
//! other writes pass in between and no transaction takes long.

use std::sync::Arc;
use std::time::Duration;

use dispense_api::error::Error;
use sqlx::AnyConnection;
use tokio_util::sync::CancellationToken;

use crate::clock::MICROS_PER_SEC;
use crate::sandbox::service::Sandboxes;
use crate::store::{Change, Store, StoreError, events, sandboxes, usage};

/// Between removals.
const INTERVAL: Duration = Duration::from_secs(60);
/// Sandboxes stay this long after their deletion, so that a late `get` and the jobs explain what happened.
const DELETED_RETENTION: Duration = Duration::from_secs(3600);
/// A follower that was away for longer is told of a gap.
const EVENTS_RETENTION: Duration = Duration::from_secs(24 * 3600);
/// In one transaction, which takes some milliseconds.
const ROWS_AT_MOST: i64 = 1_000;
/// The same; each has jobs, logs and its usage.
const SANDBOXES_AT_MOST: i64 = 50;

/// One kind's removal: what is from before the time in microseconds, at most so many. Returns how many.
type Removal = for<'c> fn(&'c mut AnyConnection, i64, i64) -> Change<'c, u64>;

/// Writes what was used and removes what is old, until `shutdown`.
pub(crate) async fn purge_task(sandboxes: Arc<Sandboxes>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        // To its end: what it holds is nowhere else.
        if let Err(error) = sandboxes.write_usage(false).await {
            tracing::warn!(%error, "write what was used: the next pass tries again");
        }
        // A pass may be long, and goes on at the next start.
        let done = tokio::select! {
            () = shutdown.cancelled() => return,
            done = purge_once(&sandboxes) => done,
        };
        if let Err(error) = done {
            tracing::warn!(%error, "remove old rows: the next pass tries again");
        }
    }
}

async fn purge_once(sandboxes: &Sandboxes) -> Result<(), Error> {
    let (now, store) = (sandboxes.clock.now(), &sandboxes.store);
    let before = |kept: Duration| now - i64::try_from(kept.as_micros()).unwrap_or(i64::MAX);
    let dead: Removal = |tx, before, at_most| Box::pin(sandboxes::purge(tx, before, at_most));
    remove(store, dead, before(DELETED_RETENTION), SANDBOXES_AT_MOST).await?;
    let past: Removal = |tx, before, at_most| Box::pin(events::purge(tx, before, at_most));
    remove(store, past, before(EVENTS_RETENTION), ROWS_AT_MOST).await?;
    // It has periods of its own.
    let used: Removal = |tx, now, at_most| Box::pin(usage::purge(tx, now.div_euclid(MICROS_PER_SEC), at_most));
    remove(store, used, now, ROWS_AT_MOST).await?;
    Ok(())
}

/// Until nothing is left.
async fn remove(store: &Store, removal: Removal, before: i64, at_most: i64) -> Result<(), StoreError> {
    while store.write(move |tx| removal(tx, before, at_most)).await? >= at_most.unsigned_abs() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Scope;

    #[tokio::test]
    async fn what_is_old_goes_in_parts_and_the_last_event_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::in_folder(dir.path()).await;
        let fill = store.write(|tx| {
            let sql = "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 25) \
                       INSERT INTO event (seq, at, type, sandbox_id, group_name, data) \
                       SELECT n, n * 10, 'sandbox.changed', 'sbx', '', '{}' FROM number";
            Box::pin(async move {
                sqlx::query(sql).execute(tx).await?;
                Ok(())
            })
        });
        fill.await.expect("written");
        let past: Removal = |tx, before, at_most| Box::pin(events::purge(tx, before, at_most));
        let left = || async {
            let all = events::page(store.readers(), &Scope::All, 0, 100).await.expect("read");
            (all.len(), all[0].seq)
        };
        let part = store.write(move |tx| past(tx, 201, 7)).await.expect("removed");
        assert_eq!((part, left().await), (7, (18, 8)), "no more than was asked for");
        remove(&store, past, 201, 7).await.expect("removed");
        assert_eq!(left().await, (5, 21), "parts that were full go on");
        remove(&store, past, i64::MAX, 7).await.expect("removed");
        assert_eq!(left().await, (1, 25));
        store.close().await;
    }
}
