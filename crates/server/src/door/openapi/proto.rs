//! Operations and schemas of the service, from its descriptors: the proto3 JSON mapping, and the comments.

use prost_reflect::{Cardinality, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::super::service::method;
use super::{REFERENCE, path_parameters, responses};

/// One route of the service.
pub(super) fn operation(verb: &str, path: &str, name: &str, components: &mut Map<String, Value>) -> Value {
    let method = method(name).expect("the table names methods of the service");
    let (input, output) = (method.input(), method.output());
    let in_path = |field: &FieldDescriptor| path.contains(&format!("{{{}}}", field.name()));
    let mut parameters = path_parameters(path);
    for parameter in parameters.iter_mut().filter(|parameter| parameter["name"] == "identifier") {
        parameter["description"] = "An id or a name; ids win. `-` for none, where a group or all are meant.".into();
    }
    let is_query = verb == "GET" || verb == "DELETE";
    if is_query {
        for field in input.fields().filter(|field| !in_path(field)) {
            parameters.push(json!({
                "name": field.json_name(),
                "in": "query",
                "required": false,
                "description": comment(&field.parent_file(), field.path()),
                "schema": schema(&field, components),
            }));
        }
    }
    message(&output, components);
    let error = method.parent_pool().get_message_by_name("dispense.ErrorResponse").expect("the service has it");
    message(&error, components);
    let content = json!({"application/json": {"schema": {"$ref": reference(&output)}}});
    let mut operation = json!({
        "summary": name,
        // Of one method with two routes the second is about what the query says.
        "operationId": if path.contains('{') || verb != "DELETE" { name.to_owned() } else { format!("{name}ByQuery") },
        "tags": ["DispenseService"],
        "description": comment(&method.parent_file(), method.path()),
        "parameters": parameters,
        "responses": responses(200, content, "dispense.ErrorResponse"),
    });
    if !is_query {
        message(&input, components);
        let body = json!({"application/json": {"schema": {"$ref": reference(&input)}}});
        operation["requestBody"] = json!({"required": true, "content": body});
    }
    operation
}

fn reference(message: &MessageDescriptor) -> String {
    format!("#{REFERENCE}{}", message.full_name())
}

/// Describes a message, once.
fn message(message: &MessageDescriptor, components: &mut Map<String, Value>) {
    let name = message.full_name().to_owned();
    if components.contains_key(&name) {
        return;
    }
    // Before its fields, which may lead back to it.
    components.insert(name.clone(), Value::Null);
    let mut properties = Map::new();
    for field in message.fields() {
        let mut schema = schema(&field, components);
        let about = comment(&field.parent_file(), field.path());
        if !about.is_empty() && schema.get("$ref").is_none() {
            schema["description"] = about.into();
        }
        properties.insert(field.json_name().to_owned(), schema);
    }
    let described = json!({
        "type": "object",
        "description": comment(&message.parent_file(), message.path()),
        "properties": properties,
    });
    components.insert(name, described);
}

fn schema(field: &FieldDescriptor, components: &mut Map<String, Value>) -> Value {
    if field.is_map() {
        return json!({"type": "object", "additionalProperties": {"type": "string"}});
    }
    let one = single(&field.kind(), components);
    if field.cardinality() == Cardinality::Repeated { json!({"type": "array", "items": one}) } else { one }
}

fn single(kind: &Kind, components: &mut Map<String, Value>) -> Value {
    match kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::String => json!({"type": "string"}),
        Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({"type": "integer", "format": "int32"}),
        Kind::Uint32 | Kind::Fixed32 => json!({"type": "integer", "format": "int32", "minimum": 0}),
        // JSON's numbers lose the last digits of these.
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 | Kind::Uint64 | Kind::Fixed64 => {
            json!({"type": ["string", "integer"], "format": "int64"})
        }
        Kind::Float | Kind::Double => json!({"type": "number"}),
        Kind::Enum(names) => enumeration(names),
        Kind::Message(inner) if inner.full_name() == "google.protobuf.Timestamp" => {
            json!({"type": "string", "format": "date-time"})
        }
        Kind::Message(inner) => {
            message(inner, components);
            json!({"$ref": reference(inner)})
        }
    }
}

fn enumeration(names: &EnumDescriptor) -> Value {
    let values: Vec<String> = names.values().map(|value| value.name().to_owned()).collect();
    json!({"type": "string", "enum": values})
}

/// The comment before a thing in its proto file.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    let location = info.and_then(|info| info.location.iter().find(|location| location.path == path));
    let text = location.map(|location| location.leading_comments()).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
