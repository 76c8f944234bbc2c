//! Samples and what is told of them.

use dispense_client::Error;
use serde::Serialize;

/// Of which a sample is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Sample {
    /// Less is better.
    Milliseconds(f64),
    /// More is better: the percentiles count from the best down, so that p99 is the bad end too.
    MegabytesPerSecond(f64),
    /// More is better.
    PerSecond(f64),
    /// Less is better.
    Megabytes(f64),
}

impl Sample {
    fn parts(self) -> (f64, &'static str, bool) {
        match self {
            Self::Milliseconds(value) => (value, "ms", false),
            Self::MegabytesPerSecond(value) => (value, "MB/s", true),
            Self::PerSecond(value) => (value, "1/s", true),
            Self::Megabytes(value) => (value, "MB", false),
        }
    }
}

/// One measurement.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Figures {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) p50: Option<f64>,
    pub(super) p90: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) count: usize,
    pub(super) failures: usize,
    pub(super) first_failure: Option<String>,
}

impl Figures {
    /// Of what was measured and what failed.
    pub(super) fn new(name: impl Into<String>, results: Vec<Result<Sample, Error>>) -> Self {
        let (samples, failures): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        let first_failure = failures.iter().find_map(|failure| failure.as_ref().err().map(ToString::to_string));
        let parts: Vec<_> = samples.into_iter().flatten().map(Sample::parts).collect();
        let (unit, falling) = parts.first().map_or(("", false), |(_, unit, falling)| (*unit, *falling));
        let mut values: Vec<f64> = parts.into_iter().map(|(value, ..)| value).collect();
        values.sort_by(f64::total_cmp);
        if falling {
            values.reverse();
        }
        let percentile = |percent: usize| {
            let index = (values.len() * percent).div_ceil(100).max(1) - 1;
            values.get(index).copied()
        };
        Self {
            name: name.into(),
            unit,
            p50: percentile(50),
            p90: percentile(90),
            p99: percentile(99),
            count: values.len(),
            failures: failures.len(),
            first_failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_is_the_bad_end_of_either_kind() {
        let slow = (1..=100).map(|value| Ok(Sample::Milliseconds(f64::from(value)))).collect();
        let figures = Figures::new("x", slow);
        assert_eq!((figures.p50, figures.p99), (Some(50.0), Some(99.0)));
        let fast = (1..=100).map(|value| Ok(Sample::MegabytesPerSecond(f64::from(value)))).collect();
        let figures = Figures::new("x", fast);
        assert_eq!((figures.p50, figures.p99), (Some(51.0), Some(2.0)));
    }

    #[test]
    fn failures_are_counted_and_never_sampled() {
        let failure = || Err(Error::new(dispense_client::Code::Internal, "x", "broken"));
        let figures = Figures::new("x", vec![failure(), Ok(Sample::Megabytes(2.0)), failure()]);
        assert_eq!((figures.count, figures.failures, figures.p50), (1, 2, Some(2.0)));
        assert_eq!(figures.first_failure.as_deref(), Some("broken"));
        assert_eq!(Figures::new("x", vec![]).p50, None);
    }
}
