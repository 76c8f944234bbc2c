//! What happens to sandboxes, for those who follow: rows with numbers, written in the transaction of the change that
//! they tell of, and read from a number on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use dispense_api::error::Error;
use tokio::sync::watch;

use crate::auth::Scope;
use crate::store::Store;
use crate::store::events::{self, Event};

/// Events of one read.
const PAGE_EVENTS: usize = 256;
/// The type of the event that stands for those that are no longer kept.
const GAP: &str = "gap";

/// Tells followers that there may be more.
#[derive(Debug)]
pub(crate) struct Ticker(Mutex<Option<watch::Sender<u64>>>);

impl Default for Ticker {
    fn default() -> Self {
        Self(Mutex::new(Some(watch::channel(0).0)))
    }
}

impl Ticker {
    /// A change was committed.
    pub(crate) fn tick(&self) {
        if let Some(sender) = &*self.0.lock().expect("no holder panics") {
            sender.send_modify(|count| *count += 1);
        }
    }

    /// The server ends: followers are told what is there, and then that this is all.
    pub(crate) fn close(&self) {
        self.0.lock().expect("no holder panics").take();
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        let sender = self.0.lock().expect("no holder panics");
        sender.as_ref().map_or_else(|| watch::channel(0).1, watch::Sender::subscribe)
    }
}

/// Where a follower begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// With the event after this number.
    After(i64),
    /// With what comes from now on.
    Now,
}

/// One follower.
pub(crate) struct Follower {
    store: Arc<Store>,
    scope: Scope,
    position: i64,
    ticks: watch::Receiver<u64>,
    ready: VecDeque<Event>,
    follow: bool,
}

impl Follower {
    /// Follows what a scope reaches; without `follow` it ends with what is there.
    pub(crate) async fn open(
        store: Arc<Store>,
        ticker: &Ticker,
        scope: Scope,
        from: From,
        follow: bool,
    ) -> Result<Self, Error> {
        // Before the rows are read, so that no commit falls between.
        let ticks = ticker.subscribe();
        let (first, last) = events::bounds(store.readers()).await?;
        let mut ready = VecDeque::new();
        let position = match from {
            From::Now => last,
            // Told by a database that this one is an older copy of: what the caller knows may not have been.
            From::After(after) if after > last => {
                ready.push_back(gap(last + 1));
                last
            }
            From::After(after) => {
                if after > 0 && after + 1 < first {
                    ready.push_back(gap(first));
                }
                after
            }
        };
        Ok(Self { store, scope, position, ticks, ready, follow })
    }

    /// The number of the last event before those that are told.
    pub(crate) fn position(&self) -> i64 {
        self.position
    }

    /// The next event; `None` at the end of what is there.
    ///
    /// CANCEL SAFETY: an event is taken only by the poll that returns it.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            self.ticks.borrow_and_update();
            let page = events::page(self.store.readers(), &self.scope, self.position, PAGE_EVENTS).await?;
            if let Some(last) = page.last() {
                self.position = last.seq;
                self.ready.extend(page);
            } else if !self.follow || self.ticks.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

fn gap(first: i64) -> Event {
    Event {
        seq: first - 1,
        at: 0,
        kind: GAP.to_owned(),
        sandbox: String::new(),
        group: String::new(),
        data: BTreeMap::new(),
    }
}
