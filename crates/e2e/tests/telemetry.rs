//! Traces from the client to the agent, as a collector of OpenTelemetry's own make receives them, and a log without
//! secrets.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dispense_e2e::clients::Clients;
use dispense_e2e::pair::Running;
use dispense_e2e::server::free_address;
use dispense_e2e::{Host, Mode, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// A running collector, and what it was sent.
struct Collector {
    spans: Arc<Mutex<Vec<Value>>>,
    endpoint: String,
    _process: Running,
}

impl Collector {
    fn start(clients: &Clients) -> Self {
        let address = free_address();
        let mut command = clients.python_script("otlp.py");
        command.arg(address.port().to_string()).stdout(Stdio::piped()).stdin(Stdio::null());
        let mut child = command.spawn().expect("python3 is installed");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "ready");
        let spans: Arc<Mutex<Vec<Value>>> = Arc::default();
        let sink = spans.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                sink.lock().expect("no panic").push(serde_json::from_str(&line).expect("JSON"));
            }
        });
        Self { spans, endpoint: format!("http://{address}"), _process: Running::adopt(child) }
    }

    fn variables(&self) -> [(&'static str, &str); 2] {
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &self.endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "100")]
    }

    /// The spans of a trace, once there is one of each name.
    fn trace(&self, id: &str, names: &[&str]) -> Vec<Value> {
        let ours = || {
            let spans = self.spans.lock().expect("no panic");
            spans.iter().filter(|span| span["trace"] == id).cloned().collect::<Vec<_>>()
        };
        let whole = |spans: &Vec<Value>| names.iter().all(|name| spans.iter().any(|span| span["name"] == *name));
        wait::until("the trace is whole", SOON, ours, whole)
    }
}

fn named<'s>(spans: &'s [Value], name: &str) -> &'s Value {
    spans.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("no {name} in {spans:#?}"))
}

#[test]
fn a_trace_goes_from_the_client_to_the_agent_and_the_programs_it_starts() {
    let (Some(clients), Some(mode)) = (Clients::available(), Mode::available().into_iter().next()) else { return };
    let collector = Collector::start(&clients);
    let host = Host::new(mode);
    let up = host.up_with_env(&collector.variables());
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traced = |args: &[&str]| {
        let mut command = host.command(args);
        command.envs(collector.variables()).env("TRACEPARENT", format!("00-{trace}-00f067aa0ba902b7-01"));
        let output = command.stdin(Stdio::null()).output().expect("the binary starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    traced(&["create", "--name", "box"]);
    let inside = traced(&["exec", "box", "--", "sh", "-c", "echo $TRACEPARENT"]);
    let run = "/dispense.v1.ProcessService/RunProcess";
    let agent = "agent dispense.v1.ProcessService/RunProcess";
    let create = "/dispense.v1.SandboxService/CreateSandbox";
    let names =
        ["dispense create", create, "box.create", "box.start", "dispense exec", run, "relay.open", "session", agent];
    let spans = collector.trace(trace, &names);
    let parent = |name: &str| named(&spans, name)["parent"].as_str().expect("text").to_owned();
    let id = |name: &str| named(&spans, name)["id"].as_str().expect("text").to_owned();
    assert_eq!(parent("dispense exec"), "00f067aa0ba902b7");
    assert_eq!(parent(run), id("dispense exec"));
    assert_eq!(parent("relay.open"), id(run));
    assert_eq!(parent("session"), id("relay.open"));
    assert_eq!(parent(agent), id(run));
    assert_eq!(parent(create), id("dispense create"));
    assert_eq!((parent("box.create"), parent("box.start")), (id(create), id(create)));
    assert_eq!(inside, format!("00-{trace}-{}-01\n", id(run)), "a program goes on with the trace");
    assert_eq!(named(&spans, run)["service"], "dispense-server");
    assert_eq!(named(&spans, "dispense exec")["service"], "dispense");
    assert!(spans.iter().all(|span| span["failed"] == false), "{spans:#?}");
    // What is refused is marked, and a caller's own variable stays.
    let kept = traced(&["exec", "--env", "TRACEPARENT=mine", "box", "--", "sh", "-c", "echo $TRACEPARENT"]);
    assert_eq!(kept, "mine\n");
    traced(&["delete", "box"]);
    up.stop();
    host.finish();
}

#[test]
fn a_context_passes_through_a_server_that_exports_nothing() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    host.ok(&["create", "--name", "box"]);
    let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let show = |value: &str| {
        let mut command = host.command(["exec", "box", "--", "sh", "-c", "echo $TRACEPARENT"]);
        let output = command.env("TRACEPARENT", value).stdin(Stdio::null()).output().expect("the binary starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(show(context), format!("{context}\n"));
    assert_eq!(show("nonsense"), "\n");
    host.ok(&["delete", "box"]);
    up.stop();
    host.finish();
}
