//! What a preview says when there is nothing to show: a page for people, which looks again by itself, JSON for
//! programs.

use axum::Json;
use axum::body::Body;
use axum::response::{Html, IntoResponse, Response};
use dispense_api::error::{Code, Error};
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, RETRY_AFTER};
use http::{HeaderMap, HeaderValue};
use serde_json::json;

use super::passes;
use crate::door::http_head;
use crate::door::openapi::escape;
use crate::preview::Place;

/// Between two looks of a page that waits.
const LOOK_AGAIN_SECS: u32 = 2;

/// Whether the caller shows pages.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    headers.get(ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|accept| accept.contains("text/html"))
}

/// The answer that stands for an error.
pub(super) fn refusal(place: &Place, error: &Error, for_people: bool) -> Response {
    let (status, headers) = http_head(error);
    let waits = passes(error);
    let mut response: Response<Body> = if for_people {
        Html(html(place, error, waits)).into_response()
    } else {
        let details = &error.details;
        let body = json!({
            "code": error.code.as_str(), "reason": error.reason, "message": error.message, "details": details,
        });
        Json(body).into_response()
    };
    *response.status_mut() = status;
    let head = response.headers_mut();
    head.extend(headers);
    head.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    head.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    if waits {
        head.insert(RETRY_AFTER, HeaderValue::from(LOOK_AGAIN_SECS));
    }
    response
}

fn html(place: &Place, error: &Error, waits: bool) -> String {
    let title = match (error.reason.as_str(), error.code) {
        ("port_closed", _) => format!("Nothing listens on port {} yet", place.port),
        (_, Code::Unauthenticated | Code::PermissionDenied) => "This preview is private".to_owned(),
        (_, Code::DeadlineExceeded) => format!("{} does not answer", escape(&place.sandbox)),
        _ if waits => format!("{} is not up", escape(&place.sandbox)),
        _ => "This preview does not work".to_owned(),
    };
    let (refresh, note) = if waits {
        (
            format!("<meta http-equiv=\"refresh\" content=\"{LOOK_AGAIN_SECS}\">"),
            "<p class=\"note\">This page looks again by itself.</p>",
        )
    } else {
        (String::new(), "")
    };
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>{refresh}\
         <meta name=\"viewport\" content=\"width=device-width\"><meta name=\"color-scheme\" content=\"light dark\">\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:20vh auto;padding:0 1rem}}\
         .note{{opacity:.7}}</style></head><body><h1>{title}</h1><p>{}</p>{note}</body></html>\n",
        escape(&error.message)
    )
}
