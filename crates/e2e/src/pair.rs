//! A server and a runner as two processes, as on two machines, which can be killed and started again one by one.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::{Host, Mode, ServerProcess, host, wait};

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

    /// Its exit code, once it has ended by itself.
    pub fn ended(mut self, deadline: Duration) -> Option<i32> {
        let ended = || self.0.try_wait().expect("ours");
        wait::until("the process ends", deadline, ended, Option::is_some).and_then(|status| status.code())
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
    server: ServerProcess,
    runner_host: Host,
    client_host: Host,
    runner: Option<Running>,
}

impl Pair {
    /// Starts both and waits until they know each other.
    pub fn start(mode: Mode) -> Self {
        let server = ServerProcess::start(mode);
        let mut pair = Self { server, runner_host: Host::new(mode), client_host: Host::new(mode), runner: None };
        pair.start_runner();
        pair.wait_for_runner("available");
        pair
    }

    /// `dispense` as a client elsewhere has it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.client_host.command(args);
        command.env("DISPENSE_URL", self.server.url()).env("DISPENSE_API_KEY", self.server.key()).stdin(Stdio::null());
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

    /// The runner's host.
    pub fn runner_host(&self) -> &Host {
        &self.runner_host
    }

    /// The server.
    pub fn server(&self) -> &ServerProcess {
        &self.server
    }

    /// The runner's process.
    pub fn runner(&self) -> &Running {
        self.runner.as_ref().expect("it runs")
    }

    /// Starts the server again where it was.
    pub fn start_server(&mut self) {
        self.server.restart();
    }

    /// Starts the runner; after the first time it needs no token, but may have it.
    pub fn start_runner(&mut self) {
        let (url, token) = (self.server.runner_url(), self.server.join_token());
        let args = ["runner", "--join", url, "--token", token, "--name", "far-1"];
        let labels = ["--label", "zone=b"];
        self.runner = Some(Running::start(&mut self.runner_host.command(args.iter().chain(&labels))));
    }

    /// Takes the server's process.
    pub fn take_server(&mut self) -> Running {
        self.server.take()
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
        self.server.finish();
        for host in [self.runner_host, self.client_host] {
            host.finish();
        }
    }
}
