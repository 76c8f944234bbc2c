//! Making, replacing and ending API keys. The row is written first; then the key is taken, or is not any more.

use std::time::Duration;

use dispense_api::error::{Code, Error};

use super::keys::{KEY_PREFIX, KEY_PREFIXES};
use super::secret::random;
use super::{ApiKey, Keys, Role, Scope};
use crate::clock::MICROS_PER_SEC;
use crate::sandbox::spec::{clip, invalid};
use crate::store::{Store, keys};

/// Of a name that people give.
const NAME_MAX_BYTES: usize = 63;
/// A century: longer than anybody means.
const EXPIRY_MAX_SECS: u64 = 100 * 366 * 86_400;
/// How long a replaced key is still taken when nobody says otherwise.
const OVERLAP_DEFAULT: Duration = Duration::from_secs(86_400);

/// What an administrator asks for, parsed.
#[derive(Debug, Clone)]
pub(crate) struct NewKey {
    pub(super) name: String,
    role: Role,
    scope: Scope,
    expires_in: Option<Duration>,
    prefix: &'static str,
}

impl NewKey {
    /// Parses what came from outside; 0 seconds mean that it does not end.
    pub(crate) fn parse(
        name: String,
        role: Role,
        scope: Scope,
        expires_in_secs: u64,
        e2b: bool,
    ) -> Result<Self, Error> {
        if name.is_empty() || name.len() > NAME_MAX_BYTES || name.chars().any(char::is_control) {
            return Err(invalid("name", format_args!("`{}`: give 1 to {NAME_MAX_BYTES} bytes", clip(&name))));
        }
        if role == Role::Admin && scope != Scope::All {
            return Err(invalid("role", "an administrator's key has no bounds: leave the group and the sandboxes out"));
        }
        let expires_in = expiry("expires_in_secs", expires_in_secs)?;
        let prefix = KEY_PREFIXES[usize::from(e2b)];
        Ok(Self { name, role, scope, expires_in: (!expires_in.is_zero()).then_some(expires_in), prefix })
    }
}

fn expiry(field: &str, secs: u64) -> Result<Duration, Error> {
    if secs > EXPIRY_MAX_SECS {
        return Err(invalid(field, format_args!("{secs} is over the limit of {EXPIRY_MAX_SECS}")));
    }
    Ok(Duration::from_secs(secs))
}

fn after(now: i64, duration: Duration) -> i64 {
    now.saturating_add(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX).saturating_mul(MICROS_PER_SEC))
}

impl Keys {
    /// Makes a key; with the secret, which is told once.
    pub(crate) async fn issue(&self, store: &Store, new: NewKey, now: i64) -> Result<(ApiKey, String), Error> {
        let secret = random(new.prefix);
        let key = ApiKey {
            scope: new.scope,
            created_at: now,
            expires_at: new.expires_in.map(|time| after(now, time)),
            ..ApiKey::of(&secret, &new.name, new.role)
        };
        let row = key.clone();
        let write = store.write(move |tx| {
            let row = row.clone();
            Box::pin(async move { keys::insert(tx, &row).await })
        });
        write.await?;
        self.keep(key.clone());
        Ok((key, secret))
    }

    /// Makes a key that replaces another, which ends after `overlap_secs`.
    pub(crate) async fn rotate(
        &self,
        store: &Store,
        which: &str,
        overlap_secs: Option<u64>,
        now: i64,
    ) -> Result<(ApiKey, String), Error> {
        let old = self.active(which, now)?;
        let overlap = overlap_secs.map_or(Ok(OVERLAP_DEFAULT), |secs| expiry("overlap_secs", secs))?;
        let prefix = KEY_PREFIXES.into_iter().find(|prefix| old.prefix.starts_with(prefix)).unwrap_or(KEY_PREFIX);
        let secret = random(prefix);
        let (scope, account) = (old.scope.clone(), old.account.clone());
        let new = ApiKey {
            scope,
            account,
            created_at: now,
            expires_at: old.expires_at,
            ..ApiKey::of(&secret, &old.name, old.role)
        };
        let end = after(now, overlap);
        let old = ApiKey { expires_at: Some(old.expires_at.map_or(end, |at| at.min(end))), ..old };
        let rows = (old.clone(), new.clone());
        let write = store.write(move |tx| {
            let (old, new) = rows.clone();
            Box::pin(async move {
                keys::insert(&mut *tx, &new).await?;
                keys::set_end(tx, &old).await
            })
        });
        write.await?;
        self.keep(new.clone());
        self.keep(old);
        Ok((new, secret))
    }

    /// Ends a key at once.
    pub(crate) async fn revoke(&self, store: &Store, which: &str, now: i64) -> Result<ApiKey, Error> {
        let old = self.find(which, now)?;
        if !old.is_active(now) {
            return Ok(old);
        }
        let is_admin = |key: &&ApiKey| key.role == Role::Admin && key.is_active(now) && key.id != old.id;
        if old.role == Role::Admin && !self.all().iter().any(|key| is_admin(&key)) {
            let message = "this is the last administrator's key: make another one first, or rotate it";
            return Err(Error::new(Code::FailedPrecondition, "last_admin", message));
        }
        let ended = ApiKey { revoked_at: Some(now), ..old };
        let row = ended.clone();
        let write = store.write(move |tx| {
            let row = row.clone();
            Box::pin(async move { keys::set_end(tx, &row).await })
        });
        write.await?;
        self.keep(ended.clone());
        Ok(ended)
    }

    fn active(&self, which: &str, now: i64) -> Result<ApiKey, Error> {
        let key = self.find(which, now)?;
        if key.is_active(now) {
            return Ok(key);
        }
        let message = format!("key {} has ended: create another one", key.prefix);
        Err(Error::new(Code::FailedPrecondition, "key_ended", message))
    }

    /// By id, prefix or name; of several with a name the one that is active.
    fn find(&self, which: &str, now: i64) -> Result<ApiKey, Error> {
        let all = self.all();
        let exact = all.iter().find(|key| key.id == which || key.prefix == which);
        if let Some(key) = exact {
            return Ok(key.clone());
        }
        let named: Vec<&ApiKey> = all.iter().filter(|key| key.name == which).collect();
        let active: Vec<&&ApiKey> = named.iter().filter(|key| key.is_active(now)).collect();
        match (active.as_slice(), named.as_slice()) {
            ([key], _) => Ok((**key).clone()),
            ([], [key, ..]) => Ok((*key).clone()),
            ([], []) => {
                let message = format!("key `{}` does not exist: `dispense key list` shows those that do", clip(which));
                Err(Error::new(Code::NotFound, "key_unknown", message))
            }
            (several, _) => {
                let prefixes: Vec<&str> = several.iter().map(|key| key.prefix.as_str()).collect();
                let message =
                    format!("several keys have the name `{}`: say which of {}", clip(which), prefixes.join(", "));
                Err(Error::new(Code::FailedPrecondition, "key_ambiguous", message))
            }
        }
    }
}

#[cfg(test)]
mod tests {

    use http::HeaderMap;

    use super::*;

    fn headers(secret: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static("x-api-key"), secret.parse().expect("a header"))])
    }

    async fn store(folder: &tempfile::TempDir) -> Store {
        Store::in_folder(folder.path()).await
    }

    fn now() -> i64 {
        crate::clock::micros(std::time::SystemTime::now())
    }

    #[tokio::test]
    async fn a_key_opens_until_it_is_revoked_and_also_after_a_restart_only_then() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let (store, keys) = (store(&folder).await, Keys::new([]));
        let new = NewKey::parse("ci".into(), Role::Member, Scope::Group("g".into()), 0, false).expect("valid");
        let (key, secret) = keys.issue(&store, new, now()).await.expect("issued");
        assert!(secret.starts_with("dsp_") && secret.len() == 44 && secret.starts_with(&key.prefix));
        let caller = keys.authenticate(&headers(&secret)).expect("it opens");
        assert_eq!((caller.role, &caller.scope), (Role::Member, &Scope::Group("g".into())));
        let again = Keys::new(crate::store::keys::all(store.readers()).await.expect("read"));
        assert_eq!(again.authenticate(&headers(&secret)), Ok(caller));
        keys.revoke(&store, "ci", now()).await.expect("revoked");
        keys.revoke(&store, &key.id, now()).await.expect("a repeated one succeeds");
        assert!(keys.authenticate(&headers(&secret)).is_err());
        let again = Keys::new(crate::store::keys::all(store.readers()).await.expect("read"));
        assert!(again.authenticate(&headers(&secret)).is_err());
    }

    #[tokio::test]
    async fn a_rotated_key_and_its_successor_are_the_same_account_while_they_overlap() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let (store, keys) = (store(&folder).await, Keys::new([]));
        let new = NewKey::parse("sdk".into(), Role::Member, Scope::All, 0, true).expect("valid");
        let (old, old_secret) = keys.issue(&store, new, now()).await.expect("issued");
        let (new, new_secret) = keys.rotate(&store, "sdk", None, now()).await.expect("rotated");
        assert!(new_secret.starts_with("e2b_"));
        for secret in [&old_secret, &new_secret] {
            assert_eq!(keys.authenticate(&headers(secret)).expect("both open").account, old.account);
        }
        // Without an overlap the old one ends at once.
        let (_, last) = keys.rotate(&store, &new.prefix, Some(0), now()).await.expect("rotated");
        assert!(keys.authenticate(&headers(&new_secret)).is_err());
        assert!(keys.authenticate(&headers(&last)).is_ok());
    }

    #[tokio::test]
    async fn the_last_administrator_is_not_locked_out() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let (store, keys) = (store(&folder).await, Keys::new([]));
        let new = || NewKey::parse("root".into(), Role::Admin, Scope::All, 0, false).expect("valid");
        let (first, _) = keys.issue(&store, new(), now()).await.expect("issued");
        let refused = keys.revoke(&store, "root", now()).await.expect_err("it is the last");
        assert_eq!(refused.code, Code::FailedPrecondition);
        keys.issue(&store, new(), now()).await.expect("issued");
        assert_eq!(keys.revoke(&store, "root", now()).await.expect_err("which?").reason, "key_ambiguous");
        keys.revoke(&store, &first.id, now()).await.expect("another is left");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_field() {
        let parse = |name: &str, role, scope, secs| NewKey::parse(name.into(), role, scope, secs, false);
        assert_eq!(parse("", Role::Viewer, Scope::All, 0).expect_err("no name").details["field"], "name");
        let scope = Scope::Group("g".into());
        assert_eq!(parse("a", Role::Admin, scope, 0).expect_err("bounded").details["field"], "role");
        let long = parse("a", Role::Viewer, Scope::All, u64::MAX).expect_err("too long");
        assert_eq!(long.details["field"], "expires_in_secs");
    }
}
