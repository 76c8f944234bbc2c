//! Trace context between processes, as W3C's `traceparent` has it: `00-TRACE_ID-SPAN_ID-FLAGS` in lower-case hex.

#[cfg(feature = "otel")]
mod span;

use std::fmt;
use std::str::FromStr;

#[cfg(feature = "otel")]
pub use span::{Kind, Span, export};

/// The header, and in upper case the variable.
pub const TRACEPARENT: &str = "traceparent";

/// The span that another one belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// Never 0.
    pub trace_id: u128,
    /// Never 0.
    pub span_id: u64,
    /// Bit 0: it is recorded.
    pub flags: u8,
}

/// What a context looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a trace context: use 00-TRACE_ID-SPAN_ID-FLAGS with 32, 16 and 2 lower-case hex digits")]
pub struct ParseTraceParentError;

impl FromStr for TraceParent {
    type Err = ParseTraceParentError;

    fn from_str(text: &str) -> Result<Self, ParseTraceParentError> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits);
            let part = part.filter(|part| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
            part.and_then(|part| u128::from_str_radix(part, 16).ok()).ok_or(ParseTraceParentError)
        };
        let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        // A later version may have more parts; 255 is none.
        let known = version < 255 && (version > 0 || parts.next().is_none());
        let (span_id, flags) = (u64::try_from(span_id), u8::try_from(flags));
        match (span_id, flags) {
            (Ok(span_id @ 1..), Ok(flags)) if known && trace_id != 0 => Ok(Self { trace_id, span_id, flags }),
            _ => Err(ParseTraceParentError),
        }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_read_and_written_and_what_is_none_is_refused() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent: TraceParent = text.parse().expect("W3C's own example");
        assert_eq!((parent.span_id, parent.flags, parent.to_string().as_str()), (0x00f0_67aa_0ba9_02b7, 1, text));
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(wrong.parse::<TraceParent>(), Err(ParseTraceParentError), "{wrong}");
        }
        assert!("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more".parse::<TraceParent>().is_ok());
    }
}
