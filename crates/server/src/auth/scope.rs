//! Which sandboxes a key reaches, whatever its role.

use dispense_api::error::Error;
use dispense_api::id::SandboxId;

use crate::sandbox::spec::{self, invalid};

/// Sandboxes of one key.
const SANDBOXES_MAX: usize = 1000;

/// What a key reaches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Scope {
    /// Every sandbox.
    #[default]
    All,
    /// Those of one group; it creates only there.
    Group(String),
    /// Those of these ids; it creates none.
    Sandboxes(Vec<SandboxId>),
}

impl Scope {
    /// From what an administrator asks for; neither means everything.
    pub(crate) fn of(group: &str, sandboxes: &[String]) -> Result<Self, Error> {
        match (group, sandboxes) {
            ("", []) => Ok(Self::All),
            (group, []) => Ok(Self::Group(spec::group(group.to_owned())?)),
            ("", ids) if ids.len() > SANDBOXES_MAX => {
                Err(invalid("scope.sandboxes", format_args!("{} are over the limit of {SANDBOXES_MAX}", ids.len())))
            }
            ("", ids) => {
                let parse = |id: &String| id.parse().map_err(|error| invalid("scope.sandboxes", error));
                ids.iter().map(parse).collect::<Result<_, _>>().map(Self::Sandboxes)
            }
            (_, _) => Err(invalid("scope", "give a group or sandboxes, not both")),
        }
    }

    /// Whether a sandbox is in it.
    pub(crate) fn contains(&self, id: &SandboxId, group: &str) -> bool {
        match self {
            Self::All => true,
            Self::Group(own) => own == group,
            Self::Sandboxes(ids) => ids.contains(id),
        }
    }

    /// As the store keeps it.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::All => String::new(),
            Self::Group(group) => format!("group:{group}"),
            Self::Sandboxes(ids) => {
                let ids: Vec<&str> = ids.iter().map(SandboxId::as_str).collect();
                format!("sandboxes:{}", ids.join(","))
            }
        }
    }

    /// The scope of a text form; `None` for one that was not written here.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::All);
        }
        match text.split_once(':')? {
            ("group", group) => Some(Self::Group(group.to_owned())),
            ("sandboxes", ids) => ids.split(',').map(|id| id.parse().ok()).collect::<Option<_>>().map(Self::Sandboxes),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_what_it_was_after_the_store() {
        let ids = vec![SandboxId::random(), SandboxId::random()];
        for scope in [Scope::All, Scope::Group("a:b,c".into()), Scope::Sandboxes(ids)] {
            assert_eq!(Scope::parse(&scope.text()), Some(scope));
        }
        assert_eq!(Scope::parse("everything:"), None);
    }

    #[test]
    fn a_scope_contains_its_own_and_nothing_else() {
        let (mine, other) = (SandboxId::random(), SandboxId::random());
        assert!(Scope::Sandboxes(vec![mine.clone()]).contains(&mine, "g"));
        assert!(!Scope::Sandboxes(vec![mine.clone()]).contains(&other, "g"));
        assert!(Scope::Group("g".into()).contains(&other, "g") && !Scope::Group("g".into()).contains(&mine, ""));
        assert!(Scope::of("g", &[mine.to_string()]).is_err() && Scope::of("", &["x".into()]).is_err());
    }
}
