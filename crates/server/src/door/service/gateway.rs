//! The service as REST: a table of routes, and one handler that maps path, query and body to the request message
//! and the response to JSON, as the proto3 JSON mapping says.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, MatchedPath, Path, RawQuery, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use axum::{Extension, Json, Router};
use dispense_api::error::{Code, Error};
use http::StatusCode;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use serde_json::{Map, Value};

use super::calls::Calls;
use super::inline::error_response;
use crate::auth::gate::Refused;
use crate::auth::{Principal, table};
use crate::door::observe::Matched;
use crate::door::slow::in_time;
use crate::door::{Parts, admit, http_head, malformed, method_unknown, while_admitted};
use crate::sandbox::spec::{clip, invalid};

/// A create with the text of a task.
const BODY_MAX_BYTES: usize = 1 << 20;
/// In a path, for no identifier: whom it is about stands in the body or the query.
const NOBODY: &str = "-";
const SERVICE: &str = "dispense.DispenseService";

/// Verb, path and method.
pub(in crate::door) const ROUTES: &[(&str, &str, &str)] = &[
    ("POST", "/v1/sandboxes", "CreateSandbox"),
    ("GET", "/v1/sandboxes", "ListSandboxes"),
    ("GET", "/v1/sandboxes/{identifier}", "GetSandbox"),
    ("DELETE", "/v1/sandboxes/{identifier}", "DeleteSandbox"),
    // Of a group, or all.
    ("DELETE", "/v1/sandboxes", "DeleteSandbox"),
    ("POST", "/v1/sandboxes/{identifier}/wait", "WaitForSandbox"),
    ("POST", "/v1/claude/tasks", "RunClaudeTask"),
    ("GET", "/v1/claude/{sandbox_identifier}/status", "GetClaudeStatus"),
    ("GET", "/v1/claude/{sandbox_identifier}/logs", "GetClaudeLogs"),
    ("GET", "/v1/config/api-key", "GetAPIKey"),
    ("POST", "/v1/config/api-key", "SetAPIKey"),
    ("POST", "/v1/config/api-key/validate", "ValidateAPIKey"),
];

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(dispense_api::FILE_DESCRIPTOR_SET).expect("the build generated it from proto/")
});

/// A method of the service.
pub(in crate::door) fn method(name: &str) -> Option<MethodDescriptor> {
    POOL.get_service_by_name(SERVICE)?.methods().find(|method| method.name() == name)
}

/// All routes, each with its row in the authorisation table.
pub(in crate::door) fn router(parts: Arc<Parts>) -> Router {
    let calls = Arc::new(Calls { parts: parts.clone() });
    let mut router = Router::new();
    for (verb, path, name) in ROUTES {
        let method = method(name).expect("the table names methods of the service");
        let filter = MethodFilter::try_from(http::Method::from_bytes(verb.as_bytes()).expect("a verb")).expect("known");
        let handler = move |State(calls): State<Arc<Calls>>,
                            Extension(caller): Extension<Principal>,
                            Path(path): Path<HashMap<String, String>>,
                            RawQuery(query): RawQuery,
                            body: Result<Bytes, BytesRejection>| {
            let method = method.clone();
            async move {
                let answer = async {
                    let body = body.map_err(too_large)?;
                    let request = parse(&method.input(), path, query.as_deref().unwrap_or_default(), &body)?;
                    answer(&calls, &caller, &method, &request).await
                };
                answer.await.map_or_else(|error| refusal(&error), |json| Json(json).into_response())
            }
        };
        router = router.route(path, on(filter, handler));
    }
    router
        .route_layer(middleware::from_fn_with_state(parts, check))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(calls)
}

async fn check(State(parts): State<Arc<Parts>>, path: MatchedPath, mut request: Request, next: Next) -> Response {
    let Some(need) = table::rest(request.method().as_str(), path.as_str()) else {
        return refusal(&method_unknown(path.as_str()));
    };
    let matched = Matched(format!("{} {}", request.method(), path.as_str()));
    let (answer, caller) = match admit(&parts.gate, &mut request, Some(need)).await {
        Ok(caller) => (while_admitted(&parts.keys, caller.as_ref(), next.run(in_time(request))).await, caller),
        Err(Refused { error, caller }) => (Err(error), caller.map(|caller| *caller)),
    };
    let mut response = answer.unwrap_or_else(|error| refusal(&error));
    matched.note(&mut response, caller);
    response
}

fn refusal(error: &Error) -> Response {
    let (status, headers) = http_head(error);
    let body = POOL.get_message_by_name("dispense.ErrorResponse").map(|kind| json(&kind, &error_response(error)));
    (status, headers, Json(body)).into_response()
}

fn too_large(rejection: BytesRejection) -> Error {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => malformed::too_large(BODY_MAX_BYTES),
        _ => invalid("body", rejection.body_text()),
    }
}

/// The request message: the body's fields, then those of the query, then those of the path.
fn parse(
    kind: &MessageDescriptor,
    path: HashMap<String, String>,
    query: &str,
    body: &[u8],
) -> Result<DynamicMessage, Error> {
    let mut fields = match body.trim_ascii() {
        [] => Map::new(),
        body => match serde_json::from_slice(body).map_err(|error| invalid("body", error))? {
            Value::Object(fields) => fields,
            _ => return Err(invalid("body", "it is not a JSON object")),
        },
    };
    for (name, text) in form_urlencoded::parse(query.as_bytes()) {
        let field = field(kind, &name)
            .ok_or_else(|| invalid(&clip(&name), format_args!("there is no such parameter of {}", kind.name())))?;
        add(&mut fields, &field, &text)?;
    }
    for (name, text) in path {
        if text != NOBODY {
            let field = field(kind, &name).ok_or_else(|| invalid(&name, "there is no such parameter"))?;
            fields.remove(field.name());
            fields.insert(field.json_name().to_owned(), Value::String(text));
        }
    }
    malformed::message(kind.clone(), Value::Object(fields))
}

/// By its name in the proto file or in JSON.
fn field(kind: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    kind.get_field_by_json_name(name).or_else(|| kind.get_field_by_name(name))
}

/// Adds a parameter of the query. A switch may stand alone: `?force`.
fn add(fields: &mut Map<String, Value>, field: &FieldDescriptor, text: &str) -> Result<(), Error> {
    let value = match field.kind() {
        Kind::Bool => match text {
            "" | "true" | "1" => Value::Bool(true),
            "false" | "0" => Value::Bool(false),
            _ => return Err(invalid(field.name(), format_args!("`{}` is neither true nor false", clip(text)))),
        },
        Kind::Message(_) => return Err(invalid(field.name(), "it stands in the body")),
        // Numbers may be strings in the JSON mapping.
        _ => Value::String(text.to_owned()),
    };
    let name = field.json_name().to_owned();
    if field.is_list() {
        match fields.entry(name).or_insert_with(|| Value::Array(vec![])) {
            Value::Array(list) => list.push(value),
            _ => return Err(invalid(field.name(), "it stands in the body and in the query")),
        }
    } else {
        fields.insert(name, value);
    }
    Ok(())
}

async fn answer(
    calls: &Calls,
    caller: &Principal,
    method: &MethodDescriptor,
    request: &DynamicMessage,
) -> Result<Value, Error> {
    let kind = method.output();
    Ok(match method.name() {
        "CreateSandbox" => json(&kind, &calls.create(caller, typed(request)?).await?),
        "ListSandboxes" => json(&kind, &calls.list(caller, typed(request)?).await?),
        "GetSandbox" => json(&kind, &calls.get(caller, typed(request)?).await?),
        "DeleteSandbox" => json(&kind, &calls.delete(caller, typed(request)?).await?),
        "WaitForSandbox" => json(&kind, &calls.wait(caller, typed(request)?).await?),
        "RunClaudeTask" => match calls.run_task(caller, typed(request)?).await? {},
        "GetClaudeStatus" => json(&kind, &calls.task_status(caller, typed(request)?).await?),
        "GetClaudeLogs" => json(&kind, &calls.task_logs(caller, typed(request)?).await?),
        "GetAPIKey" => json(&kind, &calls.get_key(caller).await?),
        "SetAPIKey" => json(&kind, &calls.set_key(caller, typed(request)?).await?),
        "ValidateAPIKey" => json(&kind, &calls.validate_key(&typed(request)?).await),
        name => return Err(Error::new(Code::Unimplemented, "route_unknown", format!("{name} is not served as REST"))),
    })
}

fn typed<T: Message + Default>(request: &DynamicMessage) -> Result<T, Error> {
    T::decode(request.encode_to_vec().as_slice()).map_err(|error| invalid("body", error))
}

/// A message as JSON, with every field that has a value of its own, so that a `false` is seen.
fn json<T: Message>(kind: &MessageDescriptor, message: &T) -> Value {
    let options = SerializeOptions::new().skip_default_fields(false);
    // Both are generated from the same file.
    let dynamic = DynamicMessage::decode(kind.clone(), message.encode_to_vec().as_slice());
    dynamic
        .ok()
        .and_then(|dynamic| dynamic.serialize_with_options(serde_json::value::Serializer, &options).ok())
        .unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed<T: Message + Default>(name: &str, path: &[(&str, &str)], query: &str, body: &str) -> Result<T, Error> {
        let kind = method(name).expect("a method").input();
        let path = path.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        typed(&parse(&kind, path, query, body.as_bytes())?)
    }

    #[test]
    fn names_of_both_forms_are_taken_and_the_path_wins() {
        use dispense_api::service::{CreateSandboxRequest, ListSandboxesRequest, WaitForSandboxRequest};
        let body = r#"{"is_remote": true, "sourceDirectory": "/x", "resources": {"cpu": 2, "auto_stop": "5"}}"#;
        let create: CreateSandboxRequest = parsed("CreateSandbox", &[], "", body).expect("it parses");
        let resources = create.resources.expect("given");
        assert_eq!((create.is_remote, create.source_directory.as_str()), (true, "/x"));
        assert_eq!((resources.cpu, resources.auto_stop), (2, 5));
        let query = "show_local&verbose=true&pageSize=7&states=running&states=failed";
        let list: ListSandboxesRequest = parsed("ListSandboxes", &[], query, "").expect("it parses");
        assert_eq!((list.show_local, list.verbose, list.page_size), (true, true, 7));
        assert_eq!(list.states, ["running", "failed"]);
        let wait = r#"{"identifier": "other", "timeoutSeconds": 3, "group": "g"}"#;
        let one: WaitForSandboxRequest = parsed("WaitForSandbox", &[("identifier", "web")], "", wait).expect("parses");
        assert_eq!((one.identifier.as_str(), one.timeout_seconds), ("web", 3));
        let group = r#"{"group": "g"}"#;
        let all: WaitForSandboxRequest = parsed("WaitForSandbox", &[("identifier", "-")], "", group).expect("parses");
        assert_eq!((all.identifier.as_str(), all.group.as_str()), ("", "g"));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        use dispense_api::service::ListSandboxesRequest;
        let cases = [
            ("colour=red", ""),
            ("verbose=maybe", ""),
            ("pageSize=many", ""),
            ("", "[1]"),
            ("", "{"),
            ("", r#"{"colour": 1}"#),
            ("states=running", r#"{"states": "x"}"#),
        ];
        for (query, body) in cases {
            let error = parsed::<ListSandboxesRequest>("ListSandboxes", &[], query, body).expect_err(query);
            assert_eq!(error.code, Code::InvalidArgument, "{query} {body}");
        }
    }
}
