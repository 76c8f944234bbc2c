//! The credential of the coding agents' model provider. It is not a key of Dispense: those authenticate callers.

use dispense_api::error::Error;

use crate::sandbox::spec::invalid;

/// Its name in the vault.
pub(super) const PROVIDER_KEY: &str = "provider-key";
/// Far longer than any provider's.
const KEY_MAX_BYTES: usize = 1024;
/// Shorter ones are a slip of the paste.
const KEY_MIN_BYTES: usize = 16;
/// Characters at the end that tell one key from another.
const SHOWN_CHARS: usize = 4;

/// Refuses what can be no key.
pub(super) fn check(key: &str) -> Result<(), Error> {
    match flaw(key) {
        Some(flaw) => Err(invalid("api_key", flaw)),
        None => Ok(()),
    }
}

/// What is wrong with the form of a key.
pub(super) fn flaw(key: &str) -> Option<String> {
    if key.is_empty() {
        return Some("it is missing".to_owned());
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("it has blanks or other characters that no key has: was it pasted whole?".to_owned());
    }
    if !(KEY_MIN_BYTES..=KEY_MAX_BYTES).contains(&key.len()) {
        return Some(format!("it has {} characters, a key has {KEY_MIN_BYTES} to {KEY_MAX_BYTES}", key.len()));
    }
    (!key.starts_with("sk-")).then(|| "it does not begin with `sk-`, as keys of model providers do".to_owned())
}

/// As it is shown to those who may use it and not have it: `sk-…abcd`.
pub(super) fn masked(key: &str) -> String {
    // Every character is ASCII, as `flaw` made sure before it was kept.
    let tail = key.get(key.len().saturating_sub(SHOWN_CHARS)..).unwrap_or_default();
    format!("sk-…{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_shows_its_last_characters_only() {
        assert_eq!(masked("sk-provider-0123456789-abcd"), "sk-…abcd");
    }

    #[test]
    fn what_was_pasted_badly_is_refused_with_the_reason() {
        for wrong in
            ["", "sk-short", "sk-with a blank in the middle", "sk-\u{fc}mlaut-0123456789", "pk-0123456789abcdef"]
        {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        assert_eq!(check("sk-provider-0123456789-abcd"), Ok(()));
    }
}
