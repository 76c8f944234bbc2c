//! Bodies and queries that are not what a route takes: which field it is, and what the parser says of it.

use std::fmt::Display;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use dispense_api::error::{Code, Error};
use http::StatusCode;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::Value;
use serde_path_to_error::{Path, Track};

use super::BODY_TOO_LARGE;
use crate::sandbox::spec::{clip, invalid};

const BODY: &str = "body";

/// A query that a handler does not take.
pub(super) fn bad_query(error: &QueryRejection) -> Error {
    located::<serde::de::value::Error>(error).unwrap_or_else(|| invalid("query", error.body_text()))
}

/// A body that a handler does not take; it takes so many bytes.
pub(super) fn bad_body(error: &JsonRejection, max_bytes: usize) -> Error {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(max_bytes),
        _ => located::<serde_json::Error>(error).unwrap_or_else(|| invalid(BODY, error.body_text())),
    }
}

/// A body over its limit.
pub(super) fn too_large(max_bytes: usize) -> Error {
    Error::new(Code::ResourceExhausted, BODY_TOO_LARGE, format!("the body is over {max_bytes} bytes"))
}

/// The message that the fields of a body make.
pub(super) fn message(kind: MessageDescriptor, fields: Value) -> Result<DynamicMessage, Error> {
    let mut track = Track::new();
    let fields = serde_path_to_error::Deserializer::new(fields, &mut track);
    DynamicMessage::deserialize(kind, fields).map_err(|error| at(&track.path(), &error))
}

/// What the parser said, where it knows the field.
fn located<E: std::error::Error + 'static>(rejection: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let mut cause = rejection.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<serde_path_to_error::Error<E>>() {
            return Some(at(error.path(), error.inner()));
        }
        cause = error.source();
    }
    None
}

fn at(path: &Path, why: &dyn Display) -> Error {
    match path.iter().next() {
        Some(_) => invalid(&clip(&path.to_string()), why),
        None => invalid(BODY, why),
    }
}
