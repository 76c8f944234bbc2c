//! Who may call: API keys for people and programs, tokens for sandboxes and runners. Each kind opens only
//! what it is for.

pub(crate) mod gate;
pub(crate) mod issue;
pub(crate) mod issuer;
pub(crate) mod keys;
pub(crate) mod limit;
mod scope;
pub(crate) mod secret;
pub(crate) mod table;
pub(crate) mod until;

pub(crate) use keys::{ApiKey, Keys, Principal};
pub(crate) use scope::Scope;

/// What a key allows; each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Reads.
    Viewer,
    /// Also creates and uses sandboxes.
    Member,
    /// Everything.
    Admin,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Viewer, Self::Member, Self::Admin];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Member => "member",
            Self::Admin => "admin",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}
