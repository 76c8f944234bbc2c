//! The services of the agent inside a sandbox, by the clients that others wrote: they come to the sandbox's own ports.

use std::process::{Command, Output, Stdio};

use dispense_e2e::clients::Clients;
use dispense_e2e::forward::Forward;
use dispense_e2e::site::with_site;
use dispense_e2e::{Host, Mode, Up};

fn with_host(test: impl Fn(&Host, &Up<'_>)) {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        test(&host, &up);
        up.stop();
        host.finish();
    }
}

fn ssh(options: &[String], port: &str, user: &str, command: &str) -> Output {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]);
    ssh.args(options).args(["-p", port, &format!("{user}@127.0.0.1"), command]).stdin(Stdio::null());
    ssh.output().expect("ssh is installed")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// Says what a port of the sandbox's loopback answers first, or why it does not.
const GREETING: &str = "exec 3<>/dev/tcp/127.0.0.1/PORT && head -n 1 <&3";

fn greeting(host: &Host, sandbox: &str, port: u16) -> Output {
    let script = GREETING.replace("PORT", &port.to_string());
    host.dispense(&["exec", sandbox, "--", "bash", "-c", &script])
}

#[test]
fn ssh_is_served_inside_the_sandbox() {
    with_site(&[], |site| {
        let host = site.host;
        assert_eq!(stdout(&greeting(host, "web", 2222)).trim_end(), "SSH-2.0-dispense");
        // The agent's listeners are no program's.
        assert!(!host.ok(&["port", "list", "web"]).contains("2222"));
        let (_, _, options) = site.credentials();
        {
            let inside = Forward::to(host, "web", 2222);
            // There the user is a user of the sandbox.
            assert_eq!(stdout(&ssh(&options, inside.port(), "root", "id -un; hostname")), "root\nweb\n");
            assert_eq!(stdout(&ssh(&options, inside.port(), "nobody", "id -un")), "nobody\n");
            let unknown = ssh(&options, inside.port(), "nobody-here", "true");
            assert!(String::from_utf8_lossy(&unknown.stderr).contains("nobody-here"), "{unknown:?}");
            assert_eq!(ssh(&options, inside.port(), "root", "exit 7").status.code(), Some(7));
        }
        // A certificate of one sandbox is none of another.
        host.ok(&["create", "--name", "other", "--env", "AGENT_SSH_PORT=22"]);
        let inside = Forward::to(host, "other", 22);
        let refused = ssh(&options, inside.port(), "root", "true");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("Permission denied"), "{refused:?}");
    });
}

#[test]
fn the_workspace_is_served_inside_the_sandbox() {
    let Some(clients) = Clients::available() else { return };
    with_host(|host, up| {
        host.ok(&["create", "--name", "web"]);
        let script = host.script();
        let inside = Forward::to(host, "web", 3001);
        let variables = [("DISPENSE", script.as_str()), ("WORKSPACE_PORT", inside.port())];
        clients.run_with("workspace.mjs", &up.address(), &up.key(), &variables);
        let get = "printf 'GET /elsewhere HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n' >&3";
        let script = GREETING.replace("PORT", "3001").replace(" && ", &format!(" && {get} && "));
        let elsewhere = host.dispense(&["exec", "web", "--", "bash", "-c", &script]);
        assert_eq!(stdout(&elsewhere).trim_end(), "HTTP/1.1 404 Not Found");
    });
}

#[test]
fn a_sandbox_without_services_has_neither() {
    with_host(|host, up| {
        host.ok(&["create", "--name", "web", "--skip-services"]);
        let refused = host.dispense(&["ssh", "web", "--", "true"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--skip-services"), "{refused:?}");
        let body = r#"{"name":"seed","skipDaemon":true}"#;
        let created = Command::new("curl")
            .args(["--silent", "--header", &format!("x-api-key: {}", up.key()), "--data", body])
            .args(["--header", "content-type: application/json", &format!("http://{}/v1/sandboxes", up.address())])
            .output()
            .expect("curl is installed");
        assert!(stdout(&created).contains("seed"), "{created:?}");
        for (sandbox, port) in [("web", 2222), ("web", 3001), ("seed", 2222), ("seed", 3001)] {
            let refused = greeting(host, sandbox, port);
            assert!(String::from_utf8_lossy(&refused.stderr).contains("refused"), "{refused:?}");
        }
    });
}

/// One connection that says nothing, and another one meanwhile: prints what each of them reads to its end.
const SILENT: &str = "import socket\n\
                      call = lambda: socket.create_connection(('127.0.0.1', 3001), 30)\n\
                      read = lambda s: s.recv(100) or 'closed'\n\
                      first, second = call(), call()\n\
                      print('second', read(second))\nprint('first', read(first))";

#[test]
fn services_are_bounded_as_the_creator_says() {
    with_host(|host, _| {
        let limits = ["--env", "AGENT_MAX_SESSIONS=1", "--env", "AGENT_IDLE_TIMEOUT=500ms"];
        host.ok(&[&["create", "--name", "web"], &limits[..]].concat());
        let said = host.ok(&["exec", "web", "--", "python3", "-c", SILENT]);
        assert_eq!(said, "second closed\nfirst closed\n");
        let seen = host.ok(&["exec", "web", "--", "sh", "-c", "env | grep AGENT_ || echo none"]);
        assert_eq!(seen, "none\n");
    });
}
