//! OpenTelemetry: spans go to the collector that the standard variables name (`OTEL_EXPORTER_OTLP_ENDPOINT`); a
//! command's own span begins the trace, or goes on with the one of `TRACEPARENT`.

use std::sync::OnceLock;

use dispense_api::trace::{self, Kind, Span, TRACEPARENT};
use dispense_client::Error;
use opentelemetry::global::{BoxedTracer, ObjectSafeTracerProvider};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::args::Command;
use crate::failure::local;

/// Either says that somebody collects.
const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
const NAME_VARIABLE: &str = "OTEL_SERVICE_NAME";

/// The trace that this command's calls belong to.
static CURRENT: OnceLock<String> = OnceLock::new();

/// As a `traceparent`; empty where nobody traces.
pub(crate) fn current() -> &'static str {
    CURRENT.get().map_or("", String::as_str)
}

/// What is exported until the end.
pub(crate) struct Telemetry {
    provider: Option<SdkTracerProvider>,
    /// Of a command that is no service.
    span: Option<Span>,
}

impl Telemetry {
    /// Exports where a collector is named. Called inside the runtime, which the exporter uses.
    pub(crate) fn start(command: &Command, name: &str) -> Result<Self, Error> {
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let provider = ENDPOINT_VARIABLES.iter().any(is_set).then(|| provider(command)).transpose()?;
        if let Some(provider) = &provider {
            trace::export(BoxedTracer::new(provider.boxed_tracer(opentelemetry::InstrumentationScope::default())));
        }
        let parent = std::env::var(TRACEPARENT.to_ascii_uppercase()).unwrap_or_default();
        let span = (!command.is_service()).then(|| Span::start(format!("dispense {name}"), Kind::Client, &parent));
        if let Some(span) = &span {
            // Nothing has asked for it before.
            let _ = CURRENT.set(span.traceparent());
        }
        Ok(Self { provider, span })
    }

    /// Sends what has not been sent yet; waits for the collector for a few seconds at most.
    pub(crate) fn end(self, failed: bool) {
        let Self { provider, mut span } = self;
        if let (Some(span), true) = (&mut span, failed) {
            span.fail("the command failed");
        }
        drop(span);
        if let Some(Err(error)) = provider.map(|provider| provider.shutdown()) {
            tracing::warn!(%error, "not all spans were exported");
        }
    }
}

fn provider(command: &Command) -> Result<SdkTracerProvider, Error> {
    let exporter = SpanExporter::builder().with_tonic().build();
    let exporter =
        exporter.map_err(|error| local("set the export of traces up (see OTEL_EXPORTER_OTLP_ENDPOINT)", &error))?;
    let resource = Resource::builder();
    let resource = match (std::env::var_os(NAME_VARIABLE), command) {
        (Some(_), _) => resource,
        (None, Command::Up(_) | Command::Server(_) | Command::Embedded) => {
            resource.with_service_name("dispense-server")
        }
        (None, Command::Runner(_)) if command.is_service() => resource.with_service_name("dispense-runner"),
        (None, _) => resource.with_service_name("dispense"),
    };
    Ok(SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build())
}
