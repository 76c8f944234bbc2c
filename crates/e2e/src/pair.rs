//! A server and a runner as two processes, as on two machines, which can be killed and started again one by one.

use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::{Host, Mode, host, wait};

/// For a process to come up, and to be seen by the other one, on a loaded machine.
const UP_TIMEOUT: Duration = Duration::from_secs(30);

/// A process that is killed with its owner.
pub struct Running(Child);

impl Running {
    /// Starts it without input and output.
    pub fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the program starts"))
    }

    /// Takes a process that was started otherwise.
    pub fn adopt(child: Child) -> Self {
        Self(child)
    }

    /// Its stdout, if it was piped.
    pub fn stdout(&mut self) -> &mut std::process::ChildStdout {
        self.0.stdout.as_mut().expect("piped")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end, and waits.
    pub fn stop(mut self) -> ExitStatus {
        host::terminate(self.0.id());
        self.0.wait().expect("ours")
    }

    /// Kills it with no chance to clean up.
    pub fn kill(mut self) {
        self.0.kill().expect("ours");
        self.0.wait().expect("ours");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Of one that has ended there is nothing left to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server on one host and a runner on another, and the host of a client that has neither data directory.
pub struct Pair {
    server_host: Host,
    runner_host: Host,
    client_host: Host,
    server: Option<Running>,
    runner: Option<Running>,
    url: String,
    runner_url: String,
    token: String,
    key: String,
}

impl Pair {
    /// Starts both and waits until they know each other.
    pub fn start(mode: Mode) -> Self {
        let (server_host, runner_host) = (Host::new(mode), Host::new(mode));
        let any = ["server", "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"];
        let server = Running::start(&mut server_host.command(any));
        let show = || server_host.ok(&["config", "show", "--output", "json"]);
        let text = wait::until("the server serves", UP_TIMEOUT, show, |text| text.contains("runnerUrl"));
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let field = |name: &str| json[name].as_str().unwrap_or_else(|| panic!("{name} in {text}")).to_owned();
        // The client has neither data directory; only an address and a key.
        let key = fs::read_to_string(server_host.data_dir().join("admin.key")).expect("the server wrote it");
        let mut pair = Self {
            url: field("url"),
            runner_url: field("runnerUrl"),
            token: field("joinToken"),
            key: key.trim().to_owned(),
            client_host: Host::new(mode),
            server_host,
            runner_host,
            server: Some(server),
            runner: None,
        };
        pair.start_runner();
        pair.wait_for_runner("available");
        pair
    }

    /// `dispense` as a client elsewhere has it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.client_host.command(args);
        command.env("DISPENSE_URL", &self.url).env("DISPENSE_API_KEY", &self.key).stdin(Stdio::null());
        command
    }

    /// Exit code, stdout and stderr of `dispense`.
    pub fn dispense(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(args).output().expect("the binary starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Stdout of `dispense`, which must succeed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.dispense(args);
        assert_eq!(code, Some(0), "dispense {args:?}: {err}");
        out
    }

    /// The public address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The administrator's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The runner's host.
    pub fn runner_host(&self) -> &Host {
        &self.runner_host
    }

    /// The server's host.
    pub fn server_host(&self) -> &Host {
        &self.server_host
    }

    /// The server's process.
    pub fn server(&self) -> &Running {
        self.server.as_ref().expect("it runs")
    }

    /// The runner's process.
    pub fn runner(&self) -> &Running {
        self.runner.as_ref().expect("it runs")
    }

    /// Starts the server again where it was.
    pub fn start_server(&mut self) {
        let address = |url: &str| url.trim_start_matches("http://").to_owned();
        let (public, runners) = (address(&self.url), address(&self.runner_url));
        let args = ["server", "--address", &public, "--runner-address", &runners];
        self.server = Some(Running::start(&mut self.server_host.command(args)));
    }

    /// Starts the runner; after the first time it needs no token, but may have it.
    pub fn start_runner(&mut self) {
        let args = ["runner", "--join", &self.runner_url, "--token", &self.token, "--name", "far-1"];
        let labels = ["--label", "zone=b"];
        self.runner = Some(Running::start(&mut self.runner_host.command(args.iter().chain(&labels))));
    }

    /// Takes the server's process.
    pub fn take_server(&mut self) -> Running {
        self.server.take().expect("it runs")
    }

    /// Takes the runner's process.
    pub fn take_runner(&mut self) -> Running {
        self.runner.take().expect("it runs")
    }

    /// Waits until the server shows this status of its runner.
    #[track_caller]
    pub fn wait_for_runner(&self, status: &str) {
        let wanted = format!("\"status\": \"{status}\"");
        let list = || self.dispense(&["runner", "list", "--output", "json"]);
        wait::until(&format!("the runner is {status}"), UP_TIMEOUT, list, |(_, out, _)| out.contains(&wanted));
    }

    /// Deletes all sandboxes and ends the test: nothing may be left on the machine.
    pub fn finish(mut self) {
        self.wait_for_runner("available");
        let list: serde_json::Value = serde_json::from_str(&self.ok(&["list", "--output", "json"])).expect("JSON");
        for sandbox in list["sandboxes"].as_array().into_iter().flatten() {
            self.ok(&["delete", sandbox["id"].as_str().expect("an id")]);
        }
        assert!(self.take_runner().stop().success(), "the runner ends well");
        assert!(self.take_server().stop().success(), "the server ends well");
        for host in [self.server_host, self.runner_host, self.client_host] {
            host.finish();
        }
    }
}
