//! Waiting for conditions, with a deadline that tells the last value.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Between two looks at a condition.
const LOOK_INTERVAL_MS: u64 = 10;

/// Looks at `value` until `done` says so; panics with the last value after `deadline`.
pub fn until<T: Debug>(what: &str, deadline: Duration, mut value: impl FnMut() -> T, done: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + deadline;
    loop {
        let seen = value();
        if done(&seen) {
            return seen;
        }
        assert!(Instant::now() < end, "{what} within {deadline:?}; last seen: {seen:?}");
        std::thread::sleep(Duration::from_millis(LOOK_INTERVAL_MS));
    }
}
