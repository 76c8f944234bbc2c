//! How far a copy is, for people. What it came to is told by the command.

use dispense_api::archive::Summary;
use indicatif::{ProgressBar, ProgressStyle};

/// A line on stderr; silent when that is no terminal.
#[derive(Clone)]
pub(in crate::cmd) struct Progress(ProgressBar);

impl Progress {
    pub(in crate::cmd) fn new(quiet: bool) -> Self {
        if quiet {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}  {binary_bytes_per_sec}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// So many bytes will come; 0 is what nobody knows.
    pub(super) fn expect(&self, bytes: u64) {
        let template = "{bar:30} {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta}";
        if let (1.., Ok(style)) = (bytes, ProgressStyle::with_template(template)) {
            self.0.set_length(bytes);
            self.0.set_style(style);
        }
    }

    pub(in crate::cmd) fn tell(&self, summary: Summary) {
        self.0.set_position(summary.bytes);
        self.0.set_message(format!("{} files, {}", summary.entries, crate::units::show_bytes(summary.bytes)));
    }

    pub(in crate::cmd) fn done(&self, summary: Summary) {
        self.0.finish_and_clear();
        if summary.skipped > 0 {
            eprintln!("dispense: {} devices, sockets or pipes were not copied", summary.skipped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_is_known_is_the_total() {
        let progress = Progress::new(false);
        progress.expect(0);
        assert_eq!(progress.0.length(), None);
        progress.expect(3 << 20);
        assert_eq!(progress.0.length(), Some(3 << 20));
    }
}
