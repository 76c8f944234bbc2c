//! The service as REST: each row with curl.

use std::process::{Command, Stdio};

use dispense_e2e::{Host, Mode};
use serde_json::{Value, json};

struct Curl {
    url: String,
    key: String,
}

impl Curl {
    /// Status and JSON of a request.
    fn call(&self, verb: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.call_as(Some(&self.key), verb, path, body)
    }

    fn call_as(&self, key: Option<&str>, verb: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--show-error",
            "--max-time",
            "90",
            "--request",
            verb,
            "--write-out",
            "\n%{http_code}",
        ]);
        if let Some(key) = key {
            command.args(["--header", &format!("authorization: Bearer {key}")]);
        }
        if let Some(body) = body {
            command.args(["--header", "content-type: application/json", "--data", &body.to_string()]);
        }
        let output =
            command.arg(format!("{}{path}", self.url)).stdin(Stdio::null()).output().expect("curl is installed");
        let text = String::from_utf8(output.stdout).expect("text");
        let (body, status) = text.rsplit_once('\n').expect("curl tells the status");
        (status.parse().expect("a number"), serde_json::from_str(body).unwrap_or_else(|_| panic!("JSON: {text}")))
    }
}

#[test]
fn every_row_of_the_rest_table_answers_as_the_contract_says() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let curl = Curl { url: format!("http://{}", up.address()), key: up.key() };
    let (status, made) =
        curl.call("POST", "/v1/sandboxes", Some(json!({"name": "web", "group": "g", "resources": {"memory": 1}})));
    assert_eq!(status, 200, "{made}");
    assert_eq!((&made["sandbox"]["name"], &made["sandbox"]["type"]), (&json!("web"), &json!("SANDBOX_TYPE_LOCAL")));
    let (status, waited) = curl.call("POST", "/v1/sandboxes/web/wait", Some(json!({"timeoutSeconds": 30})));
    assert_eq!((status, &waited["success"]), (200, &json!(true)), "{waited}");
    let (status, waited) = curl.call("POST", "/v1/sandboxes/-/wait", Some(json!({"group": "g"})));
    assert_eq!((status, &waited["success"]), (200, &json!(true)), "{waited}");
    let (status, got) = curl.call("GET", "/v1/sandboxes/web", None);
    assert_eq!((status, &got["sandbox"]["state"]), (200, &json!("running")), "{got}");
    let names = |query: &str| {
        let (status, list) = curl.call("GET", &format!("/v1/sandboxes?{query}"), None);
        assert_eq!(status, 200, "{list}");
        let rows = list["sandboxes"].as_array().expect("a list").clone();
        rows.iter().map(|row| row["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("show_local=true&verbose=true&group=g"), ["web"]);
    assert!(names("show_remote").is_empty() && names("group=other").is_empty());
    for path in ["/v1/claude/web/status", "/v1/claude/web/logs?task_id=x"] {
        let (status, refused) = curl.call("GET", path, None);
        assert_eq!((status, &refused["code"]), (409, &json!("failed_precondition")), "{refused}");
    }
    let task = json!({"sandboxIdentifier": "web", "taskDescription": "x"});
    let (status, refused) = curl.call("POST", "/v1/claude/tasks", Some(task));
    assert_eq!((status, &refused["details"]["reason"]), (409, &json!("tasks_unavailable")), "{refused}");
    let key = "sk-test-0123456789abcdef";
    let (status, valid) = curl.call("POST", "/v1/config/api-key/validate", Some(json!({"apiKey": key})));
    assert_eq!((status, &valid["valid"]), (200, &json!(true)), "{valid}");
    assert_eq!(curl.call("GET", "/v1/config/api-key", None).0, 404);
    assert_eq!(curl.call("POST", "/v1/config/api-key", Some(json!({"api_key": key}))).0, 200);
    assert_eq!(curl.call("GET", "/v1/config/api-key", None), (200, json!({"apiKey": key})));
    let (status, gone) = curl.call("DELETE", "/v1/sandboxes/web?force=true", None);
    assert_eq!((status, &gone["success"]), (200, &json!(true)), "{gone}");
    let (status, gone) = curl.call("DELETE", "/v1/sandboxes/-?delete_all=true", None);
    assert_eq!((status, &gone["success"]), (200, &json!(true)), "{gone}");
    up.stop();
    host.finish();
}

#[test]
fn what_is_wrong_is_refused_with_a_status_a_code_and_the_field() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let curl = Curl { url: format!("http://{}", up.address()), key: up.key() };
    let cases = [
        ("GET", "/v1/sandboxes/nobody", None, 404, "not_found", ""),
        ("GET", "/v1/sandboxes?colour=red", None, 400, "invalid_argument", "colour"),
        ("GET", "/v1/sandboxes?page_size=5000", None, 400, "invalid_argument", "page_size"),
        ("GET", "/v1/sandboxes?page_token=nonsense", None, 400, "invalid_argument", "page_token"),
        ("DELETE", "/v1/sandboxes/-", None, 400, "invalid_argument", "identifier"),
        ("POST", "/v1/sandboxes", Some(json!({"colour": "red"})), 400, "invalid_argument", "body"),
        ("POST", "/v1/sandboxes", Some(json!({"name": "No Name"})), 400, "invalid_argument", "name"),
        ("POST", "/v1/sandboxes", Some(json!({"isRemote": true})), 409, "failed_precondition", ""),
        ("POST", "/v1/config/api-key", Some(json!({"apiKey": "short"})), 400, "invalid_argument", "api_key"),
    ];
    for (verb, path, body, status, code, field) in cases {
        let (got, refused) = curl.call(verb, path, body);
        assert_eq!((got, &refused["code"]), (status, &json!(code)), "{verb} {path}: {refused}");
        if !field.is_empty() {
            assert_eq!(refused["details"]["field"], json!(field), "{verb} {path}: {refused}");
        }
    }
    for key in [None, Some("dsp_0000000000000000000000000000000000000000")] {
        let (status, refused) = curl.call_as(key, "GET", "/v1/sandboxes", None);
        assert_eq!((status, &refused["code"]), (401, &json!("unauthenticated")), "{refused}");
    }
    up.stop();
    host.finish();
}
