//! REST as an outside client sees it: each request is a curl of its own.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::host::Up;

/// A server and a key for it.
pub struct Curl {
    url: String,
    key: String,
}

/// What a server answered.
#[derive(Debug)]
pub struct Answered {
    /// The HTTP status.
    pub status: u16,
    /// The headers, as they came.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Answered {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next_back()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("JSON: {text}"))
    }
}

impl Curl {
    /// The administrator's.
    pub fn of(up: &Up<'_>) -> Self {
        Self { url: format!("http://{}", up.address()), key: up.key() }
    }

    /// The same server with another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { url: self.url.clone(), key: key.to_owned() }
    }

    /// Host and port, and the key, for a client that is no curl.
    pub fn address_and_key(&self) -> (&str, &str) {
        (self.url.trim_start_matches("http://"), &self.key)
    }

    /// A curl that sends the key, for a path.
    pub fn command(&self, path: &str) -> Command {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "90"]);
        command.args(["--header", &format!("authorization: Bearer {}", self.key)]);
        command.arg(format!("{}{path}", self.url)).stdin(Stdio::null());
        command
    }

    /// Runs a curl with more arguments.
    pub fn ask(&self, path: &str, arguments: &[&str]) -> Answered {
        let output = self.command(path).args(["--include"]).args(arguments).output().expect("curl is installed");
        assert!(output.status.success(), "curl {arguments:?} {path}: {output:?}");
        answered(&output)
    }

    /// Status and JSON of a request.
    pub fn call(&self, verb: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.call_as(Some(&self.key), verb, path, body)
    }

    /// The same with another key, or none.
    pub fn call_as(&self, key: Option<&str>, verb: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "90", "--include", "--request", verb]);
        if let Some(key) = key {
            command.args(["--header", &format!("authorization: Bearer {key}")]);
        }
        if body.is_some() {
            command.args(["--header", "content-type: application/json", "--data-binary", "@-"]);
        }
        command.arg(format!("{}{path}", self.url)).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut curl = command.spawn().expect("curl is installed");
        let text = body.map(|body| body.to_string()).unwrap_or_default();
        curl.stdin.take().expect("piped").write_all(text.as_bytes()).expect("curl reads it");
        let answer = answered(&curl.wait_with_output().expect("ours"));
        (answer.status, answer.json())
    }
}

/// Parts of what curl wrote with `--include`: interim answers come before the last head.
fn answered(output: &Output) -> Answered {
    let mut rest = &output.stdout[..];
    loop {
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| panic!("a head: {output:?}"));
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 4..];
        let status = head.split(' ').nth(1).and_then(|status| status.get(..3)?.parse().ok()).expect("a status");
        if status >= 200 {
            return Answered { status, head, body: rest.to_vec() };
        }
    }
}
