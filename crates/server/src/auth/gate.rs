//! The gate of every door: who calls, whether the route takes that role, and whether the account has called too
//! often.

use std::num::NonZeroU32;

use dispense_api::error::{Code, Error};
use dispense_api::trace::TRACEPARENT;
use http::HeaderMap;

use super::limit::Limiter;
use super::table::Need;
use super::{Keys, Principal, Role, Scope};
use crate::relay::Origin;

/// What is asked of callers.
pub(crate) struct Gate {
    keys: std::sync::Arc<Keys>,
    /// Without it everybody is an administrator: for a machine of one's own.
    key_required: bool,
    limiter: Option<Limiter>,
}

/// A caller who is not let in.
#[derive(Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) error: Error,
    /// Who it was, where the key says so.
    pub(crate) caller: Option<Box<Principal>>,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, caller: None }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

impl Gate {
    pub(crate) fn new(keys: std::sync::Arc<Keys>, key_required: bool, per_minute: Option<NonZeroU32>) -> Self {
        Self { keys, key_required, limiter: per_minute.map(Limiter::new) }
    }

    /// Who calls, if what the route needs is there; nobody where nothing is asked. Open routes and the reports of
    /// agents do not count as requests.
    pub(crate) fn admit(&self, headers: &HeaderMap, need: Option<Need>) -> Result<Option<Principal>, Refused> {
        let mut caller = self.authorise(headers, need)?;
        if let Some(caller) = &mut caller {
            let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
            caller.origin = Origin { request_id: text("x-request-id"), trace: text(TRACEPARENT) };
        }
        match (&self.limiter, &caller) {
            (Some(limiter), Some(known)) => match limiter.take(&known.account) {
                Ok(()) => Ok(caller),
                Err(error) => Err(Refused { error, caller: caller.map(Box::new) }),
            },
            _ => Ok(caller),
        }
    }

    /// The holder of what was made with an API key; where none is asked for, nobody's key makes it.
    pub(crate) fn holder(&self, key_id: &str) -> Option<Principal> {
        if key_id.is_empty() && !self.key_required { Some(anybody()) } else { self.keys.of_id(key_id) }
    }

    fn authorise(&self, headers: &HeaderMap, need: Option<Need>) -> Result<Option<Principal>, Refused> {
        let unknown = || {
            let message = "there is no such method here: the client may be newer than the server";
            Error::new(Code::Unimplemented, "route_unknown", message)
        };
        match need.ok_or_else(unknown)? {
            // The handler checks the sandbox's token, which only it can.
            Need::Open | Need::SandboxToken => Ok(None),
            Need::Role(_) if !self.key_required => Ok(Some(anybody())),
            Need::Role(role) => {
                let principal = self.keys.authenticate(headers)?;
                if principal.role < role {
                    let (wanted, there) = (role.as_str(), principal.role.as_str());
                    let message = format!("this needs the role `{wanted}`, and the API key has `{there}`");
                    let error = Error::new(Code::PermissionDenied, "role", message);
                    return Err(Refused { error, caller: Some(Box::new(principal)) });
                }
                Ok(Some(principal))
            }
        }
    }
}

fn anybody() -> Principal {
    let nobody = String::new;
    Principal { key_id: nobody(), account: nobody(), role: Role::Admin, scope: Scope::All, origin: Origin::default() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dispense_api::method::Method;

    use super::*;
    use crate::auth::secret::random;
    use crate::auth::{ApiKey, table};

    fn headers(secret: &str) -> HeaderMap {
        let value = format!("Bearer {secret}").parse().expect("a header");
        HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
    }

    #[test]
    fn every_route_takes_the_roles_that_its_row_says_and_no_other() {
        let secrets: Vec<(Role, String)> = Role::ALL.into_iter().map(|role| (role, random("dsp_"))).collect();
        let keys = Keys::new(secrets.iter().map(|(role, secret)| ApiKey::of(secret, role.as_str(), *role)));
        let gate = Gate::new(Arc::new(keys), true, None);
        let data = Method::ALL.iter().map(|method| table::grpc(&format!("/{}", method.path())));
        let grpc = table::GRPC.iter().map(|(path, _)| table::grpc(path));
        let rest = table::REST.iter().map(|(verb, pattern, _)| table::rest(verb, pattern));
        for need in data.chain(grpc).chain(rest) {
            for (role, secret) in &secrets {
                let allowed = match need {
                    None => false,
                    Some(Need::Open | Need::SandboxToken) => true,
                    Some(Need::Role(least)) => *role >= least,
                };
                assert_eq!(gate.admit(&headers(secret), need).is_ok(), allowed, "{need:?} {role:?}");
            }
            let stranger = gate.admit(&HeaderMap::new(), need).is_ok();
            assert_eq!(stranger, matches!(need, Some(Need::Open | Need::SandboxToken)), "{need:?}");
        }
    }

    #[test]
    fn an_account_over_its_limit_is_refused_and_health_is_not() {
        let secret = random("dsp_");
        let keys = Arc::new(Keys::new([ApiKey::of(&secret, "ci", Role::Viewer)]));
        let gate = Gate::new(keys, true, NonZeroU32::new(1));
        let need = Some(Need::Role(Role::Viewer));
        assert!(gate.admit(&headers(&secret), need).is_ok());
        assert_eq!(gate.admit(&headers(&secret), need).expect_err("over it").error.code, Code::ResourceExhausted);
        for _ in 0..10 {
            assert_eq!(gate.admit(&headers(&secret), Some(Need::Open)), Ok(None));
        }
    }

    #[test]
    fn without_a_required_key_everybody_is_an_administrator() {
        let gate = Gate::new(Arc::new(Keys::new([])), false, None);
        let caller = gate.admit(&HeaderMap::new(), Some(Need::Role(Role::Admin))).expect("let in");
        assert_eq!(caller.map(|caller| caller.role), Some(Role::Admin));
        assert!(gate.admit(&HeaderMap::new(), None).is_err(), "what does not exist is not there for anybody");
    }
}
