//! Keys, the audit log and batches over REST, with curl, on the native backend.

use std::fs;

use dispense_e2e::curl::Curl;
use dispense_e2e::{Host, Mode};
use serde_json::{Value, json};

/// Runs a test against `dispense up`.
fn against_a_server(test: impl FnOnce(&Host, &Curl)) {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up_with_env(&[("DISPENSE_LOG", "debug")]);
    test(&host, &Curl::of(&up));
    up.stop();
    host.finish();
}

/// The values of a field of every object of a list.
fn all<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    list.as_array().expect("a list").iter().map(|one| one[field].as_str().expect("text")).collect()
}

#[test]
fn a_key_is_made_rotated_and_revoked_and_its_secret_is_told_once() {
    against_a_server(|host, curl| {
        let (status, issued) = curl.call("POST", "/api/v1/keys", Some(json!({"name": "ci", "group": "g"})));
        assert_eq!((status, &issued["key"]["role"], &issued["key"]["group"]), (201, &json!("member"), &json!("g")));
        let secret = issued["secret"].as_str().expect("told").to_owned();
        assert!(secret.starts_with("dsp_") && secret.starts_with(issued["key"]["prefix"].as_str().expect("shown")));
        let status = |key: &str| curl.call_as(Some(key), "GET", "/api/v1/sandboxes", None).0;
        assert_eq!(status(&secret), 200);
        assert_eq!(curl.with_key(&secret).call("GET", "/api/v1/keys", None).0, 403, "keys are for administrators");
        assert_eq!(curl.with_key(&secret).call("GET", "/api/v1/audit", None).0, 403);
        let (code, rotated) = curl.call("POST", "/api/v1/keys/ci/rotate?overlapSecs=0", None);
        assert_eq!((code, &rotated["key"]["account"]), (201, &issued["key"]["account"]), "{rotated}");
        let successor = rotated["secret"].as_str().expect("told").to_owned();
        assert_eq!((status(&secret), status(&successor)), (401, 200));
        let (code, listed) = curl.call("GET", "/api/v1/keys", None);
        assert_eq!((code, all(&listed["keys"], "name")), (200, vec!["ci", "admin"]), "{listed}");
        let id = rotated["key"]["id"].as_str().expect("an id");
        let (code, revoked) = curl.call("DELETE", &format!("/api/v1/keys/{id}"), None);
        assert_eq!(code, 200, "{revoked}");
        assert!(revoked["revokedAt"].is_string());
        assert_eq!(curl.call("DELETE", &format!("/api/v1/keys/{id}"), None).0, 200, "a repeated one succeeds");
        assert_eq!(status(&successor), 401);
        let (_, listed) = curl.call("GET", "/api/v1/keys?all=true", None);
        assert_eq!(all(&listed["keys"], "name").iter().filter(|name| **name == "ci").count(), 2);
        let (_, audit) = curl.call("GET", "/api/v1/audit?pageSize=1000", None);
        let log = fs::read_to_string(host.data_dir().join("../up.log")).expect("it is kept");
        for text in [listed.to_string(), revoked.to_string(), audit.to_string(), log] {
            assert!(!text.contains(&secret) && !text.contains(&successor), "told again: {text}");
        }
        let actions = all(&audit["entries"], "action");
        for action in ["key.create", "key.rotate", "key.revoke"] {
            assert!(actions.contains(&action), "{actions:?}");
        }
    });
}

#[test]
fn what_makes_no_key_is_refused_with_the_field() {
    against_a_server(|_, curl| {
        let cases = [
            ("POST", "/api/v1/keys", Some(json!({"name": ""})), 400, "name"),
            ("POST", "/api/v1/keys", Some(json!({"name": "a", "role": "king"})), 400, "role"),
            ("POST", "/api/v1/keys", Some(json!({"name": "a", "role": "admin", "group": "g"})), 400, "role"),
            ("POST", "/api/v1/keys", Some(json!({"name": "a", "sandboxIds": ["x"]})), 400, "sandboxIds"),
            ("POST", "/api/v1/keys", Some(json!({"name": "a", "colour": "red"})), 400, "colour"),
            ("GET", "/api/v1/keys?all=perhaps", None, 400, "all"),
            ("POST", "/api/v1/keys/nobody/rotate", None, 404, ""),
            ("POST", "/api/v1/keys/nobody/rotate?overlapSecs=-1", None, 400, "overlapSecs"),
            ("DELETE", "/api/v1/keys/nobody", None, 404, ""),
            ("DELETE", "/api/v1/keys/admin", None, 409, ""),
            ("GET", "/api/v1/audit?pageSize=5000", None, 400, "pageSize"),
        ];
        for (verb, path, body, status, field) in cases {
            let (got, refused) = curl.call(verb, path, body);
            let told = refused["details"]["field"].as_str().unwrap_or_default();
            assert_eq!((got, told), (status, field), "{verb} {path}: {refused}");
        }
    });
}

#[test]
fn the_audit_log_is_read_by_pages_and_verified() {
    against_a_server(|_, curl| {
        for number in 0..5 {
            curl.call("DELETE", &format!("/api/v1/sandboxes/nobody-{number}"), None);
        }
        let put = ["--request", "PUT", "--data-binary", "x"];
        assert_eq!(curl.ask("/api/v1/sandboxes/nobody-5/files?path=x", &put).status, 404);
        // What was queued before it is on the disk when a key is answered.
        curl.call("POST", "/api/v1/keys", Some(json!({"name": "last"})));
        let (mut after, mut seen) = (0, Vec::new());
        loop {
            let (status, page) = curl.call("GET", &format!("/api/v1/audit?after={after}&pageSize=2"), None);
            assert_eq!(status, 200, "{page}");
            let entries = page["entries"].as_array().expect("a list").clone();
            assert!(entries.len() <= 2);
            let Some(last) = entries.last() else { break };
            after = last["seq"].as_i64().expect("a number");
            seen.extend(entries);
        }
        let refused: Vec<_> = seen.iter().filter(|entry| entry["outcome"] == "not_found").collect();
        assert_eq!(refused.len(), 5, "{seen:?}");
        assert_eq!((&refused[0]["action"], &refused[0]["target"]), (&json!("sandbox.delete"), &json!("nobody-0")));
        assert!(seen.iter().any(|entry| entry["action"] == "dispense.v1.FileService/WriteFile"), "as over gRPC");
        let (status, verdict) = curl.call("GET", "/api/v1/audit/verify", None);
        assert_eq!((status, &verdict["entries"], &verdict["brokenAt"]), (200, &json!(seen.len()), &Value::Null));
        assert_eq!(verdict["lastHash"], seen.last().expect("entries")["hash"]);
    });
}

#[test]
fn a_batch_tries_each_item_and_tells_each_result_in_its_place() {
    against_a_server(|_, curl| {
        let create = |name: &str| json!({"name": name, "wait": true});
        let items = json!({"requests": [create("a"), create("No Name"), create("b"), create("a")]});
        let (status, made) = curl.call("POST", "/api/v1/batch/create", Some(items));
        let results = &made["results"];
        assert_eq!((status, &results[0]["sandbox"]["state"]), (200, &json!("running")), "{made}");
        assert_eq!(results[1]["error"]["details"]["field"], json!("name"));
        assert_eq!(results[2]["sandbox"]["name"], json!("b"));
        assert_eq!(results[3]["error"]["code"], json!("already_exists"));
        let script = "echo \"$V on $(hostname)\"; echo oops >&2; exit 3";
        let start = json!({"args": ["sh", "-c", script], "env": {"V": "1"}, "cwd": "/tmp"});
        let body = json!({"sandboxes": ["a", "nobody", "b"], "start": start});
        let (status, ran) = curl.call("POST", "/api/v1/batch/exec", Some(body));
        let results = &ran["results"];
        for (index, name) in [(0, "a"), (2, "b")] {
            let one = &results[index];
            assert_eq!((status, &one["sandbox"], &one["exited"]["code"]), (200, &json!(name), &json!(3)), "{ran}");
            assert_eq!((&one["stdout"], &one["stderr"]), (&json!(format!("1 on {name}\n")), &json!("oops\n")));
            assert_eq!((&one["encoding"], &one["truncated"]), (&json!("utf8"), &json!(false)));
        }
        assert_eq!(results[1]["error"]["reason"], json!("sandbox_unknown"));
        let exec = |args: Value, more: Value| {
            let mut body = json!({"sandboxes": ["a"], "start": {"args": args}});
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            curl.call("POST", "/api/v1/batch/exec", Some(body)).1["results"][0].clone()
        };
        let bytes = exec(json!(["printf", "\\377"]), json!({}));
        assert_eq!((&bytes["stdout"], &bytes["encoding"]), (&json!("/w=="), &json!("base64")));
        let long = exec(json!(["seq", "100000"]), json!({}));
        assert_eq!((&long["truncated"], long["stdout"].as_str().map(str::len)), (&json!(true), Some(64 << 10)));
        assert!(long["stdout"].as_str().expect("text").ends_with("\n100000\n"), "the end of it");
        assert_eq!(exec(json!(["nothing-such"]), json!({}))["error"]["reason"], json!("command_not_found"));
        assert_eq!(exec(json!(["sleep", "60"]), json!({"timeoutSecs": 1}))["error"]["reason"], json!("exec_timeout"));
        for (path, body) in [
            ("/api/v1/batch/exec", json!({"sandboxes": [], "start": {"args": ["true"]}})),
            ("/api/v1/batch/delete", json!({"sandboxes": vec!["a"; 101]})),
            ("/api/v1/batch/create", json!({"requests": [{"colour": "red"}]})),
        ] {
            let (status, refused) = curl.call("POST", path, Some(body));
            assert_eq!((status, &refused["code"]), (400, &json!("invalid_argument")), "{refused}");
        }
        let body = json!({"sandboxes": ["a", "nobody", "b"], "wait": true});
        let (status, gone) = curl.call("POST", "/api/v1/batch/delete", Some(body));
        assert_eq!((status, &gone["results"][0]["sandbox"]["state"]), (200, &json!("deleted")), "{gone}");
        assert_eq!(gone["results"][1]["error"]["code"], json!("not_found"));
        assert_eq!(gone["results"][2]["sandbox"]["state"], json!("deleted"));
    });
}
