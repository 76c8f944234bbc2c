//! A server and a runner as two processes, as on two machines: the runner connects out, joins by token once, and
//! is known by its own credential afterwards. A client elsewhere has an address and a key.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dispense_e2e::{Host, Mode, host, wait};

/// Ends what a failed test leaves running.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the binary starts"))
    }

    /// Asks it to end, and waits.
    fn stop(mut self) {
        host::terminate(self.0.id());
        assert!(self.0.wait().expect("ours").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shown(host: &Host, field: &str) -> String {
    let show = || host.ok(&["config", "show", "--output", "json"]);
    let text = wait::until("the server serves", Duration::from_secs(30), show, |text| text.contains("runnerUrl"));
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    json[field].as_str().unwrap_or_else(|| panic!("{field} in {text}")).to_owned()
}

#[test]
fn a_joined_runner_serves_a_client_elsewhere_and_comes_back_with_its_sandboxes() {
    for mode in Mode::available() {
        let (near, far) = (Host::new(mode), Host::new(mode));
        let server = Running::start(&mut near.command([
            "server",
            "--address",
            "127.0.0.1:0",
            "--runner-address",
            "127.0.0.1:0",
        ]));
        let (url, token) = (shown(&near, "runnerUrl"), shown(&near, "joinToken"));
        let join = ["runner", "--join", &url, "--token", &token, "--name", "far-1", "--label", "zone=b"];
        let runner = Running::start(&mut far.command(join));
        // The client has neither data directory; only an address and a key.
        let key = fs::read_to_string(near.data_dir().join("admin.key")).expect("the server wrote it");
        let elsewhere = Host::new(mode);
        let public = shown(&near, "url");
        let dispense = |args: &[&str]| {
            let mut command = elsewhere.command(args);
            command.env("DISPENSE_URL", &public).env("DISPENSE_API_KEY", key.trim()).stdin(Stdio::null());
            let output = command.output().expect("the binary starts");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        };
        let available = || dispense(&["runner", "list", "--output", "json"]).1;
        wait::until("the runner has joined", Duration::from_secs(30), available, |text| text.contains("\"available\""));
        let (code, out, err) = dispense(&["run", "--target", "zone=b", "--", "echo", "there"]);
        assert_eq!((code, out.as_str()), (Some(0), "there\n"), "{err}");
        let (code, _, err) = dispense(&["create", "--name", "stays"]);
        assert_eq!(code, Some(0), "{err}");
        dispense(&["exec", "stays", "--", "sh", "-c", "echo kept > /workspace/file"]);
        runner.stop();
        wait::until("the runner is offline", Duration::from_secs(10), available, |text| text.contains("\"offline\""));
        let (code, _, err) = dispense(&["exec", "stays", "--", "true"]);
        assert_eq!(code, Some(125), "{err}");
        assert!(err.contains("offline"), "{err}");
        // No token: it is known by its own credential. The sandbox has lived on.
        let runner = Running::start(&mut far.command(["runner", "--join", &url]));
        wait::until("the runner is back", Duration::from_secs(30), available, |text| text.contains("\"available\""));
        let (code, out, err) = dispense(&["exec", "stays", "--", "cat", "/workspace/file"]);
        assert_eq!((code, out.as_str()), (Some(0), "kept\n"), "{err}");
        let (code, _, err) = dispense(&["delete", "stays"]);
        assert_eq!(code, Some(0), "{err}");
        let (code, _, err) = dispense(&["list"]);
        assert_eq!(code, Some(0), "{err}");
        let stranger =
            elsewhere.command(["list"]).env("DISPENSE_URL", &public).env("DISPENSE_API_KEY", "dsp_0").output();
        let stranger = stranger.expect("the binary starts");
        assert!(String::from_utf8_lossy(&stranger.stderr).contains("API key"), "a wrong key is refused by name");
        runner.stop();
        server.stop();
        for host in [near, far, elsewhere] {
            host.finish();
        }
    }
}
