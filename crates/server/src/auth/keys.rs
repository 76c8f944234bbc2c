//! API keys: `dsp_` and 40 hex digits, stored hashed, looked up in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::RwLock;
use std::time::{Duration, SystemTime};

use dispense_api::error::{Code, Error};
use http::HeaderMap;
use tokio::sync::watch;

use super::secret::{PREFIXES, hash};
use super::{Role, Scope};
use crate::clock::micros;
use crate::relay::Origin;

/// Before the 40 hex digits.
pub(crate) const KEY_PREFIX: &str = "dsp_";
/// The second is what some SDKs insist on.
pub(crate) const KEY_PREFIXES: [&str; 2] = [KEY_PREFIX, "e2b_"];
/// At the latest, whether a key has expired: the machine's clock may be set.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Before the digits of an id, which are those of the secret's hash.
const ID_PREFIX: &str = "key";
const ID_DIGITS: usize = 20;
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
    /// Whom it belongs to: a key and those that replace it have the same.
    pub(crate) account: String,
    pub(crate) scope: Scope,
    pub(crate) revoked_at: Option<i64>,
}

impl ApiKey {
    /// The record of a key.
    pub(crate) fn of(secret: &str, name: &str, role: Role) -> Self {
        let hash = hash(secret);
        let id = format!("{ID_PREFIX}{}", &hash[..ID_DIGITS]);
        Self {
            account: id.clone(),
            scope: Scope::All,
            revoked_at: None,
            id,
            name: name.to_owned(),
            prefix: secret.chars().take(SHOWN_CHARS).collect(),
            hash,
            role,
            created_at: micros(SystemTime::now()),
            expires_at: None,
        }
    }
}

impl ApiKey {
    /// Whether it opens anything.
    pub(crate) fn is_active(&self, now: i64) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| at > now)
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) key_id: String,
    pub(crate) account: String,
    pub(crate) role: Role,
    pub(crate) scope: Scope,
    /// Of this request.
    pub(crate) origin: Origin,
}

/// Every key; those that have ended open nothing.
pub(crate) struct Keys {
    /// By hash: a timing of the lookup tells something of the hash and nothing of the key. In their order, since the
    /// digits of an id are the first of a hash.
    by_hash: RwLock<BTreeMap<String, ApiKey>>,
    /// Counts changes.
    changed: watch::Sender<u64>,
}

impl Keys {
    pub(crate) fn new(keys: impl IntoIterator<Item = ApiKey>) -> Self {
        let by_hash = RwLock::new(keys.into_iter().map(|key| (key.hash.clone(), key)).collect());
        Self { by_hash, changed: watch::Sender::new(0) }
    }

    /// Takes a key, or what has become of it.
    pub(super) fn keep(&self, key: ApiKey) {
        self.by_hash.write().expect("no holder panics").insert(key.hash.clone(), key);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Every key, newest first.
    pub(crate) fn all(&self) -> Vec<ApiKey> {
        let mut all: Vec<ApiKey> = self.by_hash.read().expect("no holder panics").values().cloned().collect();
        all.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        all
    }

    /// The holder of an active key.
    fn holder(&self, find: impl FnOnce(&BTreeMap<String, ApiKey>, i64) -> Option<&ApiKey>) -> Option<Principal> {
        let (keys, now) = (self.by_hash.read().expect("no holder panics"), micros(SystemTime::now()));
        let key = find(&keys, now).filter(|key| key.is_active(now))?;
        let (key_id, account) = (key.id.clone(), key.account.clone());
        Some(Principal { key_id, account, role: key.role, scope: key.scope.clone(), origin: Origin::default() })
    }

    /// The holder of the key with this id.
    pub(crate) fn of_id(&self, id: &str) -> Option<Principal> {
        self.holder(|keys, _| by_id(keys, id))
    }

    /// Returns when the key with this id opens nothing any more: what it has opened is to end. Where no key was asked
    /// for, nothing ends.
    pub(crate) async fn ended(&self, id: &str) {
        if id.is_empty() {
            return std::future::pending().await;
        }
        let mut changed = self.changed.subscribe();
        loop {
            let left = {
                let (keys, now) = (self.by_hash.read().expect("no holder panics"), micros(SystemTime::now()));
                let Some(key) = by_id(&keys, id).filter(|key| key.is_active(now)) else { return };
                key.expires_at.map(|at| Duration::from_micros(u64::try_from(at - now).unwrap_or(0)))
            };
            let expired = async {
                match left {
                    // The clock may be set meanwhile.
                    Some(left) => tokio::time::sleep(left.min(LOOK_AGAIN)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = expired => {}
                _ = changed.changed() => {}
            }
        }
    }

    /// The holder of one of an account's keys: those of one account open the same.
    pub(crate) fn of_account(&self, account: &str) -> Option<Principal> {
        self.holder(|keys, now| keys.values().find(|key| key.account == account && key.is_active(now)))
    }

    /// The holder of a key.
    pub(crate) fn open(&self, secret: &str) -> Option<Principal> {
        let is_one = KEY_PREFIXES.iter().any(|prefix| secret.starts_with(prefix));
        is_one.then(|| self.holder(|keys, _| keys.get(&hash(secret))))?
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
        self.open(secret).ok_or_else(unknown)
    }
}

/// The key with an id.
fn by_id<'a>(keys: &'a BTreeMap<String, ApiKey>, id: &str) -> Option<&'a ApiKey> {
    let from = Bound::Included(id.strip_prefix(ID_PREFIX)?);
    let (_, key) = keys.range::<str, _>((from, Bound::Unbounded)).next()?;
    (key.id == id).then_some(key)
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

/// Whether a text has the form of a key's id.
pub(crate) fn is_key_id(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.strip_prefix(ID_PREFIX).is_some_and(|digits| digits.len() == ID_DIGITS && digits.bytes().all(is_digit))
}

/// Whether a text has the form of what opens something of this server.
pub(crate) fn is_platform_secret(text: &str) -> bool {
    PREFIXES.iter().any(|prefix| text.starts_with(prefix))
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
        assert!(keys.all().iter().all(|key| is_key_id(&key.id)), "{:?}", keys.all());
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
