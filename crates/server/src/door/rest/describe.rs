//! What each route of `/api/v1` is for, with the types that it takes and sends.

use schemars::JsonSchema;
use schemars::generate::SchemaGenerator;
use serde_json::Value;

use super::events::EventsQuery;
use super::heartbeat::{Heartbeat, Received};
use super::json::{CreateJson, ErrorJson, JobJson, JobsJson, RunnerJson, RunnersJson, SandboxJson, SandboxesJson};
use super::ssh::ConnectionJson;
use super::usage::{UsageJson, UsageQuery};
use super::{ChangeQuery, JobsQuery, ListQuery};
use crate::door::openapi::{Answer, Described};

/// Every route.
pub(in crate::door) fn described(schemas: &mut SchemaGenerator) -> Vec<Described> {
    // Every refusal has it.
    reference::<ErrorJson<'static>>(schemas);
    let mut all = plain();
    all.extend(sandboxes(schemas));
    all.extend([
        read("/api/v1/jobs", "Lists jobs, newest first", answer::<JobsJson>(schemas)).with_query::<JobsQuery>(schemas),
        read("/api/v1/jobs/{id}", "Shows a job", answer::<JobJson>(schemas)),
        read("/api/v1/runners", "Lists runners", answer::<RunnersJson>(schemas)),
        read("/api/v1/runners/{id}", "Shows a runner, by id or name", answer::<RunnerJson>(schemas)),
    ]);
    all
}

fn plain() -> Vec<Described> {
    let text = |path, summary, kind| read(path, summary, Answer::Text(kind));
    vec![
        text("/healthz", "Says that the process answers", "text/plain; charset=utf-8"),
        text("/readyz", "Says that the database takes changes", "text/plain; charset=utf-8"),
        text("/metrics", "Metrics for Prometheus", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        read("/openapi.json", "This document", Answer::Json(200, serde_json::json!({"type": "object"}))),
        text("/docs", "This document, for people", "text/html; charset=utf-8"),
    ]
}

fn sandboxes(schemas: &mut SchemaGenerator) -> Vec<Described> {
    let sandbox = answer::<SandboxJson>;
    let change = |verb, path, summary, schemas: &mut SchemaGenerator| {
        Described { verb, ..read(path, summary, sandbox(schemas)) }.with_query::<ChangeQuery>(schemas)
    };
    vec![
        read("/api/v1/sandboxes", "Lists sandboxes, newest first", answer::<SandboxesJson>(schemas))
            .with_query::<ListQuery>(schemas),
        Described {
            verb: "POST",
            body: Some(reference::<CreateJson>(schemas)),
            answer: Answer::Json(201, reference::<SandboxJson>(schemas)),
            ..read("/api/v1/sandboxes", "Creates a sandbox", sandbox(schemas))
        },
        read("/api/v1/sandboxes/{id}", "Shows a sandbox, by id or name", sandbox(schemas)),
        change("DELETE", "/api/v1/sandboxes/{id}", "Deletes a sandbox with its files", schemas),
        change("POST", "/api/v1/sandboxes/{id}/start", "Starts a sandbox", schemas),
        change("POST", "/api/v1/sandboxes/{id}/stop", "Stops a sandbox and keeps its files", schemas),
        Described {
            verb: "POST",
            body: Some(reference::<Heartbeat>(schemas)),
            ..read(
                "/api/v1/sandboxes/{id}/status",
                "Takes the report of a sandbox's agent",
                answer::<Received>(schemas),
            )
        },
        read(
            "/api/v1/sandboxes/{id}/connection",
            "Tells how to reach a sandbox over SSH, with a credential of minutes",
            answer::<ConnectionJson>(schemas),
        ),
        read("/api/v1/sandboxes/{id}/usage", "Tells what a sandbox used over time", answer::<UsageJson>(schemas))
            .with_query::<UsageQuery>(schemas),
        read(
            "/api/v1/events",
            "Follows what happens to sandboxes, as server-sent events or over a WebSocket",
            Answer::Text("text/event-stream"),
        )
        .with_query::<EventsQuery>(schemas),
    ]
}

fn read(path: &'static str, summary: &'static str, answer: Answer) -> Described {
    Described { verb: "GET", path, summary, query: None, body: None, answer }
}

fn answer<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Answer {
    Answer::Json(200, reference::<T>(schemas))
}

fn reference<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<T>().to_value()
}

impl Described {
    fn with_query<T: JsonSchema>(self, schemas: &mut SchemaGenerator) -> Self {
        Self { query: Some(schemas.root_schema_for::<T>().to_value()), ..self }
    }
}
