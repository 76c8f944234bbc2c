//! Spans, where somebody collects them. Where nobody does, one costs nothing, and the caller's context passes through.

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use opentelemetry::global::{BoxedSpan, BoxedTracer};
use opentelemetry::trace::{Span as _, SpanContext, SpanKind, Status, TraceContextExt, TraceFlags, TraceState, Tracer};
use opentelemetry::{Context, KeyValue, SpanId, TraceId, Value};

use super::TraceParent;

/// Set once by whoever exports.
static TRACER: OnceLock<BoxedTracer> = OnceLock::new();

/// From now on spans go to this tracer; a second call changes nothing.
pub fn export(tracer: BoxedTracer) {
    // The first exporter of a process stays.
    let _ = TRACER.set(tracer);
}

/// Which side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It asks another process.
    Client,
    /// It answers one.
    Server,
    /// Neither.
    Internal,
}

/// A part of a trace that ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    recorded: Option<BoxedSpan>,
    /// Of the caller.
    parent: String,
}

impl Span {
    /// Begins one below `parent`, a `traceparent`; what is none begins a trace.
    pub fn start(name: impl Into<Cow<'static, str>>, kind: Kind, parent: &str) -> Self {
        let known: Option<TraceParent> = parent.parse().ok();
        let recorded = TRACER.get().map(|tracer| {
            let kind = match kind {
                Kind::Client => SpanKind::Client,
                Kind::Server => SpanKind::Server,
                Kind::Internal => SpanKind::Internal,
            };
            tracer.span_builder(name).with_kind(kind).start_with_context(tracer, &context(known))
        });
        Self { recorded, parent: known.map(|parent| parent.to_string()).unwrap_or_default() }
    }

    /// The same, where there is a caller to belong to.
    pub fn below(name: impl Into<Cow<'static, str>>, parent: &str) -> Option<Self> {
        (!parent.is_empty()).then(|| Self::start(name, Kind::Internal, parent))
    }

    /// Records a span of another process that exports none, which has just ended.
    pub fn ended(name: impl Into<Cow<'static, str>>, parent: &str, elapsed: Duration) {
        let (Some(tracer), Ok(parent)) = (TRACER.get(), parent.parse()) else { return };
        let now = SystemTime::now();
        let builder = tracer.span_builder(name).with_kind(SpanKind::Server).with_start_time(now - elapsed);
        builder.start_with_context(tracer, &context(Some(parent))).end_with_timestamp(now);
    }

    /// Whether anybody collects it.
    pub fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// What others belong to it by; without a collector, to its caller; empty where there is none.
    pub fn traceparent(&self) -> String {
        match &self.recorded {
            None => self.parent.clone(),
            Some(span) => {
                let context = span.span_context();
                let trace_id = u128::from_be_bytes(context.trace_id().to_bytes());
                let span_id = u64::from_be_bytes(context.span_id().to_bytes());
                TraceParent { trace_id, span_id, flags: context.trace_flags().to_u8() }.to_string()
            }
        }
    }

    /// Names it anew.
    pub fn rename(&mut self, name: &str) {
        if let Some(span) = &mut self.recorded {
            span.update_name(name.to_owned());
        }
    }

    /// Says something of it.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.recorded {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// What it stands for has failed.
    pub fn fail(&mut self, why: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.recorded {
            span.set_status(Status::error(why));
        }
    }
}

fn context(parent: Option<TraceParent>) -> Context {
    let Some(TraceParent { trace_id, span_id, flags }) = parent else { return Context::new() };
    let (trace_id, span_id) = (TraceId::from(trace_id), SpanId::from(span_id));
    let remote = SpanContext::new(trace_id, span_id, TraceFlags::new(flags), true, TraceState::default());
    Context::new().with_remote_span_context(remote)
}
