//! Streams over hops that are cut: no byte is lost or repeated, and what a process wrote stays readable.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use dispense_e2e::{Mode, Pair, host, wait};

const SOON: Duration = Duration::from_secs(30);

/// Which hop is cut.
#[derive(Debug, Clone, Copy)]
enum Hop {
    Server,
    Runner,
}

impl Hop {
    /// Kills the process of the hop and starts it again.
    fn cut(self, pair: &mut Pair) {
        match self {
            Self::Server => {
                pair.take_server().kill();
                pair.start_server();
            }
            Self::Runner => {
                pair.take_runner().kill();
                pair.start_runner();
            }
        }
        pair.wait_for_runner("available");
    }
}

/// Reads stdout in the background, so that the test sees how far it is.
fn collect(child: &mut Child) -> std::sync::Arc<std::sync::Mutex<Vec<u8>>> {
    let all = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (sink, mut stdout) = (all.clone(), child.stdout.take().expect("piped"));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = stdout.read(&mut buffer) {
            sink.lock().expect("no panic").extend_from_slice(&buffer[..count]);
        }
    });
    all
}

fn lines(range: std::ops::RangeInclusive<u32>) -> String {
    range.map(|number| format!("{number}\n")).collect()
}

#[test]
fn output_goes_on_where_it_stopped_whichever_hop_is_killed() {
    for mode in Mode::available() {
        let mut pair = Pair::start(mode);
        pair.ok(&["create", "--name", "box"]);
        let script = "for i in $(seq 1 400); do echo $i; sleep 0.01; done";
        let mut exec = pair.command(&["exec", "box", "--", "sh", "-c", script]);
        let mut exec = exec.stdout(Stdio::piped()).spawn().expect("the binary starts");
        let seen = collect(&mut exec);
        let mut lines_at_cut = 0;
        for hop in [Hop::Server, Hop::Runner, Hop::Server] {
            let count = || seen.lock().expect("no panic").iter().filter(|byte| **byte == b'\n').count();
            lines_at_cut = wait::until("output goes on", Duration::from_secs(30), count, |lines| *lines > lines_at_cut);
            hop.cut(&mut pair);
        }
        assert_eq!(exec.wait().expect("ours").code(), Some(0));
        let whole = || String::from_utf8_lossy(&seen.lock().expect("no panic")).into_owned();
        let whole = wait::until("all was read", Duration::from_secs(5), whole, |text| text.ends_with("400\n"));
        assert_eq!(whole, lines(1..=400));
        pair.finish();
    }
}

#[test]
fn input_is_given_once_whichever_hop_is_killed() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let mut pair = Pair::start(mode);
    pair.ok(&["create", "--name", "box"]);
    // It reads slowly, so that there is always something under way.
    let script = "while dd bs=65536 count=1 2>/dev/null | tee -a /workspace/in | grep -q .; do sleep 0.01; done";
    let mut exec = pair.command(&["exec", "--interactive", "box", "--", "sh", "-c", script]);
    let mut exec = exec.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the binary starts");
    let wanted: Vec<u8> =
        (0..3_000_000u32).flat_map(|number| (number % 251).to_be_bytes()).map(|byte| byte | 1).collect();
    let (mut stdin, copy) = (exec.stdin.take().expect("piped"), wanted.clone());
    let writer = std::thread::spawn(move || stdin.write_all(&copy));
    let mut before = 0;
    for hop in [Hop::Runner, Hop::Server, Hop::Runner] {
        let size = || pair.dispense(&["exec", "box", "--", "stat", "-c", "%s", "/workspace/in"]).1;
        let grown = |text: &String| text.trim().parse::<usize>().is_ok_and(|size| size > before);
        let text = wait::until("input goes on", Duration::from_secs(30), size, grown);
        before = text.trim().parse().expect("checked");
        hop.cut(&mut pair);
    }
    writer.join().expect("no panic").expect("all was taken");
    assert_eq!(exec.wait().expect("ours").code(), Some(0));
    let copied = pair.command(&["exec", "box", "--", "cat", "/workspace/in"]).output().expect("the binary starts");
    assert!(copied.stdout == wanted, "{} bytes came, {} were sent", copied.stdout.len(), wanted.len());
    pair.finish();
}

#[test]
fn a_runner_that_does_not_answer_for_a_while_costs_nothing() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let pair = Pair::start(mode);
    pair.ok(&["create", "--name", "box"]);
    let script = "for i in $(seq 1 300); do echo $i; sleep 0.01; done";
    let mut exec = pair.command(&["exec", "box", "--", "sh", "-c", script]);
    let mut exec = exec.stdout(Stdio::piped()).spawn().expect("the binary starts");
    let seen = collect(&mut exec);
    let count = || seen.lock().expect("no panic").len();
    wait::until("output comes", Duration::from_secs(30), count, |bytes| *bytes > 0);
    for pid in [pair.runner().pid(), pair.server().process().pid()] {
        host::send(pid, rustix::process::Signal::STOP);
        std::thread::park_timeout(Duration::from_secs(2));
        host::send(pid, rustix::process::Signal::CONT);
    }
    assert_eq!(exec.wait().expect("ours").code(), Some(0));
    let whole = || String::from_utf8_lossy(&seen.lock().expect("no panic")).into_owned();
    let whole = wait::until("all was read", Duration::from_secs(5), whole, |text| text.ends_with("300\n"));
    assert_eq!(whole, lines(1..=300));
    pair.finish();
}

#[test]
fn what_a_process_wrote_is_readable_while_it_runs_after_its_end_and_after_that_of_its_sandbox() {
    for mode in Mode::available() {
        let pair = Pair::start(mode);
        pair.ok(&["create", "--name", "box"]);
        let script = "echo one; echo two; read line; echo got $line; exit 3";
        let pid = pair.ok(&["exec", "--detach", "--name", "job", "box", "--", "sh", "-c", script]);
        let log = |args: &[&str]| pair.ok(&[&["logs"], args].concat());
        let begun = |text: &String| text.starts_with("one\ntwo\n");
        wait::until("it has written", Duration::from_secs(10), || log(&["box", "job"]), begun);
        assert!(log(&["--from", "4", "box", pid.trim()]).starts_with("two\n"));
        // Started without stdin, `read` finds the end.
        let all = wait::until("it has ended", Duration::from_secs(10), || log(&["-f", "box", "job"]), |_| true);
        assert_eq!(all, "one\ntwo\ngot\n");
        let ps = pair.ok(&["ps", "--all", "box"]);
        assert!(ps.contains("exited 3"), "{ps}");
        // One that still writes when its sandbox goes has the last word, too.
        pair.ok(&["exec", "--detach", "--name", "late", "box", "--", "sh", "-c", "echo late; sleep 1000"]);
        wait::until("it has written", Duration::from_secs(10), || log(&["box", "late"]), |text| text == "late\n");
        pair.ok(&["stop", "box"]);
        let late = || pair.dispense(&["logs", "box", "late"]);
        wait::until("its end is kept", Duration::from_secs(10), late, |(_, text, _)| text == "late\n");
        assert_eq!(log(&["box", "job"]), "one\ntwo\ngot\n");
        pair.ok(&["delete", "box"]);
        assert_eq!(log(&["box", "job"]), "one\ntwo\ngot\n");
        let (code, _, err) = pair.dispense(&["logs", "box", "nothing"]);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("no process `nothing`"), "{err}");
        pair.finish();
    }
}

#[test]
fn what_processes_wrote_is_whole_again_when_their_sandbox_is_started_again_however_it_ended() {
    for mode in Mode::available() {
        let pair = Pair::start(mode);
        pair.ok(&["create", "--name", "box"]);
        pair.ok(&["exec", "--detach", "--name", "big", "box", "--", "seq", "1", "200000"]);
        pair.ok(&["exec", "--detach", "--name", "late", "box", "--", "sh", "-c", "echo late; sleep 1000"]);
        let wrote = |name: &'static str| pair.dispense(&["logs", "box", name]);
        wait::until("it has written", SOON, || wrote("big"), |(_, text, _)| text.ends_with("200000\n"));
        wait::until("it has written", SOON, || wrote("late"), |(_, text, _)| text == "late\n");
        pair.ok(&["stop", "box"]);
        let (_, tail, told) = wrote("big");
        assert!(tail.ends_with("\n200000\n") && tail.len() < 100_000, "{} bytes", tail.len());
        assert!(told.contains("are on the sandbox's disk: `dispense start box`"), "{told}");
        pair.ok(&["start", "box"]);
        assert_eq!(wrote("big").1, lines(1..=200_000));
        let ps = pair.ok(&["--output", "json", "ps", "--all", "box"]);
        let ps: serde_json::Value = serde_json::from_str(&ps).expect("JSON");
        let processes = ps["processes"].as_array().expect("a list");
        let of = |name: &str| processes.iter().find(|process| process["name"] == name).expect("it is there").clone();
        assert_eq!(of("big")["exitCode"], 0);
        assert!(of("late")["signal"].is_number(), "{}", of("late"));
        // The kernel counts from the beginning: soon another process has the pid.
        let pid = of("late")["pid"].as_u64().expect("a number");
        for _ in 0..=pid {
            pair.ok(&["exec", "box", "--", "echo", "another"]);
        }
        assert_eq!(pair.ok(&["logs", "box", &pid.to_string()]), "another\n");
        let exact = format!("{pid}@{}", of("late")["startedAt"].as_str().expect("text"));
        assert_eq!(pair.ok(&["logs", "box", &exact]), "late\n");
        // Nobody was told of the end of this agent.
        host::kill(host::agents_below(&pair.runner_host().data_dir())[0]);
        let state = || pair.ok(&["get", "box"]);
        wait::until("it has failed", SOON, state, |text| text.contains("failed"));
        pair.ok(&["start", "box"]);
        assert_eq!(wrote("big").1, lines(1..=200_000));
        assert_eq!(pair.ok(&["logs", "box", &exact]), "late\n");
        pair.finish();
    }
}

#[test]
fn attach_sees_what_comes_and_ends_with_the_process() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let pair = Pair::start(mode);
    pair.ok(&["create", "--name", "box"]);
    let script = "while [ ! -e /workspace/go ]; do sleep 0.01; done; echo done; exit 7";
    pair.ok(&["exec", "--detach", "--name", "job", "box", "--", "sh", "-c", script]);
    let mut attach = pair.command(&["attach", "--from-start", "--no-stdin", "box", "job"]);
    let attach = attach.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    pair.ok(&["exec", "box", "--", "touch", "/workspace/go"]);
    let output = attach.wait_with_output().expect("ours");
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n");
    let (code, _, err) = pair.dispense(&["attach", "box"]);
    assert_eq!(code, Some(125), "{err}");
    assert!(err.contains("dispense ps"), "{err}");
    pair.finish();
}

#[test]
fn readers_that_do_not_read_hold_up_nobody_else() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let pair = Pair::start(mode);
    pair.ok(&["create", "--name", "box"]);
    // Each fills every window on its way; together they would fill that of a connection that they share.
    let stuck: Vec<Child> = (0..24)
        .map(|_| {
            let mut exec = pair.command(&["exec", "box", "--", "head", "-c", "64M", "/dev/zero"]);
            exec.stdout(Stdio::piped()).spawn().expect("the binary starts")
        })
        .collect();
    for round in 0..20 {
        assert_eq!(pair.ok(&["exec", "box", "--", "echo", &round.to_string()]), format!("{round}\n"));
    }
    let mut other = pair.command(&["exec", "box", "--", "head", "-c", "20M", "/dev/zero"]);
    let output = other.output().expect("the binary starts");
    assert_eq!(output.stdout.len(), 20 << 20);
    for mut child in stuck {
        child.kill().expect("ours");
        child.wait().expect("ours");
    }
    pair.finish();
}
