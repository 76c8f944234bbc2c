//! What goes wrong around the product, one by one; `docs/failure.md` says what its users see.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use dispense_backend::fake::{Fault, Step};
use dispense_client::v1::{CreateSandboxRequest, SandboxSpec, SandboxState};
use dispense_client::{Code, v1};
use dispense_e2e::{Host, Mode, Pair, System, host, wait};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_damaged_record_takes_its_own_sandbox_down_and_no_other() {
    for mode in Mode::available() {
        let mut pair = Pair::start(mode);
        for name in ["damaged", "whole"] {
            pair.ok(&["create", "--name", name]);
        }
        let shown: serde_json::Value =
            serde_json::from_str(&pair.ok(&["get", "damaged", "--output", "json"])).expect("JSON");
        let id = shown["id"].as_str().expect("an id");
        pair.take_runner().kill();
        let record = pair.runner_host().data_dir().join("runner/native/boxes").join(id).join("record.json");
        fs::write(&record, "{\"half").expect("it is there");
        pair.start_runner();
        pair.wait_for_runner("available");
        let state = || pair.ok(&["get", "damaged"]);
        let state = wait::until("it is told", SOON, state, |text| text.contains("failed"));
        assert!(state.contains("is damaged") && state.contains("delete the sandbox"), "{state}");
        assert_eq!(pair.ok(&["exec", "whole", "--", "echo", "goes on"]), "goes on\n");
        pair.ok(&["delete", "damaged"]);
        pair.finish();
    }
}

#[test]
fn an_agent_that_is_killed_fails_its_sandbox_and_a_start_brings_its_files_back() {
    for mode in Mode::available() {
        let pair = Pair::start(mode);
        pair.ok(&["create", "--name", "box"]);
        pair.ok(&["exec", "box", "--", "sh", "-c", "echo kept > /workspace/file"]);
        let agents = host::agents_below(&pair.runner_host().data_dir());
        assert_eq!(agents.len(), 1, "one box, one agent");
        host::send(agents[0], rustix::process::Signal::KILL);
        let state = || pair.ok(&["get", "box"]);
        let state = wait::until("it is told", SOON, state, |text| text.contains("failed"));
        assert!(state.contains("start it again"), "{state}");
        pair.ok(&["start", "box"]);
        assert_eq!(pair.ok(&["exec", "box", "--", "cat", "/workspace/file"]), "kept\n");
        pair.finish();
    }
}

#[test]
fn an_agent_that_the_kernel_kills_for_want_of_memory_is_told_as_such() {
    // Only as root are there limits on memory here.
    for mode in Mode::available().into_iter().filter(|mode| *mode == Mode::Root) {
        let pair = Pair::start(mode);
        pair.ok(&["create", "--name", "box", "--memory", "64M"]);
        let bomb = "import os, time\nwhile not os.path.exists('/workspace/go'): time.sleep(0.01)\n\
                    os.fork()\nos.fork()\nx = []\nwhile True: x.append(b'x' * (1 << 20))";
        pair.ok(&["exec", "--detach", "box", "--", "python3", "-c", bomb]);
        // The kernel takes the greediest first, which the agent never is by itself, nor beside one that has nearly
        // all. What it starts inherits this.
        let agents = host::agents_below(&pair.runner_host().data_dir());
        fs::write(format!("/proc/{}/oom_score_adj", agents[0]), "1000").expect("root may");
        pair.dispense(&["exec", "box", "--", "touch", "/workspace/go"]);
        let state = || pair.ok(&["get", "box"]);
        let state = wait::until("it is told", SOON, state, |text| text.contains("failed"));
        assert!(state.contains("ran out of memory and its agent was killed"), "{state}");
        pair.ok(&["start", "box"]);
        assert_eq!(pair.ok(&["exec", "box", "--", "echo", "is back"]), "is back\n");
        pair.finish();
    }
}

#[test]
fn after_a_restart_of_the_machine_sandboxes_are_stopped_and_start_with_their_files_when_they_are_used() {
    for mode in Mode::available() {
        let mut pair = Pair::start(mode);
        pair.ok(&["create", "--name", "box"]);
        pair.ok(&["exec", "box", "--", "sh", "-c", "echo kept > /workspace/file"]);
        // What a machine's end leaves: no process of ours, and the disk.
        pair.take_runner().kill();
        for agent in host::agents_below(&pair.runner_host().data_dir()) {
            host::kill(agent);
        }
        pair.start_runner();
        // The server may not have seen yet that the old process is gone.
        let state = || pair.ok(&["get", "box"]);
        let state = wait::until("it is told", SOON, state, |text| text.contains("stopped"));
        assert!(state.contains("its machine was restarted"), "{state}");
        assert_eq!(pair.ok(&["exec", "box", "--", "cat", "/workspace/file"]), "kept\n");
        pair.finish();
    }
}

#[test]
fn a_database_that_another_process_has_locked_is_told_and_passes() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let script = "import sqlite3, sys, time\n\
                  c = sqlite3.connect(sys.argv[1], timeout=10)\n\
                  c.execute('BEGIN EXCLUSIVE')\n\
                  print('locked', flush=True)\n\
                  sys.stdin.read()";
    let mut holder = Command::new("python3")
        .args(["-c", script])
        .arg(host.data_dir().join("server.db"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    let mut line = [0; 7];
    std::io::Read::read_exact(holder.stdout.as_mut().expect("piped"), &mut line).expect("it locks");
    let refused = host.dispense(&["create", "--name", "box", "--no-wait"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "ours, and it may pass: {text}");
    assert!(text.contains("database") && text.contains("try again"), "{text}");
    // What only reads goes on.
    host.ok(&["list"]);
    drop(holder.stdin.take());
    holder.wait().expect("ours");
    host.ok(&["create", "--name", "box"]);
    up.stop();
    host.finish();
}

#[test]
fn a_database_that_is_read_only_is_told_and_is_used_again_when_it_is_not() {
    use std::os::unix::fs::PermissionsExt;
    // Root may write what is read-only.
    for mode in Mode::available().into_iter().filter(|mode| *mode == Mode::User) {
        let mut pair = Pair::start(mode);
        pair.ok(&["create", "--name", "box"]);
        let database = pair.server().host().data_dir().join("server.db");
        assert!(pair.take_server().stop().success());
        let allow = |mode| fs::set_permissions(&database, fs::Permissions::from_mode(mode)).expect("it is there");
        allow(0o400);
        let args = ["server", "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"];
        let refused = pair.server().host().dispense(&args);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{text}");
        assert!(text.contains("server.db") && text.contains("make its file and directory writable"), "{text}");
        allow(0o600);
        pair.start_server();
        pair.wait_for_runner("available");
        assert_eq!(pair.ok(&["exec", "box", "--", "echo", "goes on"]), "goes on\n");
        pair.finish();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_by_an_hour_ends_nothing_early_and_nothing_late() {
    let jump_secs = Arc::new(AtomicI64::new(0));
    let clock = jump_secs.clone();
    let system = System::start_with_clock(Arc::new(move || {
        let jump = clock.load(Ordering::Relaxed);
        let now = SystemTime::now();
        if jump < 0 {
            now - Duration::from_secs(jump.unsigned_abs())
        } else {
            now + Duration::from_secs(jump.unsigned_abs())
        }
    }))
    .await;
    let create = |name: &str, ttl_secs| CreateSandboxRequest {
        name: name.to_owned(),
        spec: Some(SandboxSpec { ttl_secs, ..Default::default() }),
        wait: true,
        ..Default::default()
    };
    for (name, jump) in [("ahead", 3600), ("back", -3600)] {
        system.client.create(create(&format!("{name}-long"), 60)).await.expect("created");
        system.client.create(create(&format!("{name}-short"), 5)).await.expect("created");
        jump_secs.fetch_add(jump, Ordering::Relaxed);
        let gone = v1::WaitSandboxRequest {
            sandbox: format!("{name}-short"),
            states: vec![SandboxState::Deleted.into()],
            timeout_secs: 15,
            ..Default::default()
        };
        // Its name is free again once it is gone.
        match system.client.wait(gone).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.code, Code::NotFound, "{error}"),
        }
        let long = system.client.get(&format!("{name}-long")).await.expect("its minute has not passed");
        assert_eq!(long.state(), SandboxState::Running);
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_hangs_holds_up_its_own_sandbox_only() {
    let system = System::start().await;
    system.machine.script(Step::Start, Some(Fault::Stall(Duration::from_secs(3600))));
    let stuck = CreateSandboxRequest { name: "stuck".into(), wait: true, timeout_secs: 1, ..Default::default() };
    let error = system.client.create(stuck).await.expect_err("it does not start");
    assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
    assert!(error.message.contains("still starting"), "{error}");
    system.machine.script(Step::Start, None);
    let other = CreateSandboxRequest { name: "other".into(), wait: true, ..Default::default() };
    assert_eq!(system.client.create(other).await.expect("created").state(), SandboxState::Running);
    // A delete is taken at once; it comes about when the step has ended or its time is over.
    let deleting = system.client.delete("stuck", false, false).await.expect("taken");
    assert_eq!(deleting.state(), SandboxState::Deleting);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_fails_on_one_runner_is_made_by_another_and_its_job_tells_both() {
    let mut system = System::start().await;
    let other = system.add_runner("fake-2").await;
    // Whichever is chosen first, the broken one fails.
    system.machine.script(Step::Create, Some(Fault::Fail));
    let mut moved = 0;
    for number in 0..4 {
        let request = CreateSandboxRequest { name: format!("box-{number}"), wait: true, ..Default::default() };
        let created = system.client.create(request).await.expect("one of them makes it");
        assert_eq!(created.state(), SandboxState::Running);
        let logs = system.client.logs(&created.id).await.expect("kept");
        let attempts: Vec<_> = logs.jobs.iter().flat_map(|job| &job.attempts).collect();
        assert_eq!(created.generation, 1 + attempts.len() as u64);
        assert!(attempts.iter().all(|attempt| attempt.error.contains("the script says so")), "{attempts:?}");
        moved += attempts.len();
    }
    assert!(moved > 0, "the broken runner was tried");
    // With nobody left to try, the sandbox fails, and its log says why also after it is deleted.
    other.machine.script(Step::Create, Some(Fault::Fail));
    let request = CreateSandboxRequest { name: "nowhere".into(), wait: true, ..Default::default() };
    let failed = system.client.create(request).await.expect("recorded");
    assert_eq!(failed.state(), SandboxState::Failed);
    system.client.delete(&failed.id, false, true).await.expect("deleted");
    let logs = system.client.logs("nowhere").await.expect("kept");
    let create = logs.jobs.first().expect("its job");
    assert_eq!((create.attempts.len(), create.status()), (1, v1::JobStatus::Failed), "{create:?}");
    assert!(create.error.contains("the script says so"), "{create:?}");
    other.stop().await;
    system.stop().await;
}

#[test]
fn a_damaged_row_is_left_alone_and_the_others_go_on() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let mut pair = Pair::start(mode);
    for name in ["damaged", "whole"] {
        pair.ok(&["create", "--name", name]);
    }
    let sql = |pair: &Pair, sql: &str| {
        let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()";
        let database = pair.server().host().data_dir().join("server.db");
        let status = Command::new("python3").args(["-c", script]).arg(database).arg(sql).status();
        assert!(status.expect("python3 is installed").success());
    };
    pair.take_server().kill();
    sql(&pair, "UPDATE sandbox SET spec = '{' || spec WHERE name = 'damaged'");
    pair.start_server();
    pair.wait_for_runner("available");
    let list = pair.ok(&["list"]);
    assert!(list.contains("whole") && !list.contains("damaged"), "{list}");
    assert_eq!(pair.ok(&["exec", "whole", "--", "echo", "goes on"]), "goes on\n");
    let (code, _, err) = pair.dispense(&["get", "damaged"]);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("cannot be read"), "{err}");
    // Mended by hand, it is as it was: its box was kept.
    pair.take_server().kill();
    sql(&pair, "UPDATE sandbox SET spec = substr(spec, 2) WHERE name = 'damaged'");
    pair.start_server();
    pair.wait_for_runner("available");
    assert_eq!(pair.ok(&["exec", "damaged", "--", "echo", "is back"]), "is back\n");
    pair.finish();
}
