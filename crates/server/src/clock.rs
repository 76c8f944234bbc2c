//! Time as the rows have it: microseconds since 1970 that pass evenly. The machine's clock may be set while the
//! server runs; then deadlines would pass an hour early, or an hour late. So its time is taken once, and counted on
//! by the steady clock; when both drift apart, the deadlines in the rows are moved along.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

pub(crate) const MICROS_PER_SEC: i64 = 1_000_000;
/// A clock that is corrected slowly is followed in steps of this; anything above is a jump.
const DRIFT_MAX_MICROS: i64 = 2_000_000;

/// Reads the machine's clock.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

struct Anchor {
    micros: i64,
    at: Instant,
}

/// The server's clock.
pub(crate) struct Clock {
    wall: WallClock,
    anchor: Mutex<Anchor>,
}

impl Clock {
    pub(crate) fn new(wall: WallClock) -> Self {
        let anchor = Anchor { micros: micros(wall()), at: Instant::now() };
        Self { wall, anchor: Mutex::new(anchor) }
    }

    /// Microseconds since 1970.
    pub(crate) fn now(&self) -> i64 {
        let anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        anchor.micros.saturating_add(i64::try_from(anchor.at.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// By how much the machine's clock has left this one, when that is a jump.
    pub(crate) fn jump(&self) -> Option<i64> {
        let drift = micros((self.wall)()).saturating_sub(self.now());
        (drift.abs() > DRIFT_MAX_MICROS).then_some(drift)
    }

    /// Follows a jump.
    pub(crate) fn follow(&self, jump: i64) {
        self.anchor.lock().unwrap_or_else(PoisonError::into_inner).micros += jump;
    }
}

/// Microseconds since 1970.
pub(crate) fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
