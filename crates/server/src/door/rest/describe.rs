//! What each route of `/api/v1` is for, with the types that it takes and sends.

use schemars::JsonSchema;
use schemars::generate::SchemaGenerator;
use serde_json::Value;

use super::audit::{AuditJson, AuditQuery, VerdictJson};
use super::batch::{CreatesJson, DeletesJson, ExecJson, ExecsJson, ResultJson, ResultsJson};
use super::environment::{ChangeJson, EnvironmentJson};
use super::events::EventsQuery;
use super::files::{
    DirectoryListQuery, DirectoryQuery, FileJson, FilesJson, MoveQuery, ReadQuery, RemoveQuery, RemovedJson, StatQuery,
    WriteQuery,
};
use super::heartbeat::{Heartbeat, Received};
use super::json::{CreateJson, ErrorJson, JobJson, JobsJson, RunnerJson, RunnersJson, SandboxJson, SandboxesJson};
use super::keys::{IssuedJson, KeyJson, KeysJson, KeysQuery, NewKeyJson, RotateQuery};
use super::ssh::ConnectionJson;
use super::usage::{UsageJson, UsageQuery};
use super::{ChangeQuery, JobsQuery, ListQuery};
use crate::door::openapi::{Answer, Body, Described};

/// Every route.
pub(in crate::door) fn described(schemas: &mut SchemaGenerator) -> Vec<Described> {
    // Every refusal has it.
    reference::<ErrorJson<'static>>(schemas);
    let mut all = plain();
    all.extend(sandboxes(schemas));
    all.extend(files(schemas));
    all.extend(batch(schemas));
    all.extend(administration(schemas));
    all.extend([
        read("/api/v1/jobs", "Lists jobs, newest first", answer::<JobsJson>(schemas)).with_query::<JobsQuery>(schemas),
        read("/api/v1/jobs/{id}", "Shows a job", answer::<JobJson>(schemas)),
        read("/api/v1/runners", "Lists runners", answer::<RunnersJson>(schemas)),
        read("/api/v1/runners/{id}", "Shows a runner, by id or name", answer::<RunnerJson>(schemas)),
    ]);
    all
}

/// The one that everybody reads, and that for those who ask for it.
pub(super) const METRICS: [&str; 2] =
    ["text/plain; version=0.0.4; charset=utf-8", "application/openmetrics-text; version=1.0.0; charset=utf-8"];

fn plain() -> Vec<Described> {
    let text = |path, summary, kinds| read(path, summary, Answer::Text(kinds));
    vec![
        text("/healthz", "Says that the process answers", &["text/plain; charset=utf-8"]),
        text("/readyz", "Says that the database takes changes", &["text/plain; charset=utf-8"]),
        text("/metrics", "Metrics for Prometheus", &METRICS),
        read("/openapi.json", "This document", Answer::Json(200, serde_json::json!({"type": "object"}))),
        text("/docs", "This document, for people", &["text/html; charset=utf-8"]),
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
            body: Some(Body::Json(reference::<CreateJson>(schemas))),
            answer: Answer::Json(201, reference::<SandboxJson>(schemas)),
            ..read("/api/v1/sandboxes", "Creates a sandbox", sandbox(schemas))
        },
        read("/api/v1/sandboxes/{id}", "Shows a sandbox, by id or name", sandbox(schemas)),
        change("DELETE", "/api/v1/sandboxes/{id}", "Deletes a sandbox with its files", schemas),
        change("POST", "/api/v1/sandboxes/{id}/start", "Starts a sandbox", schemas),
        change("POST", "/api/v1/sandboxes/{id}/stop", "Stops a sandbox and keeps its files", schemas),
        Described {
            verb: "POST",
            body: Some(Body::Json(reference::<Heartbeat>(schemas))),
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
        read(
            "/api/v1/sandboxes/{id}/environment",
            "Shows the variables that processes start with",
            answer::<EnvironmentJson>(schemas),
        ),
        Described {
            verb: "PATCH",
            body: Some(Body::Json(reference::<ChangeJson>(schemas))),
            ..read(
                "/api/v1/sandboxes/{id}/environment",
                "Sets and removes variables, also while the sandbox runs",
                answer::<EnvironmentJson>(schemas),
            )
        },
        read("/api/v1/sandboxes/{id}/usage", "Tells what a sandbox used over time", answer::<UsageJson>(schemas))
            .with_query::<UsageQuery>(schemas),
        read(
            "/api/v1/events",
            "Follows what happens to sandboxes, as server-sent events or over a WebSocket",
            Answer::Text(&["text/event-stream"]),
        )
        .with_query::<EventsQuery>(schemas),
    ]
}

fn batch(schemas: &mut SchemaGenerator) -> Vec<Described> {
    let post = |path, summary, body, answer| Described {
        verb: "POST",
        body: Some(Body::Json(body)),
        ..read(path, summary, answer)
    };
    let (creates, deletes) = (reference::<CreatesJson>(schemas), reference::<DeletesJson>(schemas));
    let execs = reference::<ExecsJson>(schemas);
    let sandboxes = answer::<ResultsJson<ResultJson>>;
    vec![
        post("/api/v1/batch/create", "Creates several sandboxes", creates, sandboxes(schemas)),
        post("/api/v1/batch/delete", "Deletes several sandboxes", deletes, sandboxes(schemas)),
        post(
            "/api/v1/batch/exec",
            "Runs one command in several sandboxes and waits for all of them",
            execs,
            answer::<ResultsJson<ExecJson>>(schemas),
        ),
    ]
}

fn administration(schemas: &mut SchemaGenerator) -> Vec<Described> {
    let issued = |path, summary, schemas: &mut SchemaGenerator| {
        let answer = Answer::Json(201, reference::<IssuedJson>(schemas));
        Described { verb: "POST", ..read(path, summary, answer) }
    };
    vec![
        read("/api/v1/keys", "Lists API keys", answer::<KeysJson>(schemas)).with_query::<KeysQuery>(schemas),
        Described {
            body: Some(Body::Json(reference::<NewKeyJson>(schemas))),
            ..issued("/api/v1/keys", "Makes an API key, whose secret is told once", schemas)
        },
        Described {
            verb: "DELETE",
            ..read("/api/v1/keys/{key}", "Ends a key at once: by id, prefix or name", answer::<KeyJson>(schemas))
        },
        issued("/api/v1/keys/{key}/rotate", "Makes a key that replaces another, which ends later", schemas)
            .with_query::<RotateQuery>(schemas),
        read("/api/v1/audit", "Reads who asked for what", answer::<AuditJson>(schemas))
            .with_query::<AuditQuery>(schemas),
        read("/api/v1/audit/verify", "Tells whether every entry is what was written", answer::<VerdictJson>(schemas)),
    ]
}

fn files(schemas: &mut SchemaGenerator) -> Vec<Described> {
    let file = answer::<FileJson>;
    let at = |verb, path, summary, answer| Described { verb, ..read(path, summary, answer) };
    vec![
        read("/api/v1/sandboxes/{id}/files", "Reads a file, or a range of it by `Range`", Answer::Bytes)
            .with_query::<ReadQuery>(schemas),
        Described {
            body: Some(Body::Bytes),
            ..at("PUT", "/api/v1/sandboxes/{id}/files", "Writes a file, whole or not at all", file(schemas))
        }
        .with_query::<WriteQuery>(schemas),
        at("DELETE", "/api/v1/sandboxes/{id}/files", "Removes a file or directory", answer::<RemovedJson>(schemas))
            .with_query::<RemoveQuery>(schemas),
        read("/api/v1/sandboxes/{id}/files/stat", "Looks at a file", file(schemas)).with_query::<StatQuery>(schemas),
        read("/api/v1/sandboxes/{id}/files/list", "Lists a directory, by name", answer::<FilesJson>(schemas))
            .with_query::<DirectoryListQuery>(schemas),
        at(
            "POST",
            "/api/v1/sandboxes/{id}/files/directory",
            "Makes a directory",
            Answer::Json(201, reference::<FileJson>(schemas)),
        )
        .with_query::<DirectoryQuery>(schemas),
        at("POST", "/api/v1/sandboxes/{id}/files/move", "Moves a file or directory", file(schemas))
            .with_query::<MoveQuery>(schemas),
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
