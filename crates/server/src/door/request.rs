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

/// A part of a list, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    /// Rows.
    pub(crate) limit: usize,
    /// Where it begins: after the row of this time and id, the last of the page before.
    pub(crate) before: Option<(i64, String)>,
}

impl Page {
    /// Parses what came from outside.
    pub(crate) fn parse(size: u32, token: &str) -> Result<Self, Error> {
        Ok(Self { limit: page_size(size)?, before: parse_token(token)? })
    }

    /// The token of the page after these rows; empty where there is none. `place` tells a row's time and id.
    pub(crate) fn next_token<'a, T>(&self, rows: &'a [T], place: impl Fn(&'a T) -> (i64, &'a str)) -> String {
        let last = rows.last().filter(|_| rows.len() == self.limit);
        last.map(place).map(|(created_at, id)| format!("{created_at}.{id}")).unwrap_or_default()
    }
}

fn parse_token(token: &str) -> Result<Option<(i64, String)>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let parsed = token.split_once('.').and_then(|(at, id)| {
        let plain = id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Some((at.parse::<i64>().ok()?, plain.then(|| id.to_owned())?))
    });
    parsed.map(Some).ok_or_else(|| invalid("page_token", "it is not a token that this server gave"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_leads_to_the_next_until_the_list_ends() {
        let rows = [(7, "a"), (5, "b")];
        let place = |row: &(i64, &'static str)| *row;
        let first = Page::parse(2, "").expect("valid");
        let token = first.next_token(&rows, place);
        let second = Page::parse(2, &token).expect("our own");
        assert_eq!(second, Page { limit: 2, before: Some((5, "b".to_owned())) });
        assert_eq!(second.next_token(&rows[..1], place), "");
        assert_eq!(second.next_token(&[], place), "");
    }

    #[test]
    fn a_page_that_cannot_be_is_refused_with_its_field() {
        for (size, token, field) in [
            (limits::PAGE_MAX + 1, "", "page_size"),
            (0, "nonsense", "page_token"),
            (0, "5", "page_token"),
            (0, "x.a", "page_token"),
            (0, "5.a/b", "page_token"),
        ] {
            let error = Page::parse(size, token).expect_err(token);
            assert_eq!(error.details["field"], field);
        }
        assert_eq!(Page::parse(0, "").map(|page| page.limit), Ok(limits::PAGE_DEFAULT as usize));
    }
}
