//! A line of the log as JSON, in the shape of `tracing_subscriber`'s own: `timestamp`, `level`, `fields`, `target`.
//!
//! Its own goes through serde, a map and three writers for each piece, which is a twentieth of a server's time under load:
//! one line for each request.

use std::error::Error;
use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes events, without the spans around them.
pub(super) struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        line.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut line)?;
        line.write_str("\",\"level\":\"")?;
        line.write_str(event.metadata().level().as_str())?;
        line.write_str("\",\"fields\":{")?;
        let mut fields = Fields { line: &mut line, is_first: true, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        line.write_str("},\"target\":")?;
        text(&mut line, event.metadata().target())?;
        line.write_str("}\n")
    }
}

/// The members of an object.
struct Fields<'a, W> {
    line: &'a mut W,
    is_first: bool,
    result: fmt::Result,
}

impl<W: Write> Fields<'_, W> {
    fn member(&mut self, field: &Field, value: impl FnOnce(&mut W) -> fmt::Result) {
        if self.result.is_err() {
            return;
        }
        let comma = if std::mem::replace(&mut self.is_first, false) { "" } else { "," };
        // A field that is named by a keyword.
        let name = field.name().trim_start_matches("r#");
        let begun = self.line.write_str(comma).and_then(|()| text(self.line, name));
        self.result = begun.and_then(|()| self.line.write_char(':')).and_then(|()| value(self.line));
    }
}

impl<W: Write> Visit for Fields<'_, W> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no other numbers.
        self.member(field, |line| if value.is_finite() { write!(line, "{value:?}") } else { line.write_str("null") });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |line| write!(line, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |line| write!(line, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |line| line.write_str(if value { "true" } else { "false" }));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |line| text(line, value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.member(field, |line| quoted(line, format_args!("{value}")));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.member(field, |line| quoted(line, format_args!("{value:?}")));
    }
}

fn text(line: &mut impl Write, text: &str) -> fmt::Result {
    line.write_char('"')?;
    Escaped(line).write_str(text)?;
    line.write_char('"')
}

fn quoted(line: &mut impl Write, value: fmt::Arguments<'_>) -> fmt::Result {
    line.write_char('"')?;
    Escaped(line).write_fmt(value)?;
    line.write_char('"')
}

/// What is inside quotation marks.
struct Escaped<'a, W>(&'a mut W);

impl<W: Write> Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.bytes().position(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
            self.0.write_str(&rest[..at])?;
            match rest.as_bytes()[at] {
                b'\n' => self.0.write_str("\\n")?,
                byte @ (b'"' | b'\\') => write!(self.0, "\\{}", char::from(byte))?,
                byte => write!(self.0, "\\u{byte:04x}")?,
            }
            // One byte, as all that are escaped.
            rest = &rest[at + 1..];
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What the events of `log` look like, in our lines and in the library's.
    fn both(log: impl Fn()) -> [Vec<serde_json::Value>; 2] {
        [true, false].map(|ours| {
            let lines = Lines::default();
            let writer = lines.clone();
            let builder = tracing_subscriber::fmt().with_writer(move || writer.clone());
            let dispatch = if ours {
                tracing::Dispatch::new(builder.event_format(JsonLine).finish())
            } else {
                tracing::Dispatch::new(builder.json().with_current_span(false).with_span_list(false).finish())
            };
            tracing::dispatcher::with_default(&dispatch, &log);
            let text = String::from_utf8(lines.0.lock().expect("lock").clone()).expect("UTF-8");
            let parsed = text.lines().map(|line| {
                let mut line: serde_json::Value = serde_json::from_str(line).expect(line);
                let time = line["timestamp"].take();
                assert!(time.as_str().is_some_and(|time| time.ends_with('Z')), "{time}");
                line
            });
            parsed.collect()
        })
    }

    #[test]
    fn lines_are_those_of_the_library() {
        let odd: String = (0..=0x7f_u8).map(char::from).chain("ä\u{2028}😀".chars()).collect();
        let [ours, theirs] = both(|| {
            let error = io::Error::other("a \"reason\"\nin two lines");
            tracing::info!(target: "dispense_server::access", door = "rest", ms = 0.25, code = %"ok", "request");
            tracing::warn!(error = &error as &(dyn Error + 'static), %odd, ?odd, "{odd}");
            tracing::error!(r#type = 1_u64, less = -1_i64, yes = true, no = f64::NAN, large = 1e300, whole = 1.0);
            tracing::info!("");
        });
        assert_eq!(ours.len(), 4);
        assert_eq!(ours, theirs);
    }
}
