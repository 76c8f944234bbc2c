//! Retries of idempotent calls: few, with full jitter, and only when the server may be back soon.

use std::time::Duration;

use dispense_api::error::{Code, Error};
use tonic::{Response, Status};

const ATTEMPTS_MAX: u32 = 4;
/// A caller who called too often waits for at most this long before it is told.
const RETRY_AFTER_MAX_SECS: u64 = 5;
const DELAY_MIN: Duration = Duration::from_millis(100);

/// An id that nobody guesses.
pub(crate) fn random_hex() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel gives randomness to every process");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Calls until it succeeds, fails for good, or has been tried often enough.
pub(crate) async fn idempotent<T, F>(call: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut delay = DELAY_MIN;
    for attempt in 1.. {
        let error = match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => crate::error::of(status),
        };
        let wait = match error.code {
            Code::Unavailable => jitter(delay),
            // The server says when it takes the next one.
            Code::ResourceExhausted => match error.details.get("retry_after_secs").map(|secs| secs.parse()) {
                Some(Ok(secs)) if secs <= RETRY_AFTER_MAX_SECS => Duration::from_secs(secs) + jitter(delay),
                _ => return Err(error),
            },
            _ => return Err(error),
        };
        if attempt == ATTEMPTS_MAX {
            return Err(error);
        }
        tokio::time::sleep(wait).await;
        delay *= 2;
    }
    Err(Error::new(Code::Internal, "retry", "the attempts ended"))
}

pub(crate) fn jitter(cap: Duration) -> Duration {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).expect("the kernel gives randomness to every process");
    cap.mul_f64(f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX))
}
