//! Retries of idempotent calls: few, with full jitter, and only when the server may be back soon.

use std::time::Duration;

use dispense_api::error::{Code, Error};
use tonic::{Response, Status};

const ATTEMPTS_MAX: u32 = 4;
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
        if error.code != Code::Unavailable || attempt == ATTEMPTS_MAX {
            return Err(error);
        }
        tokio::time::sleep(jitter(delay)).await;
        delay *= 2;
    }
    Err(Error::new(Code::Internal, "retry", "the attempts ended"))
}

pub(crate) fn jitter(cap: Duration) -> Duration {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).expect("the kernel gives randomness to every process");
    cap.mul_f64(f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX))
}
