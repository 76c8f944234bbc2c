//! The service as REST: each row with curl.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::time::Duration;

use dispense_e2e::curl::Curl;
use dispense_e2e::{Host, Mode, wait};
use serde_json::json;

/// For what a server does, on a loaded machine.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn every_row_of_the_rest_table_answers_as_the_contract_says() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let curl = Curl::of(&up);
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
    assert!(valid["message"].as_str().expect("a text").starts_with("only the form was checked"), "{valid}");
    assert_eq!(curl.call("GET", "/v1/config/api-key", None).0, 404);
    assert_eq!(curl.call("POST", "/v1/config/api-key", Some(json!({"api_key": key}))).0, 200);
    assert_eq!(curl.call("GET", "/v1/config/api-key", None), (200, json!({"apiKey": key})));
    let (status, gone) = curl.call("DELETE", "/v1/sandboxes/web?force=true", None);
    assert_eq!((status, &gone["success"]), (200, &json!(true)), "{gone}");
    for path in ["/v1/sandboxes/-?delete_all=true", "/v1/sandboxes?deleteAll=true", "/v1/sandboxes?group=g"] {
        let (status, gone) = curl.call("DELETE", path, None);
        assert_eq!((status, &gone["success"]), (200, &json!(true)), "{path}: {gone}");
    }
    up.stop();
    host.finish();
}

#[test]
fn what_is_wrong_is_refused_with_a_status_a_code_and_the_field() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let curl = Curl::of(&up);
    let sized = |resources| json!({"resources": resources});
    let cases = [
        ("GET", "/v1/sandboxes/nobody", None, 404, "not_found", ""),
        ("GET", "/v1/sandboxes?colour=red", None, 400, "invalid_argument", "colour"),
        ("GET", "/v1/sandboxes?page_size=5000", None, 400, "invalid_argument", "page_size"),
        ("GET", "/v1/sandboxes?page_token=nonsense", None, 400, "invalid_argument", "page_token"),
        ("DELETE", "/v1/sandboxes/-", None, 400, "invalid_argument", "identifier"),
        ("POST", "/v1/sandboxes", Some(json!({"colour": "red"})), 400, "invalid_argument", "body"),
        ("POST", "/v1/sandboxes", Some(sized(json!({"cpu": "many"}))), 400, "invalid_argument", "resources.cpu"),
        ("POST", "/v1/sandboxes", Some(json!(7)), 400, "invalid_argument", "body"),
        ("POST", "/v1/sandboxes", Some(json!({"name": "No Name"})), 400, "invalid_argument", "name"),
        ("POST", "/v1/sandboxes", Some(json!({"isRemote": true})), 409, "failed_precondition", ""),
        ("POST", "/v1/config/api-key", Some(json!({"apiKey": "short"})), 400, "invalid_argument", "api_key"),
        ("POST", "/v1/sandboxes", Some(sized(json!({"memory": 1 << 20}))), 400, "invalid_argument", "resources.memory"),
        ("POST", "/v1/sandboxes", Some(sized(json!({"snapshot": "x"}))), 400, "invalid_argument", "resources.snapshot"),
        ("GET", "/v1/sandboxes/%FF", None, 400, "invalid_argument", "path"),
        ("GET", "/v1/sandboxes?group=%FF", None, 400, "invalid_argument", "query"),
        ("GET", "/api/v1/sandboxes/%FF", None, 400, "invalid_argument", "path"),
        ("POST", "/v1/sandboxes", Some(json!({"name": "x".repeat(1 << 20)})), 413, "resource_exhausted", ""),
        (
            "POST",
            "/api/v1/sandboxes",
            Some(json!({"spec": {"ttlSecs": u32::MAX}})),
            400,
            "invalid_argument",
            "spec.ttlSecs",
        ),
        (
            "POST",
            "/api/v1/keys",
            Some(json!({"name": "k", "expiresInSecs": 0})),
            400,
            "invalid_argument",
            "expiresInSecs",
        ),
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

/// Takes keys that end with `good`; returns its URL.
fn provider() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let head = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let is_good = head.filter(|line| line.starts_with("x-api-key: ")).any(|line| line.ends_with("good"));
            let status = if is_good { "200 OK" } else { "401 Unauthorized" };
            let _ = write!(&stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        }
    });
    url
}

#[test]
fn a_providers_key_is_validated_by_the_provider_and_told_nowhere() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    // A port that somebody had, and nobody has.
    let away = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    for (url, is_there) in [(provider(), true), (format!("http://{away}"), false)] {
        let up = host.up_with_env(&[("DISPENSE_PROVIDER_URL", &url), ("DISPENSE_LOG", "debug")]);
        let curl = Curl::of(&up);
        for (key, accepted, message) in [
            ("sk-test-0123456789-good", true, "the provider accepts the key"),
            ("sk-test-0123456789-bad", false, "the form is that of a key, but the provider refuses it"),
        ] {
            let (status, told) = curl.call("POST", "/v1/config/api-key/validate", Some(json!({"apiKey": key})));
            let unreached = "only the form was checked, which is that of a key: the provider said nothing: \
                             the connection to it failed";
            let wanted = if is_there { (accepted, message) } else { (true, unreached) };
            assert_eq!(status, 200, "{told}");
            assert_eq!((told["valid"] == json!(true), &told["message"]), (wanted.0, &json!(wanted.1)));
        }
        let (_, told) = curl.call("POST", "/v1/config/api-key/validate", Some(json!({"apiKey": "short"})));
        assert!(told["message"].as_str().expect("a text").contains("was not asked"), "{told}");
        up.stop();
        let log = std::fs::read_to_string(host.work_dir().with_file_name("up.log")).expect("the server wrote it");
        assert!(!log.contains("sk-test"), "{log}");
    }
    host.finish();
}

#[test]
fn a_replacement_that_cannot_be_made_leaves_the_old_sandbox_as_it_is() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let curl = Curl::of(&up);
    let create = |resources: serde_json::Value| {
        curl.call("POST", "/v1/sandboxes", Some(json!({"name": "keep", "force": true, "resources": resources})))
    };
    let (status, first) = create(json!({}));
    assert_eq!(status, 200, "{first}");
    let id = || curl.call("GET", "/v1/sandboxes/keep", None).1["sandbox"]["id"].clone();
    let before = id();
    for hopeless in [json!({"target": "nobody"}), json!({"snapshot": "nothing"})] {
        let (status, refused) = create(hopeless);
        assert!((400..500).contains(&status), "{refused}");
        assert_eq!(id(), before, "{refused}");
    }
    let (status, second) = create(json!({}));
    assert_eq!(status, 200, "{second}");
    assert_ne!(id(), before);
    up.stop();
    host.finish();
}

#[test]
fn who_waits_is_told_when_the_server_ends() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let curl = Curl::of(&up);
    // The group has one that never runs.
    let (status, made) = curl.call("POST", "/v1/sandboxes", Some(json!({"name": "box"})));
    assert_eq!(status, 200, "{made}");
    host.ok(&["stop", "box"]);
    let body = json!({"generation": 99, "timeoutSeconds": 60}).to_string();
    let mut waits = curl.command("/v1/sandboxes/box/wait");
    let waits = waits.args(["--data", &body]).stdout(std::process::Stdio::piped()).spawn().expect("curl runs");
    let asked = || String::from_utf8_lossy(&curl.ask("/metrics", &[]).body).into_owned();
    wait::until("it waits", SOON, asked, |text| text.contains("dispense_open_requests{door=\"rest\"} 2"));
    up.stop();
    let answered = waits.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&answered.stdout).into_owned();
    assert!(
        told.contains("\"code\":\"unavailable\"") && told.contains("about to end") && told.contains("sandbox `box` is"),
        "{told}"
    );
    host.finish();
}

#[test]
fn a_members_key_for_one_sandbox_uses_that_one_and_no_other() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let admin = Curl::of(&up);
    host.ok(&["create", "--name", "theirs"]);
    host.ok(&["create", "--name", "other"]);
    let id = admin.call("GET", "/v1/sandboxes/theirs", None).1["sandbox"]["id"].clone();
    let holder = |role: &str| {
        let wanted = json!({"name": role, "role": role, "sandboxIds": [id]});
        let (status, made) = admin.call("POST", "/api/v1/keys", Some(wanted));
        assert_eq!(status, 201, "{made}");
        admin.with_key(made["secret"].as_str().expect("shown once"))
    };
    let stop = |curl: &Curl, name: &str| curl.call("POST", &format!("/api/v1/sandboxes/{name}/stop"), None);
    let (status, refused) = stop(&holder("viewer"), "theirs");
    assert_eq!((status, &refused["code"]), (403, &json!("permission_denied")), "{refused}");
    let member = holder("member");
    assert_eq!(stop(&member, "theirs").0, 200);
    assert_eq!(stop(&member, "other").0, 404, "what is beyond its scope is not there");
    let (status, refused) = member.call("POST", "/v1/sandboxes", Some(json!({"name": "more"})));
    assert_eq!((status, &refused["code"]), (403, &json!("permission_denied")), "{refused}");
    up.stop();
    host.finish();
}
