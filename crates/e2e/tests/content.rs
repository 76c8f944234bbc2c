//! Sandboxes that begin with what a URL names, and are saved there: an S3 server and an HTTP server that nobody here
//! wrote.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use dispense_e2e::clients::Clients;
use dispense_e2e::pair::Running;
use dispense_e2e::{Host, Mode};

/// Of the bytes 0 to 255, a thousand times: what somebody else's object has.
const COUNTED_SHA256: &str = "b57b64b198d5d59ce5a22a9b9f25e72a7d081476d432051aa923f3dbebb90934";

/// Both servers, and the way to the first that changes bytes.
struct Storage {
    s3: String,
    web: String,
    bad_way: String,
    folder: tempfile::TempDir,
    _process: Running,
}

impl Storage {
    fn start(clients: &Clients) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut command = clients.python_script("storage.py");
        command.arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 is installed");
        let stdout = child.stdout.take().expect("piped");
        let line = BufReader::new(stdout).lines().next().expect("a line").expect("text");
        let addresses: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let [s3, web, bad_way] = addresses.try_into().expect("three addresses");
        Self { s3, web, bad_way, folder, _process: Running::adopt(child) }
    }

    /// As an operator of a server that is not Amazon's has it.
    fn variables(&self) -> [(&'static str, &str); 5] {
        [
            ("AWS_ENDPOINT", &self.s3),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ]
    }

    /// An archive on the HTTP server, and its checksum.
    fn archive(&self, name: &str) -> String {
        let tree = self.folder.path().join("tree");
        fs::create_dir_all(tree.join("src")).expect("writable");
        fs::write(tree.join("src/main"), "main\n").expect("writable");
        fs::write(tree.join("big"), vec![7; 3_000_000]).expect("writable");
        let archive = self.folder.path().join(name);
        let flags = if name.ends_with(".tar") { "-cf" } else { "-czf" };
        let packed = Command::new("tar").arg(flags).arg(&archive).arg("-C").arg(&tree).arg(".").status();
        assert!(packed.expect("tar is there").success());
        let sum = Command::new("sha256sum").arg(&archive).output().expect("sha256sum is there");
        String::from_utf8_lossy(&sum.stdout).split(' ').next().expect("digits").to_owned()
    }
}

fn dispense(host: &Host, storage: &Storage, args: &[&str]) -> Output {
    host.command(args).envs(storage.variables()).stdin(Stdio::null()).output().expect("the binary starts")
}

#[track_caller]
fn ok(host: &Host, storage: &Storage, args: &[&str]) -> String {
    let output = dispense(host, storage, args);
    assert!(output.status.success(), "dispense {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refused(host: &Host, storage: &Storage, args: &[&str], why: &str) {
    let output = dispense(host, storage, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains(why), "dispense {args:?}: {text}");
}

#[test]
fn a_workspace_comes_from_object_storage_and_is_saved_to_it() {
    let Some(clients) = Clients::available() else { return };
    let storage = Storage::start(&clients);
    for mode in Mode::available() {
        let host = Host::new(mode);
        let list = "find . -type f -o -type l | sort; sha256sum < big; cat main.py";
        let up = host.up_with_all(&["--source-root", "s3://code"], &storage.variables());
        ok(&host, &storage, &["create", "--name", "box", "--content", "s3://code/app"]);
        let long = "n".repeat(120);
        let text = host.ok(&["exec", "box", "--", "sh", "-c", list]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..4], ["./big", "./empty", "./main.py", &format!("./src/deep/er/{long}")]);
        let big = lines[4].to_owned();
        assert_eq!(lines[5..], ["print('hello')"]);
        // What the user made since then, with its modes and links.
        let change = "rm empty; echo '#!/bin/sh' > run; chmod 755 run; ln -s run alias; mkdir sub; echo déjà > sub/é";
        host.ok(&["exec", "box", "--", "sh", "-c", change]);
        let place = format!("s3://code/saved-{mode:?}").to_lowercase();
        ok(&host, &storage, &["save", "box", &place]);
        ok(&host, &storage, &["create", "--name", "again", "--content", &place]);
        let text = host.ok(&[
            "exec",
            "again",
            "--",
            "sh",
            "-c",
            &format!("{list}; stat -c %a run; readlink alias; cat sub/é"),
        ]);
        let wanted = ["./alias", "./big", "./main.py", "./run", &format!("./src/deep/er/{long}"), "./sub/é", &big];
        let wanted = [&wanted[..], &["print('hello')", "755", "run", "déjà"]].concat();
        assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
        // What was once filled is the user's.
        host.ok(&["stop", "again"]);
        host.ok(&["start", "again"]);
        assert_eq!(host.ok(&["exec", "again", "--", "cat", "sub/é"]), "déjà\n");
        refused(&host, &storage, &["create", "--content", "s3://code/nothing"], "has no objects");
        refused(&host, &storage, &["create", "--content", "s3://other/app"], "shares only s3://code");
        refused(&host, &storage, &["create", "--content", "s3://code/../other"], "`..`");
        refused(&host, &storage, &["save", "box", "https://example.org/a.tar"], "cannot be saved to");
        for name in ["box", "again"] {
            host.ok(&["delete", name]);
        }
        up.stop();
        host.finish();
    }
}

/// A tree with names, links and kinds of files that a storage has no place for.
const MAKE_ODD: &str = r#"
    echo one > first; ln first hard; mkdir -p deep/empty private only; chmod 700 private deep/empty
    echo key > private/key; ln first private/hard
    for name in $'a\377' $'a\376' a%FF $'new\nline' 'end ' %20 $'d\351j\340/x' 'back\slash' "q'uo\"te" \~x 'a+b&c=d?e#f'; do
        mkdir -p "$(dirname "$name")"; echo "in $name" > "$name"
    done
    ln -s 'déjà vu' accent; ln -s plain/target plain; ln -s $'not \377%41' odd; touch -d @1000000000 first
    mkfifo pipe only/pipe
"#;
/// Kind, mode, time and content of everything below the working directory, in ASCII.
const DESCRIBE: &str = r#"
    find . -mindepth 1 -print0 | LC_ALL=C sort -z | while IFS= read -r -d '' file; do
        if [ -L "$file" ]; then echo "$file -> $(readlink "$file")"
        elif [ -d "$file" ]; then echo "$file/ $(stat -c %a "$file")"
        else echo "$file $(stat -c %a:%Y "$file") $(cat "$file")"; fi
    done | od -An -v -c
"#;

#[test]
fn nothing_of_a_tree_is_lost_between_save_and_content() {
    let Some(clients) = Clients::available() else { return };
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let storage = Storage::start(&clients);
    let host = Host::new(mode);
    let up = host.up_with_all(&["--source-root", "s3://code"], &storage.variables());
    host.ok(&["create", "--name", "box"]);
    host.ok(&["exec", "box", "--", "bash", "-c", MAKE_ODD]);
    let saved = dispense(&host, &storage, &["save", "box", "s3://code/odd~names"]);
    let told = String::from_utf8_lossy(&saved.stderr).into_owned();
    assert!(saved.status.success() && told.contains("2 devices, sockets or pipes were not"), "{told}");
    host.ok(&["exec", "box", "--", "rm", "pipe", "only/pipe"]);
    let wanted = host.ok(&["exec", "box", "--", "bash", "-c", DESCRIBE]);
    ok(&host, &storage, &["create", "--name", "again", "--content", "s3://code/odd~names"]);
    assert_eq!(host.ok(&["exec", "again", "--", "bash", "-c", DESCRIBE]), wanted);
    let stat = host.ok(&["exec", "again", "--", "stat", "-c", "%Y %a", "hard", "deep/empty"]);
    assert_eq!(stat.lines().map(|line| line.split(' ').collect::<Vec<_>>()[1]).collect::<Vec<_>>(), ["644", "700"]);
    assert!(stat.starts_with("1000000000 "), "{stat}");
    // One file; and a directory that a link leads to.
    let one = ["--output", "json", "save", "box", "s3://code/one", "--path", "/workspace/first"];
    let told: serde_json::Value = serde_json::from_str(&ok(&host, &storage, &one)).expect("JSON");
    assert_eq!(told, serde_json::json!({"files": 1, "bytes": 4, "skipped": 0}));
    ok(&host, &storage, &["create", "--name", "one", "--content", "s3://code/one"]);
    assert_eq!(host.ok(&["exec", "one", "--", "cat", "first"]), "one\n");
    host.ok(&["exec", "box", "--", "ln", "-s", "private", "way"]);
    ok(&host, &storage, &["save", "box", "s3://code/way", "--path", "/workspace/way"]);
    ok(&host, &storage, &["create", "--name", "way", "--content", "s3://code/way"]);
    assert_eq!(host.ok(&["exec", "way", "--", "cat", "key", "hard"]), "key\none\n");
    // A tree with nothing in it is none that was never saved.
    ok(&host, &storage, &["save", "box", "s3://code/empty", "--path", "/workspace/deep/empty"]);
    ok(&host, &storage, &["create", "--name", "empty", "--content", "s3://code/empty"]);
    assert_eq!(host.ok(&["exec", "empty", "--", "ls", "-A"]), "");
    // Of others: names that look escaped, a directory as consoles make it, the time at which an object was written.
    ok(&host, &storage, &["create", "--name", "foreign", "--content", "s3://code/foreign"]);
    let list = "ls -F; readlink link; test $(stat -c %Y a%0Ab) -gt 1700000000 && echo dated";
    assert_eq!(host.ok(&["exec", "foreign", "--", "sh", "-c", list]), "a%0Ab\nfolder/\nlink@\ndéjà\ndated\n");
    // A name that no key has room for is an error, and the rest is saved.
    let long = "d=$(printf 'n%.0s' $(seq 250)); mkdir -p $d/$d/$d/$d; echo x > $d/$d/$d/$d/a-file-with-a-longer-name";
    host.ok(&["exec", "box", "--", "sh", "-c", long]);
    refused(&host, &storage, &["save", "box", "s3://code/long"], "were not saved, such as `nnn");
    ok(&host, &storage, &["create", "--name", "long", "--content", "s3://code/long"]);
    assert_eq!(host.ok(&["exec", "long", "--", "cat", "first"]), "one\n");
    refused(&host, &storage, &["create", "--content", "s3://code/one/first"], "is one object");
    refused(&host, &storage, &["save", "box", "file:///tmp/x"], "save writes only to object storage");
    refused(&host, &storage, &["save", "box", "s3://nobody/x"], "the bucket `nobody` does not exist");
    refused(&host, &storage, &["create", "--content", "file:///etc"], "e.g. `--source-root /etc`");
    up.stop();
    host.finish();
}

#[test]
fn a_workspace_comes_from_an_archive_of_the_runners_machine() {
    let Some(clients) = Clients::available() else { return };
    let storage = Storage::start(&clients);
    for mode in Mode::available() {
        let host = Host::new(mode);
        storage.archive("here.tar.gz");
        let shared = host.work_dir().join("shared");
        fs::create_dir(&shared).expect("fresh");
        fs::copy(storage.folder.path().join("here.tar.gz"), shared.join("here.tar.gz")).expect("writable");
        fs::write(shared.join("text"), "no archive").expect("writable");
        host.own_tree(&shared);
        let up = host.up_with(&["--source-root", &shared.display().to_string()]);
        let url = |name: &str| format!("file://{}/{name}", shared.display());
        ok(&host, &storage, &["create", "--name", "box", "--content", &url("here.tar.gz")]);
        assert_eq!(host.ok(&["exec", "box", "--", "cat", "src/main"]), "main\n");
        refused(&host, &storage, &["create", "--content", &url("text")], "is neither a directory nor an archive");
        refused(&host, &storage, &["create", "--content", "file:///etc/a.tar"], "e.g. `--source-root /etc`");
        up.stop();
        host.finish();
    }
}

#[test]
fn objects_that_were_changed_on_their_way_are_read_again_and_then_refused() {
    let Some(clients) = Clients::available() else { return };
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let mut storage = Storage::start(&clients);
    storage.s3 = storage.bad_way.clone();
    let host = Host::new(mode);
    let up = host.up_with_all(&["--source-root", "s3://code"], &storage.variables());
    // Of ours, a small one and one of several parts; the last is first cut, and then goes on wrongly.
    host.ok(&["create", "--name", "box"]);
    let make = "seq 3 > once; seq 2000000 > resumed; : > empty; sha256sum once resumed empty";
    let sums = host.ok(&["exec", "box", "--", "sh", "-c", make]);
    ok(&host, &storage, &["save", "box", "s3://code/ours"]);
    ok(&host, &storage, &["create", "--name", "again", "--content", "s3://code/ours"]);
    assert_eq!(host.ok(&["exec", "again", "--", "sha256sum", "once", "resumed", "empty"]), sums);
    // Of others.
    ok(&host, &storage, &["create", "--name", "others", "--content", "s3://code/others"]);
    let sum = host.ok(&["exec", "others", "--", "sha256sum", "once"]);
    assert_eq!(sum.split(' ').next(), Some(COUNTED_SHA256));
    let broken = ["create", "--name", "broken", "--content", "s3://code/broken"];
    refused(&host, &storage, &broken, "failed to read broken/always: its CRC-32 is");
    // Nothing runs that is half filled.
    let run = host.dispense(&["exec", "broken", "--", "true"]);
    assert!(!run.status.success(), "{run:?}");
    host.ok(&["exec", "box", "--", "mv", "once", "always"]);
    ok(&host, &storage, &["save", "box", "s3://code/worse"]);
    let worse = ["create", "--content", "s3://code/worse"];
    refused(&host, &storage, &worse, "failed to read worse/always: its SHA-256 is");
    up.stop();
    host.finish();
}

#[test]
fn a_workspace_comes_from_an_archive_which_must_be_the_one_that_is_meant() {
    let Some(clients) = Clients::available() else { return };
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let storage = Storage::start(&clients);
    let host = Host::new(mode);
    let show = ["--", "sh", "-c", "cat src/main; stat -c %s big"];
    for name in ["a.tar", "b.tar.gz", "cut.tgz"] {
        let sum = storage.archive(name);
        let url = format!("{}/{name}#sha256={sum}", storage.web);
        let text = ok(&host, &storage, &[&["run", "--content", &url][..], &show].concat());
        assert_eq!(text, "main\n3000000\n", "{name}");
    }
    let wrong = format!("{}/a.tar#sha256={}", storage.web, "0".repeat(64));
    refused(&host, &storage, &["run", "--content", &wrong, "--", "true"], "is asked for");
    let missing = format!("{}/missing.tar", storage.web);
    refused(&host, &storage, &["run", "--content", &missing, "--", "true"], "missing.tar");
    fs::write(storage.folder.path().join("text.tar.gz"), "no archive").expect("writable");
    let text = format!("{}/text.tar.gz", storage.web);
    refused(&host, &storage, &["run", "--content", &text, "--", "true"], "could not be filled");
    host.finish();
}

#[test]
fn a_workspace_is_a_clone_of_a_repository_on_the_branch_that_is_meant() {
    let Some(clients) = Clients::available() else { return };
    let storage = Storage::start(&clients);
    let folder = storage.folder.path();
    let script = "git init -q -b main work && cd work && git config user.name T && git config user.email t@example.org && \
                  echo one > file && git add . && git commit -qm one && git checkout -qb feature && echo two > file && \
                  ln -s file link && git add . && git commit -qm two && git checkout -qb large && \
                  head -c 70000000 /dev/zero > zeros && git add . && git commit -qm large && git checkout -q main && \
                  git clone -q --bare . ../code.git && cd ../code.git && git update-server-info";
    let made = Command::new("sh").args(["-c", script]).current_dir(folder).output().expect("sh is there");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up_with_all(&["--source-root", &format!("{}/code.git", storage.web)], &[]);
        let url = format!("{}/code.git", storage.web);
        let show = "cat file; git log --format=%s; git status --short --branch; git remote get-url origin";
        ok(&host, &storage, &["create", "--name", "main", "--content", &url]);
        let text = host.ok(&["exec", "main", "--", "sh", "-c", show]);
        assert_eq!(text, format!("one\none\n## main...origin/main\n{url}\n"));
        ok(&host, &storage, &["create", "--name", "feature", "--content", &format!("{url}#feature")]);
        let text =
            host.ok(&["exec", "feature", "--", "sh", "-c", "cat link; git log --format=%s; git branch --show-current"]);
        assert_eq!(text, "two\ntwo\none\nfeature\n");
        refused(&host, &storage, &["create", "--content", &format!("{url}#nothing")], "nothing not found");
        let large = ["create", "--disk", "64M", "--content", &format!("{url}#large")];
        refused(&host, &storage, &large, "code.git is larger than 64 MiB");
        let other = format!("{}/other.git", storage.web);
        refused(&host, &storage, &["create", "--content", &other], "shares only");
        for name in ["main", "feature"] {
            host.ok(&["delete", name]);
        }
        up.stop();
        host.finish();
    }
}
