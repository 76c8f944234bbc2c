//! REST under `/api/v1`: JSON with camelCase names, errors as `{code, message, details}`.

mod audit;
mod batch;
mod describe;
mod environment;
mod events;
mod files;
mod heartbeat;
mod json;
mod keys;
mod range;
mod ssh;
mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, MatchedPath, Path, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use dispense_api::error::{Code, Error};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use super::malformed;
use super::observe::Matched;
use super::request::{Page, wait_bound};
use super::slow::in_time;
use super::{Parts, admit, http_head, method_unknown, openapi, websocket, while_admitted};
use crate::auth::gate::Refused;
use crate::auth::{Principal, table};
use crate::job::JobStatus;
use crate::metrics::plain;
use crate::refusal::draining;
use crate::sandbox::create::NewSandbox;
use crate::sandbox::lifecycle::{Desired, State as SandboxState};
use crate::sandbox::spec::{self, invalid, renamed};
use crate::store::meta;
use crate::store::sandboxes::Filter;
pub(super) use describe::described;
use json::{JobJson, JobsJson, RunnerJson, RunnersJson, SandboxJson, SandboxesJson};

/// The same for everybody, as long as the server runs.
static OPENAPI: LazyLock<serde_json::Value> = LazyLock::new(openapi::document);

/// The page loads nothing, and runs nothing.
const PAGE_POLICY: (HeaderName, HeaderValue) = (
    http::header::CONTENT_SECURITY_POLICY,
    HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
);
/// A specification with its environment.
const BODY_MAX_BYTES: usize = 2 << 20;

/// An error as a REST answer, its field by the name that it has there.
pub(super) struct Refusal(pub(super) Error);

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(renamed(error.into(), json_name))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let head = http_head(&error);
        let body = json::ErrorJson {
            code: error.code.as_str(),
            reason: &error.reason,
            message: &error.message,
            details: &error.details,
        };
        (head.0, head.1, Json(body)).into_response()
    }
}

/// The name of a field in JSON, where resources stand in the specification itself.
fn json_name(field: &str) -> String {
    let mut name = String::with_capacity(field.len());
    for part in field.replace("spec.resources.", "spec.").split('_') {
        let mut letters = part.chars();
        let first = letters.next().map(|first| if name.is_empty() { first } else { first.to_ascii_uppercase() });
        name.extend(first.into_iter().chain(letters));
    }
    name
}

type Answer<T> = Result<T, Refusal>;

/// All routes; each has its row in the authorisation table.
pub(super) fn router(parts: Arc<Parts>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(|| async { Json(OPENAPI.clone()) }))
        .route("/docs", get(|| async { ([PAGE_POLICY], Html(openapi::page(&OPENAPI))) }))
        .route("/api/v1/sandboxes", get(list_sandboxes).post(create_sandbox))
        .route("/api/v1/sandboxes/{id}", get(get_sandbox).delete(delete_sandbox))
        .route("/api/v1/sandboxes/{id}/start", post(start_sandbox))
        .route("/api/v1/sandboxes/{id}/stop", post(stop_sandbox))
        .route("/api/v1/sandboxes/{id}/status", post(heartbeat::status))
        .route("/api/v1/sandboxes/{id}/connection", get(ssh::connection))
        .route("/api/v1/sandboxes/{id}/usage", get(usage::usage))
        .route("/api/v1/sandboxes/{id}/environment", get(environment::environment).patch(environment::change))
        .route("/api/v1/sandboxes/{id}/files", get(files::read).put(files::write).delete(files::remove))
        .route("/api/v1/sandboxes/{id}/files/stat", get(files::stat))
        .route("/api/v1/sandboxes/{id}/files/list", get(files::list))
        .route("/api/v1/sandboxes/{id}/files/directory", post(files::make_directory))
        .route("/api/v1/sandboxes/{id}/files/move", post(files::rename))
        .route("/api/v1/events", get(events::events))
        .route("/api/v1/batch/create", post(batch::create_each))
        .route("/api/v1/batch/delete", post(batch::delete_each))
        .route("/api/v1/batch/exec", post(batch::exec_each))
        .route("/api/v1/keys", get(keys::list).post(keys::create))
        .route("/api/v1/keys/{key}", delete(keys::revoke))
        .route("/api/v1/keys/{key}/rotate", post(keys::rotate))
        .route("/api/v1/audit", get(audit::list))
        .route("/api/v1/audit/verify", get(audit::verify))
        .route("/api/v1/jobs", get(list_jobs))
        .route("/api/v1/jobs/{id}", get(get_job))
        .route("/api/v1/runners", get(list_runners))
        .route("/api/v1/runners/{id}", get(get_runner))
        .route_layer(middleware::from_fn_with_state(parts.clone(), check))
        .method_not_allowed_fallback(|path: MatchedPath| async move { Refusal(method_unknown(path.as_str())) })
        .fallback(|| async {
            Refusal(Error::new(Code::NotFound, "route_unknown", "there is no such path: REST is under /api/v1"))
        })
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(parts)
}

async fn check(State(parts): State<Arc<Parts>>, path: MatchedPath, mut request: Request, next: Next) -> Response {
    let Some(need) = table::rest(request.method().as_str(), path.as_str()) else {
        return Refusal(method_unknown(path.as_str())).into_response();
    };
    if websocket::is_asked(request.headers()) {
        websocket::take_bearer(request.headers_mut());
    }
    let matched = Matched(format!("{} {}", request.method(), path.as_str()));
    let (answer, caller) = match admit(&parts.gate, &mut request, Some(need)).await {
        Ok(caller) => (while_admitted(&parts.keys, caller.as_ref(), next.run(in_time(request))).await, caller),
        Err(Refused { error, caller }) => (Err(error), caller.map(|caller| *caller)),
    };
    let mut response = answer.unwrap_or_else(|error| Refusal::from(error).into_response());
    matched.note(&mut response, caller);
    response
}

/// Ready: the database answers, and the server is not about to end.
async fn ready(State(parts): State<Arc<Parts>>) -> Answer<&'static str> {
    if parts.health.is_draining() {
        return Err(draining().into());
    }
    let probe = parts.sandboxes.store.write(|tx| Box::pin(meta::get_or_insert(tx, "ready", "1")));
    probe.await?;
    Ok("ready\n")
}

/// For Prometheus; in the newer of its formats for those who ask for that.
async fn metrics(State(parts): State<Arc<Parts>>, headers: HeaderMap) -> Answer<Response> {
    const OPENMETRICS: &str = "application/openmetrics-text";
    let census = parts.sandboxes.census().await?;
    let text = parts.metrics.render(&census);
    let accepted = headers.get_all(http::header::ACCEPT).iter().filter_map(|accepted| accepted.to_str().ok());
    let (content_type, text) = if accepted.into_iter().any(|accepted| accepted.contains(OPENMETRICS)) {
        (describe::METRICS[1], text)
    } else {
        (describe::METRICS[0], plain(&text))
    };
    Ok(([(http::header::CONTENT_TYPE, content_type)], text).into_response())
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    #[serde(default)]
    group: String,
    /// `key=value`, several separated by commas.
    #[serde(default)]
    labels: String,
    /// State names, separated by commas.
    #[serde(default)]
    state: String,
    #[serde(default)]
    page_size: u32,
    #[serde(default)]
    page_token: String,
}

async fn list_sandboxes(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Answer<Json<SandboxesJson>> {
    let Query(query) = query.map_err(|error| bad_query(&error))?;
    let words = |text: &str| text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let label = |word: String| {
        word.split_once('=')
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .ok_or_else(|| invalid("labels", "write `key=value`"))
    };
    let state = |word: String| {
        SandboxState::parse(&word).ok_or_else(|| invalid("state", format_args!("`{}` is no state", spec::clip(&word))))
    };
    let page = Page::parse(query.page_size, &query.page_token)?;
    let labels = words(&query.labels).into_iter().map(label).collect::<Result<BTreeMap<_, _>, Error>>()?;
    let filter = Filter {
        group: (!query.group.is_empty()).then_some(query.group),
        labels: spec::labels(labels)?,
        states: words(&query.state).into_iter().map(state).collect::<Result<_, Error>>()?,
        limit: page.limit,
        before: page.before.clone(),
        ..Filter::default()
    };
    let rows = parts.sandboxes.seen_by(&caller).list(filter).await?;
    let next_page_token = page.next_token(&rows, |row| (row.created_at, row.id.as_str()));
    let sandboxes = rows.iter().map(|row| SandboxJson::new(&parts.sandboxes, row)).collect();
    Ok(Json(SandboxesJson { sandboxes, next_page_token }))
}

async fn create_sandbox(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    body: Result<Json<json::CreateJson>, JsonRejection>,
) -> Answer<(StatusCode, Json<SandboxJson>)> {
    let Json(body) = body.map_err(|error| bad_body(&error))?;
    Ok((StatusCode::CREATED, Json(create(&parts, &caller, body).await?)))
}

/// Creates a sandbox, and waits for it where the request asks for that.
async fn create(parts: &Parts, caller: &Principal, body: json::CreateJson) -> Result<SandboxJson, Error> {
    let timeout = wait_bound(body.wait, body.timeout_secs)?;
    let new = NewSandbox::parse(body.name, body.spec.try_into()?, body.labels, body.group)?;
    let sandbox = parts.sandboxes.seen_by(caller).create(new).await?;
    let sandbox = parts.sandboxes.settled(sandbox, Desired::Running, timeout).await?;
    Ok(SandboxJson::new(&parts.sandboxes, &sandbox))
}

async fn get_sandbox(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
) -> Answer<Json<SandboxJson>> {
    let sandbox = parts.sandboxes.seen_by(&caller).get(&id).await?;
    Ok(Json(SandboxJson::new(&parts.sandboxes, &sandbox)))
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ChangeQuery {
    #[serde(default)]
    wait: bool,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    timeout_secs: u32,
}

impl ChangeQuery {
    fn timeout(&self) -> Result<Option<Duration>, Error> {
        wait_bound(self.wait, self.timeout_secs)
    }
}

type ChangeParameters = Result<Query<ChangeQuery>, QueryRejection>;

async fn delete_sandbox(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    query: ChangeParameters,
) -> Answer<Json<SandboxJson>> {
    let Query(query) = query.map_err(|error| bad_query(&error))?;
    let timeout = query.timeout()?;
    let sandbox = parts.sandboxes.seen_by(&caller).delete(&id, query.force).await?;
    let sandbox = parts.sandboxes.settled(sandbox, Desired::Deleted, timeout).await?;
    Ok(Json(SandboxJson::new(&parts.sandboxes, &sandbox)))
}

async fn start_sandbox(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    query: ChangeParameters,
) -> Answer<Json<SandboxJson>> {
    let Query(query) = query.map_err(|error| bad_query(&error))?;
    let timeout = query.timeout()?;
    let sandbox = parts.sandboxes.seen_by(&caller).start(&id).await?;
    let sandbox = parts.sandboxes.settled(sandbox, Desired::Running, timeout).await?;
    Ok(Json(SandboxJson::new(&parts.sandboxes, &sandbox)))
}

async fn stop_sandbox(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    query: ChangeParameters,
) -> Answer<Json<SandboxJson>> {
    let Query(query) = query.map_err(|error| bad_query(&error))?;
    let timeout = query.timeout()?;
    let sandbox = parts.sandboxes.seen_by(&caller).stop(&id).await?;
    let sandbox = parts.sandboxes.settled(sandbox, Desired::Stopped, timeout).await?;
    Ok(Json(SandboxJson::new(&parts.sandboxes, &sandbox)))
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JobsQuery {
    #[serde(default)]
    sandbox: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    page_size: u32,
    #[serde(default)]
    page_token: String,
}

async fn list_jobs(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    query: Result<Query<JobsQuery>, QueryRejection>,
) -> Answer<Json<JobsJson>> {
    let Query(query) = query.map_err(|error| bad_query(&error))?;
    let status = match query.status.as_str() {
        "" => None,
        text => Some(
            JobStatus::ALL
                .into_iter()
                .find(|status| status.as_str() == text)
                .ok_or_else(|| invalid("status", format_args!("`{}` is no status of a job", spec::clip(text))))?,
        ),
    };
    let page = Page::parse(query.page_size, &query.page_token)?;
    let rows = parts.sandboxes.seen_by(&caller).jobs(&query.sandbox, status, page.before.clone(), page.limit).await?;
    let next_page_token = page.next_token(&rows, |row| (row.created_at, row.id.as_str()));
    Ok(Json(JobsJson { jobs: rows.iter().map(JobJson::from).collect(), next_page_token }))
}

async fn get_job(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
) -> Answer<Json<JobJson>> {
    let job = parts.sandboxes.seen_by(&caller).job(&id).await?;
    Ok(Json(JobJson::from(&job)))
}

async fn list_runners(State(parts): State<Arc<Parts>>) -> Json<RunnersJson> {
    Json(RunnersJson { runners: parts.sandboxes.fleet.list().into_iter().map(RunnerJson::from).collect() })
}

async fn get_runner(State(parts): State<Arc<Parts>>, Path(id): Path<String>) -> Answer<Json<RunnerJson>> {
    Ok(Json(parts.sandboxes.fleet.find(&id)?.into()))
}

/// What was written is told as it was written.
fn bad_query(error: &QueryRejection) -> Refusal {
    Refusal(malformed::bad_query(error))
}

/// The same of a body.
fn bad_body(error: &JsonRejection) -> Refusal {
    Refusal(malformed::bad_body(error, BODY_MAX_BYTES))
}
