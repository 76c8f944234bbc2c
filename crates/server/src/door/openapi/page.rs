//! The document for people: one page that loads nothing from elsewhere.

use std::fmt::Write;

use serde_json::Value;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;\
                     background:#fff}h2{margin-top:2rem;font-size:1rem}code,pre{font:14px ui-monospace,monospace}\
                     pre{background:#f4f4f4;padding:.5rem;overflow:auto}b{display:inline-block;min-width:4rem}\
                     @media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}pre{background:#262626}\
                     a{color:#8bf}}";
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// The page.
pub(in crate::door) fn page(document: &Value) -> String {
    let mut html = String::with_capacity(64 << 10);
    let info = &document["info"];
    let title = escape(text(&info["title"]));
    let about = escape(text(&info["description"]));
    // Writing to a string does not fail.
    let _ = write!(
        html,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>{title} API</title><style>{STYLE}</style><h1>{title} API</h1><p>{about} \
         <a href=/openapi.json>openapi.json</a></p>"
    );
    for (path, operations) in document["paths"].as_object().into_iter().flatten() {
        for method in METHODS.into_iter().filter(|method| operations[method].is_object()) {
            operation(&mut html, method, path, &operations[method]);
        }
    }
    html.push_str("<h1>Objects</h1>");
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        let shown = serde_json::to_string_pretty(schema).unwrap_or_default();
        let name = escape(name);
        let _ = write!(html, "<h2 id='{name}'>{name}</h2><pre>{}</pre>", escape(&shown));
    }
    html
}

fn operation(html: &mut String, method: &str, path: &str, operation: &Value) {
    let _ = write!(
        html,
        "<h2><b>{}</b> <code>{}</code></h2><p>{}. {}</p>",
        method.to_uppercase(),
        escape(path),
        escape(text(&operation["summary"]).trim_end_matches('.')),
        escape(text(&operation["description"]))
    );
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let items: Vec<String> = parameters
        .map(|one| {
            let (name, place) = (escape(text(&one["name"])), escape(text(&one["in"])));
            format!("<li><code>{name}</code> ({place}) {}</li>", escape(text(&one["description"])))
        })
        .collect();
    if !items.is_empty() {
        let _ = write!(html, "<ul>{}</ul>", items.concat());
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
    link(html, "Takes", body);
    for answer in operation["responses"].as_object().into_iter().flatten().map(|(_, answer)| answer).take(1) {
        link(html, "Answers", &answer["content"]["application/json"]["schema"]["$ref"]);
    }
}

fn link(html: &mut String, what: &str, reference: &Value) {
    if let Some(name) = reference.as_str().and_then(|reference| reference.rsplit('/').next()) {
        let name = escape(name);
        let _ = write!(html, "<p>{what} <a href='#{name}'>{name}</a></p>");
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(in crate::door) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_every_route_and_escapes_what_it_shows() {
        let mut document = crate::door::openapi::document();
        document["info"]["title"] = "<script>".into();
        let page = super::page(&document);
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script"));
        for path in document["paths"].as_object().expect("paths").keys() {
            assert!(page.contains(path), "{path}");
        }
    }
}
