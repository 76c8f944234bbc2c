//! What an operator expects around the service: settings, limits, metrics, ids of requests, pages of other origins.

use std::process::{Command, Stdio};
use std::time::Duration;

use dispense_e2e::clients::Clients;
use dispense_e2e::pair::Running;
use dispense_e2e::{Host, Mode, Pair, wait};
use serde_json::Value;

/// Head and body of an answer to curl.
fn curl(args: &[&str]) -> (String, String) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "30", "--include"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("curl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_lowercase(), body.to_owned())
}

fn log(host: &Host) -> std::path::PathBuf {
    host.work_dir().join("server.log")
}

/// Starts `dispense server` with a file of settings; its address, once it serves.
fn server(host: &Host, settings: &str) -> (Running, String) {
    let file = host.work_dir().join("server.yaml");
    std::fs::write(&file, settings).expect("ours");
    let file = file.display().to_string();
    let args = ["server", "--config", &file, "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"];
    let log = std::fs::File::create(log(host)).expect("a file of ours");
    let mut command = host.command(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let running = Running::adopt(command.spawn().expect("the server starts"));
    let show = || String::from_utf8(host.dispense(&["config", "show", "--output", "json"]).stdout).expect("text");
    let text = wait::until("it serves", std::time::Duration::from_secs(30), show, |text| text.contains("runnerUrl"));
    let json: Value = serde_json::from_str(&text).expect("JSON");
    (running, json["url"].as_str().expect("a URL").to_owned())
}

fn key(host: &Host) -> String {
    std::fs::read_to_string(host.data_dir().join("admin.key")).expect("the server wrote it").trim().to_owned()
}

#[test]
fn an_account_over_its_limit_is_told_when_to_come_back_and_health_goes_on() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let (running, url) = server(&host, "server:\n  rate_limiting:\n    requests_per_minute: 5\n");
    let key = format!("x-api-key: {}", key(&host));
    let mut refused = None;
    for _ in 0..10 {
        for path in ["/v1/sandboxes", "/api/v1/sandboxes"] {
            let (head, body) = curl(&["--header", &key, &format!("{url}{path}")]);
            if head.starts_with("http/1.1 429") {
                refused = Some((head, body));
            }
        }
    }
    let (head, body) = refused.expect("twenty requests are over five a minute");
    let secs = head.lines().find_map(|line| line.strip_prefix("retry-after: ")).expect("it says when");
    assert!((1..=13).contains(&secs.trim().parse::<u32>().expect("seconds")), "{head}");
    assert!(body.contains("resource_exhausted") && body.contains("5 requests a minute"), "{body}");
    for _ in 0..10 {
        assert!(curl(&[&format!("{url}/healthz")]).0.starts_with("http/1.1 200"));
    }
    assert!(running.stop().success());
    let log = std::fs::read_to_string(log(&host)).expect("its log");
    let line = log.lines().find(|line| line.contains("resource_exhausted")).expect("the refusal is noted");
    assert!(line.contains("account=key"), "{line}");
    host.finish();
}

#[test]
fn a_request_keeps_its_id_and_gets_one_when_it_has_none() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let (url, key) = (format!("http://{}", up.address()), format!("x-api-key: {}", up.key()));
    let id = |args: &[&str]| {
        let (head, _) = curl(&[args, &[&format!("{url}/v1/sandboxes")]].concat());
        head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).expect("an id").trim().to_owned()
    };
    assert_eq!(id(&["--header", &key, "--header", "x-request-id: mine-1"]), "mine-1");
    let (one, two) = (id(&["--header", &key]), id(&[]));
    assert!(one.len() == 16 && two.len() == 16 && one != two, "{one} {two}");
    let long = format!("x-request-id: {}", "x".repeat(500));
    assert_eq!(id(&["--header", &long]).len(), 16, "one that is too long is replaced");
    up.stop();
    host.finish();
}

#[test]
fn pages_of_named_origins_may_call_and_no_others() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let (running, url) = server(&host, "server:\n  cors:\n    allowed_origins: [\"https://console.example\"]\n");
    let ask = |origin: &str| {
        let origin = format!("origin: {origin}");
        let wanted = ["--request", "OPTIONS", "--header", &origin, "--header", "access-control-request-method: POST"];
        curl(&[&wanted[..], &[&format!("{url}/v1/sandboxes")]].concat()).0
    };
    assert!(ask("https://console.example").contains("access-control-allow-origin: https://console.example"));
    assert!(!ask("https://elsewhere.example").contains("access-control-allow-origin"));
    let answer = curl(&["--header", "origin: https://console.example", &format!("{url}/healthz")]).0;
    assert!(answer.contains("access-control-allow-origin: https://console.example"), "{answer}");
    assert!(running.stop().success());
    host.finish();
}

#[test]
fn settings_that_do_not_exist_or_make_no_sense_are_refused_by_name() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let file = host.work_dir().join("server.yaml");
    let cases = [
        ("server:\n  adress: \":8080\"\n", "server.adress"),
        ("server:\n  auth:\n    enabled: false\n", "this machine only"),
        ("server:\n  logging:\n    format: xml\n", "server.logging.format"),
        ("server: {", "server.yaml"),
    ];
    for (settings, told) in cases {
        std::fs::write(&file, settings).expect("ours");
        let output = host.dispense(&["server", "--config", &file.display().to_string()]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(told), "{settings}: {text}");
    }
    host.finish();
}

#[test]
fn keys_are_made_listed_replaced_and_ended_by_the_command() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let url = format!("http://{}", up.address());
    let secret = host.ok(&["key", "create", "--name", "ci", "--role", "viewer", "--expires", "30d"]);
    let secret = secret.trim();
    let list = |key: &str| host.dispense(&["--url", &url, "--api-key", key, "list"]);
    assert!(list(secret).status.success());
    let shown = host.ok(&["key", "list"]);
    assert!(shown.contains("ci") && shown.contains("viewer") && !shown.contains(secret), "{shown}");
    let next = host.ok(&["key", "rotate", "ci", "--overlap", "1h"]);
    assert!(list(secret).status.success() && list(next.trim()).status.success(), "they overlap");
    host.ok(&["key", "revoke", &next.trim()[..12]]);
    assert!(!list(next.trim()).status.success());
    let refused = host.dispense(&["key", "revoke", "admin"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("last administrator"), "{refused:?}");
    up.stop();
    host.finish();
}

#[test]
fn prometheus_reads_the_metrics() {
    let Some(clients) = Clients::available() else { return };
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    clients.run("metrics.py", &up.address(), &up.key());
    up.stop();
    host.finish();
}

#[test]
fn the_providers_key_outlives_a_rotation_of_the_key_that_seals_it() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let secret = "sk-test-0123456789abcdef";
    let keys = || std::fs::read_to_string(host.data_dir().join("secrets.key")).expect("the server made it");
    let call = |address: &str, arguments: &[&str]| {
        let key = format!("x-api-key: {}", key(&host));
        curl(&[arguments, &["--header", &key, &format!("http://{address}/v1/config/api-key")]].concat()).1
    };
    call(&up.address(), &["--data", &format!("{{\"apiKey\": \"{secret}\"}}")]);
    let before = keys();
    up.stop();
    let database = std::fs::read(host.data_dir().join("server.db")).expect("there");
    assert!(!database.windows(secret.len()).any(|part| part == secret.as_bytes()), "it is sealed");
    let up = host.up_with(&["--rotate-secrets"]);
    assert!(call(&up.address(), &[]).contains(secret));
    let after = keys();
    assert!(before != after && after.lines().count() == 1, "{before} {after}");
    up.stop();
    host.finish();
}

#[test]
fn what_a_sandbox_used_is_told_over_time_and_outlives_a_restart_of_the_server() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let mut pair = Pair::start(mode);
    pair.ok(&["create", "--name", "box"]);
    let usage =
        |pair: &Pair| -> Value { serde_json::from_str(&pair.ok(&["usage", "box", "--output", "json"])).expect("JSON") };
    let told = |usage: &Value| usage["samples"][0]["memoryMB"].as_u64().is_some();
    let before = wait::until("the agent has reported", Duration::from_secs(60), || usage(&pair), told);
    assert_eq!(before["stepSecs"], 60);
    // Of CPU the first report knows nothing: there was no interval yet.
    assert!(before["samples"][0]["cpuPercent"].is_null(), "{before}");
    assert!(pair.take_server().stop().success());
    pair.start_server();
    pair.wait_for_runner("available");
    let after = usage(&pair);
    assert_eq!(after["samples"][0]["at"], before["samples"][0]["at"]);
    let url = format!("{}/api/v1/sandboxes/box/usage", pair.server().url());
    let key = format!("x-api-key: {}", pair.server().key());
    let (head, body) = curl(&["--header", &key, &format!("{url}?from=2020-01-01T00:00:00Z")]);
    assert!(head.contains(" 200"), "{head}");
    let coarse: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(coarse["stepSecs"], 900);
    assert!(told(&coarse), "{coarse}");
    let (head, body) = curl(&["--header", &key, &format!("{url}?from=yesterday")]);
    assert!(head.contains(" 400") && body.contains("RFC 3339"), "{head}{body}");
    let table = pair.ok(&["usage", "box", "--since", "2d"]);
    assert!(table.contains("MEMORY MB"), "{table}");
    pair.finish();
}
