//! Ids: a three-letter prefix that tells what they name, then 20 characters of 100 random bits.
//!
//! The alphabet is lower-case letters and digits, so an id is a valid DNS label, file name and cgroup name.

use std::fmt;
use std::str::FromStr;

/// Characters of the random part: 32 of them, without `i l o u`, which people misread.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 20 characters of 5 bits: 100 bits, so that two ids never meet by chance.
const RANDOM_CHARS: usize = 20;

/// A text that is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} id ({prefix} and 20 letters or digits)")]
pub struct InvalidId {
    text: String,
    kind: &'static str,
    prefix: &'static str,
}

fn random_chars() -> String {
    let mut bytes = [0u8; RANDOM_CHARS];
    getrandom::fill(&mut bytes).expect("the kernel gives randomness to every process");
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// The prefix of every id of this kind.
            pub const PREFIX: &'static str = $prefix;

            /// Makes a new id from the kernel's randomness.
            pub fn random() -> Self {
                Self(format!("{}{}", $prefix, random_chars()).into())
            }

            /// The text form.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid = text.strip_prefix($prefix).is_some_and(|rest| {
                    rest.len() == RANDOM_CHARS && rest.bytes().all(|byte| ALPHABET.contains(&byte))
                });
                if valid {
                    return Ok(Self(text.into()));
                }
                let text = text.chars().take(64).collect();
                Err(InvalidId { text, kind: $kind, prefix: $prefix })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// Names a sandbox, for ever.
    SandboxId, "sandbox", "sbx"
);
id!(
    /// Names a runner, over restarts of its process and machine.
    RunnerId, "runner", "rnr"
);
id!(
    /// Names the record of one wanted change.
    JobId, "job", "job"
);
id!(
    /// Names one dialled-back byte stream; who knows it may take the stream, once.
    SessionId, "session", "ses"
);

/// Counts the placements of a sandbox. A box or report of an older generation is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_parses_as_itself() {
        let id = SandboxId::random();
        assert_eq!(id.as_str().parse::<SandboxId>(), Ok(id));
    }

    #[test]
    fn ids_of_another_kind_or_alphabet_are_refused() {
        let runner = RunnerId::random();
        assert!(runner.as_str().parse::<SandboxId>().is_err());
        for text in ["", "sbx", "sbx../../../../../../../etc", "sbxABCDEFGHJKMNPQRSTVWX", "sbx0123456789012345678i"] {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
    }
}
