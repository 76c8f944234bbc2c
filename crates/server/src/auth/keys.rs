//! API keys: `dsp_` and 40 hex digits, stored hashed, looked up in memory.

use std::collections::HashMap;
use std::sync::RwLock;
use std::time::SystemTime;

use dispense_api::error::{Code, Error};
use http::HeaderMap;

use super::Role;
use super::secret::hash;
use crate::clock::micros;

/// Before the 40 hex digits.
pub(crate) const KEY_PREFIX: &str = "dsp_";
/// Characters that are shown in lists.
const SHOWN_CHARS: usize = 12;

/// A key, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiKey {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) prefix: String,
    pub(crate) hash: String,
    pub(crate) role: Role,
    pub(crate) created_at: i64,
    pub(crate) expires_at: Option<i64>,
}

impl ApiKey {
    /// The record of a key.
    pub(crate) fn of(secret: &str, name: &str, role: Role) -> Self {
        let hash = hash(secret);
        Self {
            id: format!("key{}", &hash[..20]),
            name: name.to_owned(),
            prefix: secret.chars().take(SHOWN_CHARS).collect(),
            hash,
            role,
            created_at: micros(SystemTime::now()),
            expires_at: None,
        }
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) key_id: String,
    pub(crate) role: Role,
}

/// Every valid key.
pub(crate) struct Keys {
    /// By hash: a timing of the lookup tells something of the hash and nothing of the key.
    by_hash: RwLock<HashMap<String, ApiKey>>,
}

impl Keys {
    pub(crate) fn new(keys: impl IntoIterator<Item = ApiKey>) -> Self {
        Self { by_hash: RwLock::new(keys.into_iter().map(|key| (key.hash.clone(), key)).collect()) }
    }

    /// Who the headers say is calling. Credentials stand in headers only, never in a query.
    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, Error> {
        let missing = || {
            unauthenticated(
                "an API key is missing: send `authorization: Bearer dsp_…` (`dispense config show` tells yours)",
            )
        };
        let secret = credential(headers).ok_or_else(missing)?;
        let unknown =
            || unauthenticated("the API key is not valid: it was mistyped, has expired, or is of another server");
        if !secret.starts_with(KEY_PREFIX) {
            return Err(unknown());
        }
        let keys = self.by_hash.read().expect("no holder panics");
        let key = keys.get(&hash(secret)).ok_or_else(unknown)?;
        if key.expires_at.is_some_and(|at| at <= micros(SystemTime::now())) {
            return Err(unknown());
        }
        Ok(Principal { key_id: key.id.clone(), role: key.role })
    }
}

/// The bearer token or API key of a request.
pub(crate) fn credential(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()))
}

/// A refusal for want of a valid credential.
pub(crate) fn unauthenticated(message: &str) -> Error {
    Error::new(Code::Unauthenticated, "unauthenticated", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().expect("a header"))])
    }

    #[test]
    fn a_key_opens_in_either_header_and_nothing_else_does() {
        let secret = super::super::secret::random(KEY_PREFIX);
        let keys = Keys::new([ApiKey::of(&secret, "ci", Role::Member)]);
        for headers in [headers("authorization", &format!("Bearer {secret}")), headers("x-api-key", &secret)] {
            assert_eq!(keys.authenticate(&headers).map(|principal| principal.role), Ok(Role::Member));
        }
        let other = super::super::secret::random(KEY_PREFIX);
        for wrong in ["", "Bearer", "Bearer ", &format!("Basic {secret}"), &format!("Bearer {other}"), &secret] {
            assert!(keys.authenticate(&headers("authorization", wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_expired_key_is_refused() {
        let secret = super::super::secret::random(KEY_PREFIX);
        let keys = Keys::new([ApiKey { expires_at: Some(1), ..ApiKey::of(&secret, "old", Role::Admin) }]);
        assert!(keys.authenticate(&headers("x-api-key", &secret)).is_err());
    }
}
