//! The `Range` of a request for a file: RFC 9110, section 14. Of several ranges, or of a text that is none, the whole
//! file is the answer, as the RFC lets a server do.

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// From an offset to another, or to the end.
    From(u64, Option<u64>),
    /// So many bytes at the end.
    Last(u64),
}

/// Bytes of a file; never none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Wanted {
    /// Of a header's value; `None` where the whole file is the answer.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (unit, range) = value.split_once('=')?;
        let (first, last) = range.trim().split_once('-').filter(|_| unit.trim().eq_ignore_ascii_case("bytes"))?;
        match (number(first), number(last)) {
            (None, Some(count)) if first.is_empty() => Some(Self::Last(count)),
            (Some(first), None) if last.is_empty() => Some(Self::From(first, None)),
            (Some(first), Some(last)) if first <= last => Some(Self::From(first, Some(last))),
            _ => None,
        }
    }

    /// Of a file of this size; `None` when it has nothing there.
    pub(super) fn within(self, size: u64) -> Option<Window> {
        let (offset, end) = match self {
            Self::From(first, last) => (first, last.map_or(size, |last| size.min(last.saturating_add(1)))),
            Self::Last(count) => (size.saturating_sub(count), size),
        };
        (offset < end).then(|| Window { offset, length: end - offset })
    }
}

/// Digits and nothing else: a sign is no part of the grammar.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

impl Window {
    /// As `Content-Range` has it.
    pub(super) fn of(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.offset, self.offset + self.length - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_the_rfc_says() {
        let cases = [
            ("bytes=0-4", 10, Some("bytes 0-4/10")),
            ("bytes=5-", 10, Some("bytes 5-9/10")),
            ("Bytes=5-99", 10, Some("bytes 5-9/10")),
            ("bytes=-3", 10, Some("bytes 7-9/10")),
            ("bytes=-30", 10, Some("bytes 0-9/10")),
            ("bytes=9-9", 10, Some("bytes 9-9/10")),
            ("bytes=0-18446744073709551615", 10, Some("bytes 0-9/10")),
            ("bytes=10-", 10, None),
            ("bytes=-0", 10, None),
            ("bytes=0-", 0, None),
            ("bytes=-1", 0, None),
        ];
        for (value, size, expected) in cases {
            let wanted = Wanted::parse(value).unwrap_or_else(|| panic!("{value} is a range"));
            assert_eq!(wanted.within(size).map(|window| window.of(size)).as_deref(), expected, "{value} of {size}");
        }
    }

    #[test]
    fn what_is_no_single_range_is_no_range() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=1",
            "bytes=4-2",
            "bytes=0-1,4-5",
            "bytes=+1-2",
            "lines=0-4",
            "bytes=1--2",
            "bytes=0-99999999999999999999",
        ] {
            assert_eq!(Wanted::parse(value), None, "{value}");
        }
    }
}
