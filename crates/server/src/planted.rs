//! Bugs that the simulation must find (a checker that finds nothing is not yet a checker), and messages that
//! come twice or long after their time. They exist only with the feature `planted`, which nothing but the simulation asks for, and only where they are switched on.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// What a runner says of an older placement is believed.
    SkipFencing,
    /// A runner is told before the row is on the disk.
    ActBeforePersisting,
    /// A TTL is a timer in memory and not a sweep over rows.
    ReapByTimer,
}

#[cfg(feature = "planted")]
mod switched {
    use std::cell::{Cell, RefCell};
    use std::collections::{HashSet, VecDeque};

    use dispense_api::id::RunnerId;
    use dispense_api::runner::{Box as BoxMessage, BoxState};

    use super::Bug;

    /// Reports that may come again.
    const FAILED_MAX: usize = 64;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
        static REPEAT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
        static FAILED: RefCell<VecDeque<(RunnerId, BoxMessage)>> = RefCell::default();
        static ARMED: RefCell<HashSet<String>> = RefCell::default();
    }

    /// Switches a bug on for this thread.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// Each so manieth message of a runner comes twice on this thread, from now on; 0 for none.
    pub fn repeat_each(nth: usize) {
        REPEAT.set((nth, 0));
    }

    /// How often the next message of a runner is taken.
    pub(crate) fn copies() -> usize {
        let (nth, count) = REPEAT.get();
        REPEAT.set((nth, count + 1));
        if nth > 0 && count.is_multiple_of(nth) { 2 } else { 1 }
    }

    /// A runner said that it failed: it may say so again when nobody wants to hear it any more.
    pub(crate) fn remember(runner: &RunnerId, report: &BoxMessage) {
        if REPEAT.get().0 > 0 && report.state() == BoxState::Failed {
            FAILED.with_borrow_mut(|failed| {
                failed.push_back((runner.clone(), report.clone()));
                if failed.len() > FAILED_MAX {
                    failed.pop_front();
                }
            });
        }
    }

    /// What a runner says once more, with one of its messages: the caller leaves out what is not outdated.
    pub(crate) fn outdated(runner: &RunnerId) -> Option<BoxMessage> {
        FAILED.with_borrow(|failed| {
            let mut of_it = failed.iter().filter(|(who, _)| who == runner);
            of_it.next_back().map(|(_, report)| report.clone())
        })
    }

    /// Whether a bug is switched on.
    pub(crate) fn has(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// A server begins: the timers of the last one are gone.
    pub(crate) fn disarm() {
        ARMED.take();
    }

    /// The timer of a sandbox is set.
    pub(crate) fn arm(sandbox: &str) {
        ARMED.with_borrow_mut(|armed| armed.insert(sandbox.to_owned()));
    }

    /// Whether the timer of a sandbox was set by this server.
    pub(crate) fn is_armed(sandbox: &str) -> bool {
        ARMED.with_borrow(|armed| armed.contains(sandbox))
    }
}

#[cfg(not(feature = "planted"))]
mod switched {
    use dispense_api::id::RunnerId;
    use dispense_api::runner::Box as BoxMessage;

    use super::Bug;

    pub(crate) const fn has(_: Bug) -> bool {
        false
    }

    pub(crate) const fn copies() -> usize {
        1
    }

    pub(crate) const fn remember(_: &RunnerId, _: &BoxMessage) {}

    pub(crate) const fn outdated(_: &RunnerId) -> Option<BoxMessage> {
        None
    }

    pub(crate) const fn disarm() {}

    pub(crate) const fn arm(_: &str) {}

    pub(crate) const fn is_armed(_: &str) -> bool {
        true
    }
}

pub(crate) use switched::{arm, copies, disarm, has, is_armed, outdated, remember};
#[cfg(feature = "planted")]
pub use switched::{plant, repeat_each};
