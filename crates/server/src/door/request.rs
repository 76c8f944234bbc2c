//! What every door parses the same way: bounds of waits and pages. No door, and no decision.

use std::time::Duration;

use dispense_api::error::{Code, Error};
use dispense_api::limits;

use crate::auth::Principal;
use crate::sandbox::spec::invalid;

/// Who calls: the doors were passed with a key, so that it is known.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> Result<Principal, Error> {
    let missing = || Error::new(Code::Internal, "caller", "the caller is not known here");
    request.extensions().get::<Principal>().cloned().ok_or_else(missing)
}

/// How long to wait, for a caller who asked to.
pub(super) fn wait_bound(wait: bool, secs: u32) -> Result<Option<Duration>, Error> {
    if wait { wait_timeout(secs).map(Some) } else { Ok(None) }
}

/// A bound of a wait.
pub(super) fn wait_timeout(secs: u32) -> Result<Duration, Error> {
    match secs {
        0 => Ok(Duration::from_secs(limits::WAIT_DEFAULT_SECS.into())),
        1..=limits::WAIT_MAX_SECS => Ok(Duration::from_secs(secs.into())),
        _ => Err(invalid("timeout_secs", format_args!("{secs} is over the limit of {}", limits::WAIT_MAX_SECS))),
    }
}

/// Rows of one page.
pub(super) fn page_size(size: u32) -> Result<usize, Error> {
    match size {
        0 => Ok(limits::PAGE_DEFAULT as usize),
        1..=limits::PAGE_MAX => Ok(size as usize),
        _ => Err(invalid("page_size", format_args!("{size} is over the limit of {}", limits::PAGE_MAX))),
    }
}

/// Where the next page begins: time and id of the last row of this one.
pub(crate) fn parse_page_token(token: &str) -> Result<Option<(i64, String)>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let parsed = token.split_once('.').and_then(|(at, id)| {
        let plain = id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Some((at.parse::<i64>().ok()?, plain.then(|| id.to_owned())?))
    });
    parsed.map(Some).ok_or_else(|| invalid("page_token", "it is not a token that this server gave"))
}

/// The token after a row.
pub(super) fn page_token(created_at: i64, id: &str) -> String {
    format!("{created_at}.{id}")
}
