//! Requests a minute of one account: a token bucket that holds a minute's worth.

use std::num::NonZeroU32;

use dispense_api::error::{Code, Error};
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

/// Seconds until the next request is taken, in an error's details; also the header `retry-after`.
pub(crate) const RETRY_AFTER: &str = "retry_after_secs";

/// The buckets of all accounts. BOUND: one an account, and accounts are made by administrators.
pub(crate) struct Limiter {
    per_minute: NonZeroU32,
    buckets: RateLimiter<String, HashMapStateStore<String>, DefaultClock>,
}

impl Limiter {
    /// Full buckets.
    pub(crate) fn new(per_minute: NonZeroU32) -> Self {
        Self { per_minute, buckets: RateLimiter::hashmap(Quota::per_minute(per_minute)) }
    }

    /// Takes one request of an account.
    pub(crate) fn take(&self, account: &String) -> Result<(), Error> {
        let Err(until) = self.buckets.check_key(account) else { return Ok(()) };
        let wait = until.wait_time_from(DefaultClock::default().now());
        // Rounded up: a caller who waits that long gets in.
        let secs = wait.as_secs() + 1;
        let message =
            format!("over the limit of {} requests a minute for this account: try again in {secs} s", self.per_minute);
        Err(Error::new(Code::ResourceExhausted, "rate_limited", message).with(RETRY_AFTER, secs.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_its_own_bucket_and_is_told_when_to_come_back() {
        let limiter = Limiter::new(NonZeroU32::new(3).expect("not zero"));
        let (ann, bob) = ("ann".to_owned(), "bob".to_owned());
        for _ in 0..3 {
            assert_eq!(limiter.take(&ann), Ok(()));
        }
        let refused = limiter.take(&ann).expect_err("the bucket is empty");
        let secs: u64 = refused.details[RETRY_AFTER].parse().expect("a number");
        assert_eq!(refused.code, Code::ResourceExhausted);
        assert!((1..=20).contains(&secs), "{secs}");
        assert_eq!(limiter.take(&bob), Ok(()));
    }
}
