//! The one task that writes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sqlx::AnyConnection;
use sqlx::{Connection, Executor};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::database::{Database, LEAD_KEEPALIVE, Lead};
use super::{StoreError, StoreMode, in_place};
use crate::metrics::Metrics;

/// Changes that wait; past it callers wait before they queue.
const QUEUE_CHANGES: usize = 1024;
/// Changes of one transaction: enough that a burst costs few commits, few enough that one answers soon.
const BATCH_CHANGES: usize = 128;
/// At shutdown the queue is written for at most this long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A change whose result type is hidden: it keeps its result until the commit.
trait Change: Send {
    fn run<'c>(&'c mut self, connection: &'c mut AnyConnection) -> BoxFuture<'c, Result<(), StoreError>>;
    fn answer(&mut self, failure: Option<StoreError>);
}

struct Typed<T, F, A> {
    change: F,
    after: Option<A>,
    result: Option<T>,
    reply: Option<oneshot::Sender<Result<T, StoreError>>>,
}

impl<T, F, A> Change for Typed<T, F, A>
where
    T: Send + 'static,
    F: for<'c> Fn(&'c mut AnyConnection) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
    A: FnOnce(&mut T) + Send + 'static,
{
    fn run<'c>(&'c mut self, connection: &'c mut AnyConnection) -> BoxFuture<'c, Result<(), StoreError>> {
        let future = (self.change)(connection);
        let result = &mut self.result;
        Box::pin(async move {
            *result = Some(future.await?);
            Ok(())
        })
    }

    fn answer(&mut self, failure: Option<StoreError>) {
        let result = match (failure, self.result.take()) {
            (Some(error), _) => Err(error),
            (None, Some(mut result)) => {
                if let Some(after) = self.after.take() {
                    after(&mut result);
                }
                Ok(result)
            }
            (None, None) => Err(StoreError::Closed),
        };
        match (self.reply.take(), result) {
            // A caller that gave up still has its change on the disk; the row tells.
            (Some(reply), result) => drop(reply.send(result)),
            (None, Ok(_)) => {}
            (None, Err(error)) => tracing::error!(%error, "a change that nobody waits for was not written"),
        }
    }
}

pub(super) struct Writer {
    queue: Mutex<Option<mpsc::Sender<Box<dyn Change>>>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(lead: Lead, mode: StoreMode, metrics: Arc<Metrics>) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE_CHANGES);
        let task = tokio::spawn(run(lead, receiver, mode, metrics));
        Self { queue: Mutex::new(Some(queue)), task: Mutex::new(Some(task)) }
    }

    pub(super) async fn write<T, F, A>(&self, change: F, after: A) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut AnyConnection) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
        A: FnOnce(&mut T) + Send + 'static,
    {
        let queue = self.queue.lock().expect("no holder panics").clone().ok_or(StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let change = Typed { change, after: Some(after), result: None, reply: Some(reply) };
        queue.send(Box::new(change)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    pub(super) async fn post<F>(&self, change: F) -> Result<(), StoreError>
    where
        F: for<'c> Fn(&'c mut AnyConnection) -> BoxFuture<'c, Result<(), StoreError>> + Send + 'static,
    {
        let queue = self.queue.lock().expect("no holder panics").clone().ok_or(StoreError::Closed)?;
        let change = Typed { change, after: None::<fn(&mut ())>, result: None, reply: None };
        queue.send(Box::new(change)).await.map_err(|_| StoreError::Closed)
    }

    pub(super) async fn close(&self) {
        self.queue.lock().expect("no holder panics").take();
        let task = self.task.lock().expect("no holder panics").take();
        if let Some(task) = task {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, task).await;
        }
    }
}

async fn run(mut lead: Lead, mut queue: mpsc::Receiver<Box<dyn Change>>, mode: StoreMode, metrics: Arc<Metrics>) {
    let held = mode.is_held();
    let mut batch = Vec::with_capacity(BATCH_CHANGES);
    while next(&mut lead, &mut queue, &mut batch).await {
        if let StoreMode::Held { pause } = &mode {
            tokio::time::sleep(pause()).await;
        }
        let begun = Instant::now();
        let all = in_place(held, write(&mut lead.connection, &lead.database, &mut batch)).await;
        if !all && matches!(lead.database, Database::Postgres(_)) {
            lead.restore().await;
        }
        metrics.committed(batch.len(), begun.elapsed());
        batch.clear();
    }
    if let Err(error) = lead.connection.close().await {
        tracing::warn!(%error, "database was not closed");
    }
}

/// Waits for changes, and keeps the lead meanwhile; `false` when there will be none.
async fn next(lead: &mut Lead, queue: &mut mpsc::Receiver<Box<dyn Change>>, batch: &mut Vec<Box<dyn Change>>) -> bool {
    if let Database::File(_) = lead.database {
        return queue.recv_many(batch, BATCH_CHANGES).await > 0;
    }
    loop {
        match tokio::time::timeout(LEAD_KEEPALIVE, queue.recv_many(batch, BATCH_CHANGES)).await {
            Ok(count) => return count > 0,
            Err(_) => lead.restore().await,
        }
    }
}

/// Commits what has queued up, and answers; whether all of it was written.
async fn write(connection: &mut AnyConnection, database: &Database, batch: &mut [Box<dyn Change>]) -> bool {
    match commit(connection, database, batch).await {
        Ok(()) => {
            batch.iter_mut().for_each(|change| change.answer(None));
            true
        }
        Err(error) if batch.len() == 1 => {
            batch[0].answer(Some(error));
            false
        }
        // One of them is at fault: each runs alone.
        Err(_) => {
            let mut all = true;
            for change in batch {
                let result = commit(connection, database, std::slice::from_mut(change)).await;
                all &= result.is_ok();
                change.answer(result.err());
            }
            all
        }
    }
}

async fn commit(
    connection: &mut AnyConnection,
    database: &Database,
    batch: &mut [Box<dyn Change>],
) -> Result<(), StoreError> {
    connection.execute(database.begin()).await?;
    let mut result = Ok(());
    for change in batch {
        result = change.run(connection).await;
        if result.is_err() {
            break;
        }
    }
    let result = match result {
        Ok(()) => connection.execute("COMMIT").await.map(|_| ()).map_err(StoreError::from),
        Err(error) => Err(error),
    };
    if result.is_err()
        && let Err(error) = connection.execute("ROLLBACK").await
    {
        // SQLite has rolled back by itself, e.g. when the disk was full.
        tracing::debug!(%error, "rollback");
    }
    result
}
