//! `dispense run` from outside: bytes, exit codes, signals, environment.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use dispense_e2e::host::{send, terminate};
use dispense_e2e::{Host, Mode, wait};
use rustix::process::Signal;

/// A stream of bytes that tells at which place it was damaged: a linear congruence over 64 bits.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn each_mode(test: impl Fn(&Host)) {
    for mode in Mode::available() {
        let host = Host::new(mode);
        test(&host);
        host.finish();
    }
}

#[test]
fn output_streams_stay_apart_and_exit_codes_pass() {
    each_mode(|host| {
        let output = host.dispense(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!(output.stdout, b"out\n");
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().last(), Some("err"));
        assert_eq!(output.status.code(), Some(7));
    });
}

#[test]
fn exit_codes_name_what_went_wrong() {
    each_mode(|host| {
        let code = |args: &[&str]| {
            let output = host.dispense(args);
            eprintln!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            output.status.code()
        };
        assert_eq!(code(&["run", "--", "true"]), Some(0));
        assert_eq!(code(&["run", "--", "no-such-command"]), Some(127));
        assert_eq!(code(&["run", "--", "/etc/passwd"]), Some(126));
        assert_eq!(code(&["run", "--", "sh", "-c", "kill -9 $$"]), Some(128 + 9));
        assert_eq!(code(&["run", "--", "sh", "-c", "kill -15 $$"]), Some(128 + 15));
        // What is ours to refuse is not taken for the command's own code.
        for misused in [&["run", "--no-such-flag", "--", "true"][..], &["run"], &["exec", "box", "--cpu", "1", "true"]]
        {
            assert_eq!(code(misused), Some(125), "{misused:?}");
        }
        let output = host.dispense(&["run", "--output", "json", "--memory", "much", "--", "true"]);
        let told: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
        assert_eq!((output.status.code(), &told["error"]["code"]), (Some(125), &"invalid_argument".into()));
        let output = host.dispense(&["run", "--template", "nothing", "--", "true"]);
        assert_eq!(output.status.code(), Some(125));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            message.contains("nothing") && message.contains("host"),
            "names it and lists those that exist: {message}"
        );
    });
}

#[test]
fn output_that_cannot_be_written_is_told_and_a_shell_reads_its_commands() {
    each_mode(|host| {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("there");
        let mut command = host.command(["run", "--", "echo", "hi"]);
        let output = command.stdout(full).stderr(Stdio::piped()).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(125) && told.contains("No space left on device"), "{told}");
        let up = host.up();
        host.ok(&["create", "--name", "box"]);
        let mut shell = host.command(["shell", "box"]);
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
        shell.stdin.take().expect("piped").write_all(b"echo $((6 * 7))\nexit 3\n").expect("it reads");
        let output = shell.wait_with_output().expect("it ends");
        assert_eq!((&output.stdout[..], output.status.code()), (&b"42\n"[..], Some(3)));
        // The token of heartbeats is nowhere that a reader of files finds it.
        let seen = host.ok(&["exec", "box", "--", "sh", "-c", "tr '\\0' '\\n' < /proc/1/environ"]);
        assert!(seen.contains("AGENT_SANDBOX_ID=sbx") && !seen.contains("dst_"), "{seen}");
        host.ok(&["delete", "box"]);
        up.stop();
    });
}

#[test]
fn a_hundred_megabytes_leave_through_stdout_unchanged() {
    each_mode(|host| {
        let expected = pattern(100 << 20);
        std::fs::write(host.work_dir().join("pattern"), &expected).expect("room for 100 MB");
        // The bytes go in by `cp`, so that this test does not depend on stdin.
        let up = host.up();
        host.ok(&["create", "--name", "bytes"]);
        host.ok(&["cp", "pattern", "bytes:/workspace/pattern"]);
        let output = host.dispense(&["exec", "bytes", "--", "cat", "/workspace/pattern"]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == expected, "{} of {} bytes, or damaged ones", output.stdout.len(), expected.len());
        up.stop();
    });
}

#[test]
fn a_hundred_megabytes_pass_through_stdin_and_cat_unchanged() {
    each_mode(|host| {
        let expected = pattern(100 << 20);
        let mut child = host
            .command(["run", "--", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the binary starts");
        let mut stdin = child.stdin.take().expect("piped");
        let sent = expected.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&sent));
        let mut seen = Vec::new();
        child.stdout.take().expect("piped").read_to_end(&mut seen).expect("a pipe");
        writer.join().expect("no panic").expect("cat takes all");
        assert_eq!(child.wait().expect("ours").code(), Some(0));
        assert!(seen == expected, "{} of {} bytes, or damaged ones", seen.len(), expected.len());
    });
}

#[test]
fn environment_workdir_and_user_are_those_asked_for() {
    each_mode(|host| {
        std::fs::write(host.work_dir().join("env"), "# a comment\nFROM_FILE=two words\n").expect("writable");
        let script = "echo $FROM_FLAG/$FROM_FILE; pwd; id -un";
        let text = host.ok(&[
            "run",
            "--env",
            "FROM_FLAG=one",
            "--env-file",
            "env",
            "--workdir",
            "/tmp",
            "--user",
            "user",
            "--",
            "sh",
            "-c",
            script,
        ]);
        assert_eq!(text, "one/two words\n/tmp\nuser\n");
        assert_eq!(
            host.ok(&["run", "--", "sh", "-c", "id -u; pwd; hostname"]).lines().take(2).collect::<Vec<_>>(),
            ["0", "/workspace"]
        );
    });
}

#[test]
fn a_closed_stdin_reads_end_of_file() {
    each_mode(|host| {
        assert_eq!(host.ok(&["run", "--", "sh", "-c", "cat | wc -c"]).trim(), "0");
    });
}

#[test]
fn a_reader_that_leaves_early_ends_the_run_quietly() {
    each_mode(|host| {
        let mut child = host
            .command(["run", "--", "yes"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut first = [0; 4];
        child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("yes prints");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ours");
        assert_eq!(first, *b"y\ny\n");
        assert_eq!(output.status.code(), Some(128 + 13));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let told: Vec<&str> = stderr.lines().filter(|line| !line.contains("limits that are not enforced")).collect();
        assert!(told.is_empty(), "{told:?}");
    });
}

#[test]
fn signals_reach_the_command() {
    each_mode(|host| {
        for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT")] {
            let script = format!("trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.05; done");
            let mut child = host
                .command(["run", "--", "sh", "-c", &script])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .expect("the binary starts");
            let mut stdout = child.stdout.take().expect("piped");
            let mut ready = [0; 6];
            stdout.read_exact(&mut ready).expect("the script prints");
            send(child.id(), signal);
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).expect("text");
            assert_eq!(rest.trim(), format!("got {name}"));
            assert_eq!(child.wait().expect("ours").code(), Some(3));
        }
    });
}

#[test]
fn a_deadline_ends_the_command() {
    each_mode(|host| {
        let output = host.dispense(&["run", "--timeout", "1s", "--", "sleep", "60"]);
        assert_eq!(output.status.code(), Some(124), "{}", String::from_utf8_lossy(&output.stderr));
    });
}

#[test]
fn keep_keeps_the_sandbox_and_its_files() {
    each_mode(|host| {
        let up = host.up();
        host.ok(&["run", "--keep", "--name", "kept", "--", "sh", "-c", "echo here > /workspace/file"]);
        assert_eq!(host.ok(&["exec", "kept", "--", "cat", "/workspace/file"]), "here\n");
        host.ok(&["stop", "kept"]);
        assert_ne!(
            host.dispense(&["exec", "kept", "--", "true"]).status.code(),
            Some(0),
            "a stopped sandbox runs nothing"
        );
        host.ok(&["start", "kept"]);
        assert_eq!(host.ok(&["exec", "kept", "--", "cat", "/workspace/file"]), "here\n", "files outlive a stop");
        host.ok(&["delete", "kept"]);
        up.stop();
    });
}

#[test]
fn fifty_sandboxes_run_at_once() {
    each_mode(|host| {
        let up = host.up();
        let start = || {
            host.command(["run", "--memory", "64M", "--", "sh", "-c", "read line; echo $line; hostname"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the binary starts")
        };
        let children: Vec<_> = (0..50).map(|_| start()).collect();
        // All wait for their line, so all live at the same time.
        wait::until(
            "50 sandboxes run",
            Duration::from_secs(120),
            || host.ok(&["list", "--output", "json"]).matches("\"running\"").count(),
            |count| *count >= 50,
        );
        let mut names = std::collections::BTreeSet::new();
        for (index, mut child) in children.into_iter().enumerate() {
            let line = format!("line {index}\n");
            child.stdin.take().expect("piped").write_all(line.as_bytes()).expect("the command reads");
            let output = child.wait_with_output().expect("ours");
            let text = String::from_utf8(output.stdout).expect("text");
            assert!(text.starts_with(&line), "{text:?} {}", String::from_utf8_lossy(&output.stderr));
            names.insert(text[line.len()..].to_owned());
        }
        assert_eq!(names.len(), 50, "each had a host name of its own");
        up.stop();
    });
}

#[test]
fn sigterm_of_up_leaves_kept_sandboxes_for_the_next_start() {
    each_mode(|host| {
        let up = host.up();
        host.ok(&["create", "--name", "survivor"]);
        host.ok(&["exec", "survivor", "--", "sh", "-c", "echo 1 > /workspace/mark"]);
        let pid = up.pid();
        terminate(pid);
        drop(up);
        let up = host.up();
        wait::until(
            "the sandbox is adopted",
            Duration::from_secs(20),
            || host.dispense(&["exec", "survivor", "--", "cat", "/workspace/mark"]).stdout,
            |stdout| stdout == b"1\n",
        );
        up.stop();
    });
}

#[test]
fn a_server_starts_right_behind_a_command() {
    each_mode(|host| {
        for _ in 0..3 {
            // Its own server is still ending when it returns.
            host.ok(&["list"]);
            let up = host.up();
            let second = host.dispense(&["up", "--address", "127.0.0.1:0"]);
            let told = String::from_utf8_lossy(&second.stderr).into_owned();
            assert!(second.status.code() == Some(1) && told.contains("is in use by a server"), "{second:?}");
            up.stop();
        }
    });
}

/// Also where the machine cannot map the ids of the template's files, as in the virtual machine's tmpfs.
#[test]
fn everybody_inside_owns_where_they_work() {
    each_mode(|host| {
        let root = "for folder in / /etc /home /root /tmp /workspace; do touch $folder/.made && rm $folder/.made || exit 1; done";
        host.ok(&["run", "--", "sh", "-c", root]);
        let user = "touch .made && stat --format %U . .made && id -un";
        let made = host.ok(&["run", "--user", "user", "--workdir", "/home/user", "--", "sh", "-c", user]);
        assert_eq!(made, "user\nuser\nuser\n");
    });
}
