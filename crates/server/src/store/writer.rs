//! The one task that writes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sqlx::AnyConnection;
use sqlx::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::lead::{LEAD_KEEPALIVE, Lead};
use super::{Database, StoreError, StoreMode, in_place};
use crate::metrics::Metrics;

/// Changes that wait; past it callers wait before they queue.
const QUEUE_CHANGES: usize = 1024;
/// Changes of one transaction: enough that a burst costs few commits, few enough that one answers soon.
const BATCH_CHANGES: usize = 128;
/// At shutdown the queue is written for at most this long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A change whose result type is hidden: it keeps its result until the commit.
pub(super) trait Change: Send {
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
        in_place(held, write(&mut lead, &mut batch)).await;
        metrics.committed(batch.len(), begun.elapsed());
        batch.clear();
    }
    if lead.is_lost() {
        return;
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
    while !lead.is_lost() {
        match tokio::time::timeout(LEAD_KEEPALIVE, queue.recv_many(batch, BATCH_CHANGES)).await {
            Ok(count) => return count > 0,
            Err(_) => lead.keep().await,
        }
    }
    false
}

/// Commits what has queued up, and answers.
async fn write(lead: &mut Lead, batch: &mut [Box<dyn Change>]) {
    match lead.commit(batch).await {
        Ok(()) => batch.iter_mut().for_each(|change| change.answer(None)),
        Err(error) if batch.len() == 1 => batch[0].answer(Some(error)),
        // One of them is at fault: each runs alone.
        Err(_) => {
            for change in batch {
                let result = lead.commit(std::slice::from_mut(change)).await;
                change.answer(result.err());
            }
        }
    }
}
