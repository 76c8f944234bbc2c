//! The log without what opens anything: whatever a line came from, keys, tokens and passwords do not stand in it.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use tracing_subscriber::fmt::MakeWriter;

/// Before the secret part of a key or token of ours, of an agent's provider, and of a header.
const PREFIXES: [&str; 7] = ["dsp_", "e2b_", "dst_", "dsj_", "dsr_", "sk-", "Bearer "];
/// Before the account of a URL.
const AUTHORITY: &str = "://";
/// A shorter word is no secret.
const SECRET_MIN_CHARS: usize = 16;
const REDACTED: &str = "[redacted]";

/// Passes lines on to another writer.
pub(super) struct Redacted<W>(pub(super) W);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Redacted<M> {
    type Writer = Redacted<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Redacted(self.0.make_writer())
    }
}

impl<W: Write> Write for Redacted<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if SUSPICIOUS.is_match(line) {
            self.0.write_all(redact(&String::from_utf8_lossy(line)).as_bytes())?;
        } else {
            self.0.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Finds whether a line may have a secret: few have.
static SUSPICIOUS: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let all = PREFIXES.into_iter().chain([AUTHORITY]);
    AhoCorasick::new(all).expect("a few short words")
});

/// The text with each secret replaced; what stands before it says which kind it was.
fn redact(text: &str) -> Cow<'_, str> {
    let mut clean = String::new();
    let mut rest = text;
    while let Some((from, to)) = first_secret(rest) {
        clean.push_str(&rest[..from]);
        clean.push_str(REDACTED);
        rest = &rest[to..];
    }
    if clean.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(clean + rest) }
}

/// From where to where the first one goes.
fn first_secret(text: &str) -> Option<(usize, usize)> {
    let after_prefixes = PREFIXES.iter().filter_map(|prefix| {
        text.match_indices(prefix).find_map(|(at, _)| {
            let from = at + prefix.len();
            let before = &text[..at];
            let begins_a_word = !before.ends_with(|c: char| c.is_ascii_alphanumeric()) || ends_with_escape(before);
            let len = secret_len(&text[from..]);
            (begins_a_word && len >= SECRET_MIN_CHARS).then_some((from, from + len))
        })
    });
    after_prefixes.chain(password(text)).min()
}

/// Whether the last character is one of JSON's, e.g. of `\n`, and no letter.
fn ends_with_escape(text: &str) -> bool {
    let ends_with = |tail: usize, escape: &[u8]| {
        text.len().checked_sub(tail).is_some_and(|from| text.as_bytes()[from..].starts_with(escape))
    };
    ends_with(2, b"\\n") || ends_with(6, b"\\u")
}

fn secret_len(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.' | '+' | '/' | '='))
        .unwrap_or(text.len())
}

/// Of a URL, e.g. `postgres://user:password@host`.
fn password(text: &str) -> Option<(usize, usize)> {
    text.match_indices(AUTHORITY).find_map(|(at, _)| {
        let from = at + AUTHORITY.len();
        let authority = text[from..].split(['/', '?', '#', ' ', '"']).next()?;
        let (account, _) = authority.rsplit_once('@')?;
        let (user, password) = account.split_once(':')?;
        let from = from + user.len() + 1;
        (password != REDACTED && !password.is_empty()).then_some((from, from + password.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_something_is_replaced_and_everything_else_stays() {
        let secret = "0123456789abcdef0123456789abcdef01234567";
        for (line, clean) in [
            (format!("key dsp_{secret} is no key"), "key dsp_[redacted] is no key".to_owned()),
            (format!("{{\"a\":\"Bearer {secret}\"}}"), "{\"a\":\"Bearer [redacted]\"}".to_owned()),
            (format!("dst_{secret} dsj_{secret}\n"), "dst_[redacted] dsj_[redacted]\n".to_owned()),
            (
                format!("{{\"a\":\"\\ndsp_{secret} \\u0009dst_{secret}\"}}"),
                r#"{"a":"\ndsp_[redacted] \u0009dst_[redacted]"}"#.into(),
            ),
            ("sk-ant-api03-abcdefghijkl failed".into(), "sk-[redacted] failed".into()),
            ("at postgres://me:secret@db:5432/x".into(), "at postgres://me:[redacted]@db:5432/x".into()),
            (
                "http://127.0.0.1:8080 and task-1234567890123456".into(),
                "http://127.0.0.1:8080 and task-1234567890123456".into(),
            ),
        ] {
            assert_eq!(redact(&line), clean);
            assert_eq!(redact(&clean), clean, "twice is once");
        }
    }
}
