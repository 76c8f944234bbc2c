//! Names of files as keys of objects. A name that a key can carry is the key; another one is written with `%XX`, and its
//! object says so ([`super::kept`]), so that what others wrote is never read as if it were escaped.
//!
//! INVARIANT: two names never have the same key. A name that looks like the escaped form of another is escaped too.

use std::borrow::Cow;

/// The tree itself, which no key can be: its object says that a tree has nothing in it.
pub(super) const TOP: &str = ".";
const TOP_ESCAPED: &str = "%2E";
/// Behind the name of a directory: itself. There are storages where no key goes on behind another one's end.
pub(super) const INSIDE: &str = "/.";

/// The key of a name below the prefix, and whether it is escaped.
pub(super) fn key(name: &[u8]) -> (Cow<'_, str>, bool) {
    match std::str::from_utf8(name) {
        Ok(plain) if !must_be_escaped(name) => (Cow::Borrowed(plain), false),
        _ => (Cow::Owned(escape(name, is_kept)), true),
    }
}

fn must_be_escaped(name: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(name) else { return true };
    // The space at the end would not survive the storage's lists, which are XML.
    if !text.chars().all(is_plain) || text.trim() != text || text == TOP || text.ends_with(INSIDE) {
        return true;
    }
    // Another name's escaped form? Each step is shorter, so this ends.
    let meant = unescape(text);
    meant != name && must_be_escaped(&meant) && escape(&meant, is_kept) == text
}

/// What a key, and XML of version 1.0, can have.
fn is_plain(character: char) -> bool {
    !character.is_control() && !matches!(character, '\u{fffe}' | '\u{ffff}')
}

/// Of an escaped name.
fn is_kept(character: char) -> bool {
    character != '%' && is_plain(character)
}

/// A text of bytes for metadata, which is graphic ASCII.
pub(super) fn ascii(bytes: &[u8]) -> String {
    escape(bytes, |character| character.is_ascii_graphic() && character != '%')
}

/// Writes what is not to be kept, and spaces at the ends, as `%XX`.
fn escape(bytes: &[u8], keeps: impl Fn(char) -> bool) -> String {
    if bytes == TOP.as_bytes() {
        return TOP_ESCAPED.to_owned();
    }
    if let Some(directory) = bytes.strip_suffix(INSIDE.as_bytes()) {
        return format!("{}/{TOP_ESCAPED}", escape(directory, keeps));
    }
    let mut pieces = Vec::new();
    for chunk in bytes.utf8_chunks() {
        pieces.extend(chunk.valid().chars().map(Ok));
        pieces.extend(chunk.invalid().iter().map(|byte| Err(*byte)));
    }
    let is_space = |piece: &Result<char, u8>| piece.is_ok_and(char::is_whitespace);
    let begin = pieces.iter().take_while(|piece| is_space(piece)).count();
    let end = pieces.len() - pieces.iter().rev().take_while(|piece| is_space(piece)).count();
    let mut out = String::with_capacity(bytes.len());
    for (at, piece) in pieces.into_iter().enumerate() {
        match piece {
            Ok(character) if keeps(character) && (begin..end).contains(&at) => out.push(character),
            Ok(character) => {
                let mut buffer = [0; 4];
                character.encode_utf8(&mut buffer).bytes().for_each(|byte| out.push_str(&format!("%{byte:02X}")));
            }
            Err(byte) => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The bytes of an escaped text; a `%` without two digits is itself.
pub(super) fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digit = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (*first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.extend(u8::try_from(high * 16 + low));
                rest = &after[2..];
            }
            (byte, ..) => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_key_can_carry_is_the_key() {
        for name in
            ["main.py", "a/b c/é漢", "100%", "a%20b", "a%zz", "back\\slash", "q'uo\"te", "%41", "-dash", "a+b&c"]
        {
            assert_eq!(key(name.as_bytes()), (Cow::Borrowed(name), false));
        }
        for (name, wanted) in [
            (&b"new\nline"[..], "new%0Aline"),
            (b"not-utf8-\xff\xfe", "not-utf8-%FF%FE"),
            (b"not-utf8-%FF%FE", "not-utf8-%25FF%25FE"),
            (b"100%\n", "100%25%0A"),
            (b"end ", "end%20"),
            (b".", "%2E"),
            (b"%2E", "%252E"),
            (b"d/.", "d/%2E"),
            (b"d/%2E", "d/%252E"),
            (b"d\xff/.", "d%FF/%2E"),
            ("d/\u{85}".as_bytes(), "d/%C2%85"),
        ] {
            assert_eq!(key(name), (Cow::Owned(wanted.to_owned()), true));
        }
    }

    proptest! {
        #[test]
        fn names_come_back_and_never_meet(names in prop::collection::vec("[a%25FE0./\n \u{fffe}é]{0,7}", 2)) {
            let mut keys = Vec::new();
            for name in &names {
                let (key, is_escaped) = key(name.as_bytes());
                let back = if is_escaped { unescape(&key) } else { key.as_bytes().to_vec() };
                prop_assert_eq!(back, name.as_bytes());
                keys.push(key.into_owned());
            }
            prop_assert_eq!(names[0] == names[1], keys[0] == keys[1]);
        }

        #[test]
        fn any_bytes_come_back_from_metadata(bytes: Vec<u8>) {
            let text = ascii(&bytes);
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(unescape(&text), bytes);
        }

        #[test]
        fn any_bytes_come_back_from_a_key(bytes: Vec<u8>) {
            let (key, is_escaped) = key(&bytes);
            prop_assert_eq!(if is_escaped { unescape(&key) } else { key.as_bytes().to_vec() }, bytes.clone());
        }
    }
}
