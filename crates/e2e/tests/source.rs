//! Sandboxes that begin with a directory: of the user's machine, and of the runner's.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dispense_e2e::{Host, Mode, wait};
use serde_json::{Value, json};

/// A sandbox with a small directory is up in less, on a loaded machine.
const UP_TIMEOUT: Duration = Duration::from_secs(60);

fn git(host: &Host, directory: &Path, arguments: &[&str]) {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]);
    let status = command.arg("-C").arg(directory).args(arguments).status().expect("git runs");
    assert!(status.success(), "git {arguments:?}");
    host.own_tree(directory);
}

/// `projects/plain`, and `projects/repo` with one commit.
fn projects(host: &Host) -> std::path::PathBuf {
    // Root's git refuses the repositories of others unless it is told.
    let projects = host.work_dir().join("projects");
    let (plain, repo) = (projects.join("plain"), projects.join("repo"));
    fs::create_dir_all(plain.join("src")).expect("writable");
    fs::create_dir_all(&repo).expect("writable");
    for (name, text) in [
        ("src/main", "main\n"),
        (".gitignore", "*.log\n"),
        ("a.log", "no\n"),
        (".dispenseignore", "secret\n"),
        ("secret", "no\n"),
    ] {
        fs::write(plain.join(name), text).expect("writable");
    }
    let safe = format!("safe.directory={}", repo.display());
    for arguments in [&["init", "--quiet"][..], &["add", "."], &["commit", "--quiet", "-m", "first"]] {
        fs::write(repo.join("file"), "committed\n").expect("writable");
        git(host, &repo, &[&["-c", &safe][..], arguments].concat());
    }
    fs::write(repo.join("file"), "not committed\n").expect("writable");
    host.own_tree(&projects);
    projects
}

/// A request to the service's REST form.
fn call(host: &Host, up: &dispense_e2e::host::Up<'_>, verb: &str, path: &str, body: Value) -> (u16, Value) {
    let output = Command::new("curl")
        .args(["--silent", "--max-time", "90", "--request", verb, "--write-out", "\n%{http_code}"])
        .args(["--header", &format!("authorization: Bearer {}", up.key())])
        .args(["--header", "content-type: application/json", "--data", &body.to_string()])
        .arg(format!("http://{}{path}", up.address()))
        .output()
        .expect("curl is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{:?}: no answer", host.mode()));
    (status.parse().expect("a number"), serde_json::from_str(body).unwrap_or_else(|_| panic!("JSON: {text}")))
}

#[test]
fn a_directory_of_the_user_s_machine_goes_up_before_the_command_runs() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let projects = projects(&host);
        let (plain, repo) = (projects.join("plain"), projects.join("repo"));
        let (plain, repo) = (plain.to_str().expect("text"), repo.to_str().expect("text"));
        let list = host.ok(&["run", "--source", plain, "--", "find", ".", "-type", "f"]);
        let mut names: Vec<&str> = list.lines().collect();
        names.sort_unstable();
        assert_eq!(names, ["./.dispenseignore", "./.gitignore", "./src/main"]);
        let show = "git symbolic-ref HEAD; cat file; git status --porcelain; git remote";
        let output = host.dispense(&["run", "--source", repo, "--branch", "feature/one", "--", "sh", "-c", show]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "refs/heads/feature/one\ncommitted\n");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("not committed"), "what stays behind is told: {told}");
        let output = host.dispense(&["run", "--source", "/no/such/directory", "--", "true"]);
        assert_eq!(output.status.code(), Some(125));
        assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/directory"));
        host.finish();
    }
}

#[test]
fn the_service_fills_a_sandbox_from_a_shared_directory() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let projects = projects(&host);
        let root = projects.to_str().expect("text").to_owned();
        let up = host.up_with(&["--source-root", &root]);
        let create = |body: Value| call(&host, &up, "POST", "/v1/sandboxes", body);
        let (status, answer) =
            create(json!({"name": "repo", "sourceDirectory": format!("{root}/repo"), "branchName": "work"}));
        assert_eq!(status, 200, "{answer}");
        // The command waits until the sandbox is filled.
        let show = ["exec", "repo", "--", "sh", "-c", "git symbolic-ref HEAD; cat file"];
        assert_eq!(host.ok(&show), "refs/heads/work\ncommitted\n");
        // What has run once is the user's: a restart fills nothing.
        host.ok(&["exec", "repo", "--", "sh", "-c", "echo mine > file"]);
        host.ok(&["stop", "repo"]);
        host.ok(&["start", "repo"]);
        assert_eq!(host.ok(&["exec", "repo", "--", "cat", "file"]), "mine\n");
        let (status, answer) = create(json!({"name": "plain", "sourceDirectory": format!("{root}/plain")}));
        assert_eq!(status, 200, "{answer}");
        assert_eq!(host.ok(&["exec", "plain", "--", "ls"]), "src\n");
        let (status, answer) =
            create(json!({"name": "empty", "sourceDirectory": format!("{root}/plain"), "skipCopy": true}));
        assert_eq!(status, 200, "{answer}");
        assert_eq!(host.ok(&["exec", "empty", "--", "ls"]), "");
        for (body, code, says) in [
            (json!({"sourceDirectory": "/etc"}), 409, "shares only"),
            (json!({"sourceDirectory": format!("{root}/../..")}), 400, "without `..`"),
            (json!({"sourceDirectory": "relative"}), 400, "not an absolute path"),
            (json!({"sourceDirectory": root, "branchName": "a..b"}), 400, "git forbids"),
            (json!({"branchName": "alone"}), 400, "source_directory"),
            (json!({"sourceDirectory": root, "isRemote": true}), 409, "--source"),
        ] {
            let (status, answer) = create(body.clone());
            let message = answer["message"].as_str().unwrap_or_default();
            assert!(status == code && message.contains(says), "{body}: {status} {answer}");
        }
        up.stop();
        host.finish();
    }
}

#[test]
fn what_cannot_be_filled_fails_and_says_why() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let projects = projects(&host);
        std::os::unix::fs::symlink("/etc", projects.join("link")).expect("fresh");
        fs::create_dir_all(projects.join("broken/.git")).expect("fresh");
        host.own_tree(&projects.join("broken"));
        let root = projects.to_str().expect("text").to_owned();
        let up = host.up_with(&["--source-root", &root]);
        for (name, says) in [("missing", "missing"), ("link", "is not within"), ("broken", "git bundle failed")] {
            let body = json!({"name": name, "sourceDirectory": format!("{root}/{name}")});
            let (status, answer) = call(&host, &up, "POST", "/v1/sandboxes", body);
            assert_eq!(status, 200, "{answer}");
            let get = || host.ok(&["get", name, "--output", "json"]);
            let text = wait::until("it fails", UP_TIMEOUT, get, |text| text.contains("\"failed\""));
            let json: Value = serde_json::from_str(&text).expect("JSON");
            let reason = json["reason"].as_str().unwrap_or_default();
            assert!(reason.contains(says) && !reason.contains("/proc/"), "{name}: {reason}");
        }
        up.stop();
        host.finish();
    }
}

/// A directory that takes a while to copy: 3,000 small files and a large one.
fn many(host: &Host) -> std::path::PathBuf {
    let projects = projects(host);
    let many = projects.join("many");
    fs::create_dir_all(&many).expect("writable");
    for index in 0..3000 {
        fs::write(many.join(format!("file{index}")), format!("{index}\n")).expect("writable");
    }
    fs::write(many.join("zz-last"), vec![7; 64 << 20]).expect("writable");
    host.own_tree(&many);
    projects
}

/// What all of it looks like from inside.
const WHOLE: [&str; 6] = ["exec", "many", "--", "sh", "-c", "ls | wc -l; stat -c %s zz-last"];

/// Asks for the sandbox `many`; where the runner notes how far its content is.
fn create_many(host: &Host, up: &dispense_e2e::host::Up<'_>, projects: &Path) -> std::path::PathBuf {
    let body = json!({"name": "many", "sourceDirectory": format!("{}/many", projects.display())});
    let (status, answer) = call(host, up, "POST", "/v1/sandboxes", body);
    assert_eq!(status, 200, "{answer}");
    host.data_dir().join("runner/content").join(answer["sandbox"]["id"].as_str().expect("an id"))
}

fn is_being_filled(mark: &Path) {
    let read = || fs::read_to_string(mark).unwrap_or_default();
    wait::until("the box is being filled", UP_TIMEOUT, read, |text| text == "filling");
}

/// The runner dies while it fills; the next one begins anew, and nobody sees half of it.
#[test]
fn a_runner_killed_while_it_fills_fills_again() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let projects = many(&host);
    let root = projects.to_str().expect("text").to_owned();
    let flags = ["--source-root", root.as_str()];
    let up = host.up_with(&flags);
    let mark = create_many(&host, &up, &projects);
    let read = || fs::read_to_string(&mark).unwrap_or_default();
    is_being_filled(&mark);
    up.kill();
    assert_eq!(read(), "filling", "it was killed half-way");
    let up = host.up_with(&flags);
    assert_eq!(host.ok(&WHOLE), format!("3001\n{}\n", 64 << 20));
    assert_eq!(read(), "filled");
    up.stop();
    assert!(!mark.exists(), "the mark goes with the box");
    host.finish();
}

#[test]
fn a_sandbox_is_stopped_and_deleted_while_it_is_filled() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let projects = many(&host);
    let up = host.up_with(&["--source-root", projects.to_str().expect("text")]);
    let mark = create_many(&host, &up, &projects);
    is_being_filled(&mark);
    host.ok(&["stop", "many"]);
    let state = || host.ok(&["get", "many", "--output", "json"]);
    wait::until("it is stopped", UP_TIMEOUT, state, |text| text.contains("\"stopped\""));
    host.ok(&["start", "many"]);
    assert_eq!(host.ok(&WHOLE), format!("3001\n{}\n", 64 << 20));
    host.ok(&["delete", "many"]);
    let mark = create_many(&host, &up, &projects);
    is_being_filled(&mark);
    host.ok(&["delete", "many"]);
    wait::until("nothing is left of it", UP_TIMEOUT, || mark.exists(), |there| !there);
    up.stop();
    host.finish();
}
