//! What bad input and bad luck get: a sentence that names the thing and the next step, a stable code, and
//! nothing left half made.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use dispense_e2e::{Host, Mode};

/// Runs `dispense` with JSON output, expects a failure, returns its code and message.
fn refusal(host: &Host, args: &[&str]) -> (String, String) {
    let mut all = vec!["--output", "json"];
    all.extend_from_slice(args);
    let output = host.dispense(&all);
    assert_ne!(output.status.code(), Some(0), "{args:?} must be refused");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().rev().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no JSON error: {text}"));
    let error: serde_json::Value = serde_json::from_str(line).expect("JSON");
    let field = |name: &str| error["error"][name].as_str().unwrap_or_else(|| panic!("{name} in {line}")).to_owned();
    (field("code"), field("message"))
}

#[test]
fn wrong_requests_are_refused_by_name() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        host.ok(&["create", "--name", "taken"]);
        let cases: &[(&[&str], &str, &str)] = &[
            (&["create", "--name", "taken"], "already_exists", "taken"),
            (&["create", "--name", "Bad_Name"], "invalid_argument", "Bad_Name"),
            (&["create", "--template", "nothing"], "invalid_argument", "host"),
            (&["create", "--memory", "1K"], "invalid_argument", "memory"),
            (&["create", "--cpu", "100000"], "invalid_argument", "cpu"),
            (&["create", "--memory", "10T"], "failed_precondition", "memory"),
            (&["create", "--pids", "1"], "invalid_argument", "pids"),
            (&["get", "nobody"], "not_found", "nobody"),
            (&["exec", "nobody", "--", "true"], "not_found", "nobody"),
            (&["exec", "taken", "--", "no-such-command"], "not_found", "no-such-command"),
            (&["exec", "--workdir", "/no/such/dir", "taken", "--", "true"], "invalid_argument", "/no/such/dir"),
            (&["exec", "--user", "nobody-here", "taken", "--", "true"], "invalid_argument", "nobody-here"),
        ];
        for (args, code, named) in cases {
            let (seen, message) = refusal(&host, args);
            assert_eq!(&seen, code, "{args:?}: {message}");
            assert!(message.contains(named), "{args:?}: {message}");
        }
        assert_eq!(host.ok(&["list", "--output", "json"]).matches("\"name\":").count(), 1, "nothing half made");
        up.stop();
        host.finish();
    }
}

#[test]
fn a_port_in_use_is_named() {
    let host = Host::new(Mode::available()[0]);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let output = host.dispense(&["up", "--address", &address]);
    assert_ne!(output.status.code(), Some(0));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains(&address) && message.contains("--address"), "{message}");
    host.finish();
}

#[test]
fn a_data_directory_in_use_or_of_a_newer_version_is_refused() {
    let host = Host::new(Mode::available()[0]);
    let up = host.up();
    let output = host.dispense(&["up", "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_ne!(output.status.code(), Some(0));
    assert!(message.contains(&up.pid().to_string()), "names the process that uses it: {message}");
    up.stop();
    fs::write(host.data_dir().join("version"), "999\n").expect("ours");
    let output = host.dispense(&["run", "--", "true"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125));
    assert!(message.contains("999"), "{message}");
    host.finish();
}

#[test]
fn a_wrong_runner_token_is_told() {
    let host = Host::new(Mode::available()[0]);
    let up = host.up();
    let endpoint = host.ok(&["config", "show", "--output", "json"]);
    let endpoint: serde_json::Value = serde_json::from_str(&endpoint).expect("JSON");
    let url = endpoint["runnerUrl"].as_str().expect("`up` tells where runners join");
    let state = host.work_dir().join("state");
    let output =
        host.dispense(&["runner", "--join", url, "--token", "dsj_0000", "--state-dir", state.to_str().expect("UTF-8")]);
    assert_ne!(output.status.code(), Some(0));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("token"), "{message}");
    up.stop();
    host.finish();
}

#[test]
fn a_template_that_vanished_is_named() {
    let host = Host::new(Mode::available()[0]);
    let template = host.work_dir().join("template");
    fs::create_dir_all(template.join("bin")).expect("fresh");
    fs::copy("/bin/busybox", template.join("bin/sh"))
        .or_else(|_| fs::copy("/bin/sh", template.join("bin/sh")))
        .expect("a shell");
    let flag = format!("small={}", template.display());
    let up = host.up_with(&["--template", &flag]);
    fs::remove_dir_all(&template).expect("ours");
    let (code, message) = refusal(&host, &["create", "--template", "small"]);
    assert_eq!(code, "failed_precondition", "{message}");
    assert!(message.contains("small"), "{message}");
    up.stop();
    host.finish();
}

#[test]
fn required_limits_are_enforced_or_refused() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let output = host.dispense(&["run", "--require-limits", "--memory", "64M", "--", "true"]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        if mode.enforces_limits() {
            assert_eq!(output.status.code(), Some(0), "{message}");
        } else {
            assert_eq!(output.status.code(), Some(125), "{message}");
            assert!(message.contains("memory"), "{message}");
        }
        host.finish();
    }
}

#[test]
fn user_namespaces_that_are_switched_off_are_named() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        // In a user namespace of its own a limit can be set that holds for what is below.
        let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
        let prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"];
        let mut command = host.command_under(&prefix, ["run", "--", "true"]);
        let output = command.stdin(Stdio::null()).output().expect("util-linux");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "{message}");
        assert!(message.contains("user namespaces") && message.contains("sysctl"), "{message}");
        host.finish();
    }
}

#[test]
fn a_full_disk_of_the_server_is_told_and_passes() {
    let host = Host::new(Mode::available()[0]);
    if host.mode() != Mode::Root {
        return dispense_e2e::host::skipped("a full disk, which needs root to mount a small one");
    }
    let data = host.data_dir();
    let mount =
        |args: &[&str]| assert!(Command::new(args[0]).args(&args[1..]).arg(&data).status().expect("mount").success());
    mount(&["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs"]);
    let up = host.up();
    let (code, message) = refusal(&host, &["create", "--name", "first"]);
    assert_eq!(code, "failed_precondition", "the runner keeps a reserve: {message}");
    assert!(message.contains("disk"), "{message}");
    let filler = data.join("filler");
    let mut file = fs::File::create(&filler).expect("there is room");
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    let mut told = false;
    for _ in 0..200 {
        let output = host.dispense(&["--output", "json", "create", "--no-wait"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if text.contains("\"resource_exhausted\"") && text.contains("disk is full") {
            told = true;
            break;
        }
    }
    assert!(told, "the server says that its disk is full");
    host.ok(&["list"]);
    drop(file);
    fs::remove_file(&filler).expect("ours");
    host.ok(&["create", "--no-wait", "--name", "after"]);
    up.stop();
    mount(&["umount"]);
    host.finish();
}
