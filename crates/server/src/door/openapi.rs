//! What the REST routes take and answer, as OpenAPI 3.1, and a page for people. Both are made from the code: the
//! routes from the authorisation table, the schemas from the types that are parsed and sent, the service's from its
//! descriptors with the comments of its proto files.

mod page;
mod proto;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::rest::described;
use super::service::ROUTES;
use crate::auth::Role;
use crate::auth::table::{self, Need};

pub(super) use page::{escape, page};

const REFERENCE: &str = "/components/schemas/";

/// One route of `/api/v1`, described.
pub(super) struct Described {
    pub(super) verb: &'static str,
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    pub(super) query: Option<Value>,
    pub(super) body: Option<Body>,
    pub(super) answer: Answer,
}

/// What a route takes.
pub(super) enum Body {
    Json(Value),
    /// Any bytes.
    Bytes,
}

/// What a route answers with when all is well.
pub(super) enum Answer {
    Json(u16, Value),
    /// Of this content type.
    Text(&'static [&'static str]),
    /// Any bytes, or a range of them.
    Bytes,
}

/// The content type of bytes that mean nothing to this server.
pub(super) const BYTES: &str = "application/octet-stream";

/// The document.
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = REFERENCE.into();
    settings.meta_schema = None;
    let mut schemas = settings.into_generator();
    let mut paths = Map::new();
    for route in described(&mut schemas) {
        let operation = operation(&route);
        add(&mut paths, route.verb, route.path, operation);
    }
    let mut components = components(schemas);
    for (verb, path, name) in ROUTES {
        let operation = proto::operation(verb, path, name, &mut components);
        add(&mut paths, verb, path, operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Dispense",
            "version": dispense_api::VERSION,
            "description": "Sandboxes: isolated Linux environments. The gRPC services are published by reflection.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    })
}

fn components(mut schemas: SchemaGenerator) -> Map<String, Value> {
    schemas.take_definitions(true).into_iter().collect()
}

fn add(paths: &mut Map<String, Value>, verb: &str, path: &str, mut operation: Value) {
    let security = match table::rest(verb, path) {
        Some(Need::Open) | None => json!([]),
        Some(Need::SandboxToken | Need::Role(_)) => json!([{"bearer": []}, {"header": []}]),
    };
    let role = match table::rest(verb, path) {
        Some(Need::Role(role)) => role_of(role),
        Some(Need::SandboxToken) => "Needs the sandbox's own token.",
        Some(Need::Open) | None => "Asks for no key.",
    };
    let about = operation["description"].as_str().unwrap_or_default().to_owned();
    operation["description"] = format!("{about} {role}").trim().into();
    operation["security"] = security;
    let entry = paths.entry(path).or_insert_with(|| json!({}));
    entry[verb.to_lowercase()] = operation;
}

fn role_of(role: Role) -> &'static str {
    match role {
        Role::Viewer => "Needs an API key.",
        Role::Member => "Needs the role `member`.",
        Role::Admin => "Needs the role `admin`.",
    }
}

fn operation(route: &Described) -> Value {
    let mut parameters = path_parameters(route.path);
    let properties = route.query.as_ref().and_then(|query| query["properties"].as_object());
    let required = route.query.as_ref().and_then(|query| query["required"].as_array());
    for (name, schema) in properties.into_iter().flatten() {
        let is_required = required.is_some_and(|names| names.iter().any(|required| required == name));
        let mut parameter = json!({"name": name, "in": "query", "required": is_required, "schema": schema});
        if let Some(about) = schema["description"].as_str() {
            parameter["description"] = about.into();
        }
        parameters.push(parameter);
    }
    let (status, content) = match &route.answer {
        Answer::Json(status, schema) => (*status, json!({"application/json": {"schema": schema}})),
        Answer::Text(kinds) => {
            let text = |kind: &&str| ((*kind).to_owned(), json!({"schema": {"type": "string"}}));
            (200, kinds.iter().map(text).collect::<Map<_, _>>().into())
        }
        Answer::Bytes => (200, json!({BYTES: {}})),
    };
    let mut operation = json!({
        "summary": route.summary,
        "operationId": operation_id(route.verb, route.path),
        "tags": [route.path.trim_start_matches("/api/v1/").split('/').next().unwrap_or_default().trim_matches('/')],
        "parameters": parameters,
        "responses": responses(status, content, "ErrorJson"),
    });
    if let Answer::Bytes = &route.answer {
        operation["responses"]["206"] = json!({"description": "The range that was asked for.", "content": {BYTES: {}}});
    }
    if let Some(body) = &route.body {
        let content = match body {
            Body::Json(schema) => json!({"application/json": {"schema": schema}}),
            Body::Bytes => json!({BYTES: {}}),
        };
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

fn responses(status: u16, content: Value, error: &str) -> Value {
    let refusal = json!({"application/json": {"schema": {"$ref": format!("#{REFERENCE}{error}")}}});
    json!({
        status.to_string(): {"description": "Done.", "content": content},
        "4XX": {"description": "Refused: the code, a sentence, and details by name.", "content": refusal},
        "5XX": {"description": "Not now, or a fault of the server.", "content": refusal},
    })
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}))
        .collect()
}

fn operation_id(verb: &str, path: &str) -> String {
    let words = path.split(['/', '-']).filter(|part| !part.is_empty() && *part != "api" && *part != "v1");
    let words = words.map(|word| word.trim_matches(['{', '}']));
    words.fold(verb.to_lowercase(), |id, word| format!("{id}_{word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cargo run -- openapi > docs/openapi.json` writes it.
    #[test]
    fn the_committed_document_is_what_the_code_says() {
        let committed = include_str!("../../../../docs/openapi.json");
        let committed: Value = serde_json::from_str(committed).expect("JSON");
        assert!(committed == document(), "docs/openapi.json is old: `cargo run -- openapi > docs/openapi.json`");
    }

    #[test]
    fn every_route_of_the_table_is_described() {
        let document = document();
        for (verb, path, _) in table::REST {
            assert!(document["paths"][path][verb.to_lowercase()].is_object(), "{verb} {path}");
        }
        let described: usize = document["paths"]
            .as_object()
            .expect("paths")
            .values()
            .map(|path| path.as_object().map_or(0, Map::len))
            .sum();
        assert_eq!(described, table::REST.len());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(value: &Value, document: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(target) = fields.get("$ref").and_then(Value::as_str) {
                        let pointer = target.strip_prefix('#').expect("a reference into this document");
                        assert!(document.pointer(pointer).is_some(), "{target}");
                    }
                    fields.values().for_each(|value| walk(value, document));
                }
                Value::Array(items) => items.iter().for_each(|value| walk(value, document)),
                _ => {}
            }
        }
        let document = document();
        walk(&document, &document);
    }
}
