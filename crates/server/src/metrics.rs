//! What operators watch, in the text format of Prometheus.
//!
//! Counts of requests are kept as they happen; counts of things (sandboxes, jobs, runners) are read when somebody
//! asks, so that they cannot drift.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// One kind of request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Request {
    /// `grpc` or `rest`.
    pub(crate) door: &'static str,
    /// As the authorisation table has it: what is not there is `unknown`.
    pub(crate) method: String,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) door: &'static str,
    pub(crate) method: String,
    /// A stable code, or `ok`.
    pub(crate) code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Door {
    door: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct One {
    what: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OneRunner {
    runner: String,
    name: String,
}

/// The counters that live as long as the server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Outcome, Counter<u64, AtomicU64>>,
    durations: Family<Request, Histogram>,
    open: Family<Door, Gauge<i64, AtomicI64>>,
    streams: Family<Door, Gauge<i64, AtomicI64>>,
    commits: Histogram,
    changes: Counter<u64, AtomicU64>,
    sessions: Counter<u64, AtomicU64>,
    calls: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        // 0.5 ms to 16 s.
        let seconds = || Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let mut registry = Registry::with_prefix("dispense");
        let this = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(seconds),
            open: Family::default(),
            streams: Family::default(),
            commits: seconds(),
            changes: Counter::default(),
            sessions: Counter::default(),
            calls: Counter::default(),
            registry: Registry::default(),
        };
        registry.register("requests", "Requests that have ended", this.requests.clone());
        let help = "Time from a request to the end of its answer";
        registry.register_with_unit("request_duration", help, Unit::Seconds, this.durations.clone());
        registry.register("open_requests", "Requests and streams that are open", this.open.clone());
        registry.register("open_streams", "Answers that have begun and go on", this.streams.clone());
        let help = "Time of a commit of the store, with all changes that it carries";
        registry.register_with_unit("store_commit", help, Unit::Seconds, this.commits.clone());
        registry.register("store_changes", "Changes that the store was asked for", this.changes.clone());
        registry.register("sessions_opened", "Sessions with agents that were opened", this.sessions.clone());
        registry.register("agent_calls", "Calls of agents, over sessions old and new", this.calls.clone());
        Self { registry, ..this }
    }
}

/// What there is now.
#[derive(Debug, Default)]
pub(crate) struct Census {
    /// By state.
    pub(crate) sandboxes: Vec<(String, i64)>,
    /// By status.
    pub(crate) jobs: Vec<(String, i64)>,
    /// Id, name, whether it is connected, seconds since it was heard.
    pub(crate) runners: Vec<(String, String, bool, f64)>,
}

impl Metrics {
    /// A request has come.
    pub(crate) fn begun(&self, door: &'static str) {
        self.open.get_or_create(&Door { door }).inc();
    }

    /// Its answer has ended.
    pub(crate) fn ended(&self, request: &Request, code: &'static str, duration: Duration) {
        self.open.get_or_create(&Door { door: request.door }).dec();
        self.durations.get_or_create(request).observe(duration.as_secs_f64());
        let outcome = Outcome { door: request.door, method: request.method.clone(), code };
        self.requests.get_or_create(&outcome).inc();
    }

    /// The store has committed so many changes.
    pub(crate) fn committed(&self, changes: usize, duration: Duration) {
        self.commits.observe(duration.as_secs_f64());
        self.changes.inc_by(changes as u64);
    }

    /// A session with an agent is opened.
    pub(crate) fn session_opened(&self) {
        self.sessions.inc();
    }

    /// An agent is called.
    pub(crate) fn agent_called(&self) {
        self.calls.inc();
    }

    /// A stream of an answer goes on.
    pub(crate) fn stream_begun(&self, door: &'static str) {
        self.streams.get_or_create(&Door { door }).inc();
    }

    /// It has ended.
    pub(crate) fn stream_ended(&self, door: &'static str) {
        self.streams.get_or_create(&Door { door }).dec();
    }

    /// Everything, as OpenMetrics' text.
    pub(crate) fn render(&self, census: &Census) -> String {
        let mut now = Registry::with_prefix("dispense");
        let count = |now: &mut Registry, name: &str, help: &str, rows: &[(String, i64)]| {
            let family = Family::<One, Gauge<i64, AtomicI64>>::default();
            for (what, value) in rows {
                family.get_or_create(&One { what: what.clone() }).set(*value);
            }
            now.register(name, help, family);
        };
        count(&mut now, "sandboxes", "Sandboxes by state", &census.sandboxes);
        count(&mut now, "jobs", "Jobs by status", &census.jobs);
        let connected = Family::<OneRunner, Gauge<i64, AtomicI64>>::default();
        let silence = Family::<OneRunner, Gauge<f64, AtomicU64>>::default();
        for (runner, name, is_connected, silent_secs) in &census.runners {
            let one = OneRunner { runner: runner.clone(), name: name.clone() };
            connected.get_or_create(&one).set((*is_connected).into());
            silence.get_or_create(&one).set(*silent_secs);
        }
        now.register("runner_connected", "1 for a runner that is connected", connected);
        now.register_with_unit("runner_silence", "Since a runner was heard", Unit::Seconds, silence);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode_registry(&mut text, &self.registry);
        let _ = text::encode(&mut text, &now);
        text
    }
}

/// The same in the text format 0.0.4, which every scraper reads: there a counter's family has its sample's name, and
/// units are comments that nobody knows.
pub(crate) fn plain(openmetrics: &str) -> String {
    let counters: BTreeSet<&str> =
        openmetrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(kind @ ("HELP" | "TYPE")), Some(name), Some(rest)) if counters.contains(name) => {
                text.extend(["# ", kind, " ", name, "_total ", rest, "\n"]);
            }
            (Some("#"), Some("UNIT" | "EOF"), ..) => {}
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_format_names_counters_as_their_samples() {
        let openmetrics = "# HELP a_calls Calls of it.\n# TYPE a_calls counter\na_calls_total{x=\"# EOF\"} 3\n\
                           # HELP a_time_seconds T.\n# TYPE a_time_seconds gauge\n# UNIT a_time_seconds seconds\n\
                           a_time_seconds 0.5\n# EOF\n";
        let expected = "# HELP a_calls_total Calls of it.\n# TYPE a_calls_total counter\na_calls_total{x=\"# EOF\"} 3\n\
                        # HELP a_time_seconds T.\n# TYPE a_time_seconds gauge\na_time_seconds 0.5\n";
        assert_eq!(plain(openmetrics), expected);
    }
}
