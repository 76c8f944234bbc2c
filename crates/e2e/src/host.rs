//! One test's copy of everything: a data directory, a user to run as, the binary.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use crate::wait;

/// The ordinary user that `.ci/run` makes, with ranges in `/etc/subuid` and `/etc/subgid`.
const TEST_USER: &str = "dispense-test";
/// Set in CI, where a test that would skip fails instead.
const NO_SKIP_VARIABLE: &str = "DISPENSE_TEST_NO_SKIP";
const CGROUPS_VARIABLE: &str = "DISPENSE_TEST_CGROUPS";

/// For a server to end behind its last client, and to remove large trees from a busy disk.
const GONE_TIMEOUT: Duration = Duration::from_secs(60);

/// As whom the product runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As root.
    Root,
    /// As an ordinary user with a range of uids.
    User,
}

impl Mode {
    /// Those that this machine can test; says which it skips and why.
    pub fn available() -> Vec<Self> {
        let mut modes = Vec::new();
        if rustix::process::geteuid().is_root() {
            modes.push(Self::Root);
            if uid_of(TEST_USER).is_some() {
                modes.push(Self::User);
            } else {
                skipped(&format!(
                    "as an ordinary user: there is no user `{TEST_USER}` (`useradd --create-home {TEST_USER}`)"
                ));
            }
        } else {
            modes.push(Self::User);
            skipped("as root: the tests do not run as root");
        }
        modes
    }

    /// Whether the machine lets this user limit memory, processors and processes: root always, an ordinary user where
    /// a cgroup is delegated, which the variable says.
    pub fn enforces_limits(self) -> bool {
        self == Self::Root || std::env::var_os(CGROUPS_VARIABLE).is_some_and(|value| value == "delegated")
    }
}

/// Says what is not tested here and why; fails where nothing may be skipped.
pub fn skipped(what: &str) {
    assert!(
        std::env::var_os(NO_SKIP_VARIABLE).is_none(),
        "{NO_SKIP_VARIABLE} is set, but this would be skipped: {what}"
    );
    eprintln!("skipped: {what}");
}

fn uid_of(user: &str) -> Option<u32> {
    user_ids(user).map(|(uid, _)| uid)
}

/// Uid and gid of a user of this machine.
pub(crate) fn user_ids(user: &str) -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Before the key of a copy of the binary.
const COPY_PREFIX: &str = "dispense-bin-";

/// The `dispense` binary, in a place that every user can reach: one copy for all tests of a build.
fn binary() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| {
        let test = std::env::current_exe().expect("a test knows its own path");
        // Tests stand in `deps/` beside it, other programs where it is.
        let folders = [test.parent().and_then(Path::parent), test.parent()];
        let mut places = folders.into_iter().flatten().map(|folder| folder.join("dispense"));
        let built = places
            .clone()
            .find(|path| path.exists())
            .or_else(|| places.next_back())
            .expect("a program has a directory");
        assert!(built.exists(), "{} is missing: run `cargo xtask test`, which builds it", built.display());
        copy_of(&built)
    })
}

/// Copies under a name that says which build it is. A hard link would cross no file system.
fn copy_of(built: &Path) -> PathBuf {
    let meta = fs::metadata(built).expect("it was there");
    let uid = rustix::process::geteuid().as_raw();
    let key = format!("{COPY_PREFIX}{uid}-{}-{}", meta.mtime_nsec() ^ meta.mtime(), meta.ino());
    let folder = std::env::temp_dir().join(&key);
    let path = folder.join("dispense");
    let ours = || fs::symlink_metadata(&folder).is_ok_and(|there| there.is_dir() && there.uid() == uid);
    if !ours() || !path.exists() {
        forget_older_copies(uid);
        let fresh = tempfile::Builder::new().prefix(".dispense-").tempdir().expect("a temporary directory");
        fs::set_permissions(fresh.path(), fs::Permissions::from_mode(0o755)).expect("chmod of our own directory");
        fs::copy(built, fresh.path().join("dispense")).expect("room for a copy of the binary");
        // Another test may be quicker: then its copy is as good.
        let _ = fs::rename(fresh.path(), &folder);
        assert!(ours() && path.exists(), "{} is somebody else's", folder.display());
    }
    path
}

/// Copies of older builds, which no test of this one uses.
fn forget_older_copies(uid: u32) {
    let prefix = format!("{COPY_PREFIX}{uid}-");
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let is_copy = entry.file_name().to_string_lossy().starts_with(&prefix);
        let is_old = entry.metadata().is_ok_and(|meta| {
            meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > COPY_KEPT)) && meta.uid() == uid
        });
        if is_copy && is_old {
            // Somebody may still run it; what is left is removed the next time.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Longer than any run of the tests.
const COPY_KEPT: Duration = Duration::from_secs(3600);

/// The end of a log that a failed test tells.
const LOG_LINES: usize = 40;

/// A data directory of its own and a user to run as.
pub struct Host {
    mode: Mode,
    folder: TempDir,
    finished: bool,
}

impl Host {
    /// Makes an empty data directory.
    pub fn new(mode: Mode) -> Self {
        let folder = tempfile::Builder::new().prefix("dispense-e2e-").tempdir().expect("a temporary directory");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod of our own directory");
        let host = Self { mode, folder, finished: false };
        for name in ["data", "home", "work"] {
            let path = host.folder.path().join(name);
            fs::create_dir(&path).expect("an empty directory takes an entry");
            host.own(&path);
        }
        host
    }

    /// As whom the product runs.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The product's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A directory for the test's own files, owned by the user.
    pub fn work_dir(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn up_log(&self) -> PathBuf {
        self.folder.path().join("up.log")
    }

    /// Gives a tree to the user that the product runs as; links themselves, not what they lead to.
    pub fn own_tree(&self, path: &Path) {
        self.own(path);
        if fs::symlink_metadata(path).expect("it is there").is_dir() {
            for entry in fs::read_dir(path).expect("readable") {
                self.own_tree(&entry.expect("readable").path());
            }
        }
    }

    /// Gives a path to the user that the product runs as.
    pub fn own(&self, path: &Path) {
        if self.mode == Mode::User && rustix::process::geteuid().is_root() {
            let uid = uid_of(TEST_USER).expect("checked by Mode::available");
            std::os::unix::fs::lchown(path, Some(uid), Some(uid)).expect("root may chown");
        }
    }

    /// `dispense` with these arguments, an empty environment and this host's data directory.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.command_under(&[], args)
    }

    /// The same, started by another program as the same user, e.g. `unshare`.
    pub fn command_under<S: AsRef<std::ffi::OsStr>>(
        &self,
        prefix: &[&str],
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = self.command_as_with(prefix, binary());
        command.args(args);
        command
    }

    /// A script that is `dispense` on this host, for programs that run as somebody else.
    pub fn script(&self) -> String {
        let program = self.command(["--version"]);
        let words: Vec<String> = std::iter::once(program.get_program())
            .chain(program.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let (_, words) = words.split_last().expect("a program");
        let script = self.work_dir().join("dispense.sh");
        // As the user who may use the data directory, whoever runs it.
        let variables = format!("DISPENSE_DATA_DIR={} HOME={}", self.data_dir().display(), self.work_dir().display());
        let text = format!("#!/bin/sh\nexport {variables}\nexec {} \"$@\"\n", words.join(" "));
        std::fs::write(&script, text).expect("writable");
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
        script.display().to_string()
    }

    /// Another program, as the same user and with the same environment.
    pub fn command_as(&self, program: &str) -> Command {
        self.command_as_with(&[], program)
    }

    fn command_as_with(&self, prefix: &[&str], program: impl Into<std::ffi::OsString>) -> Command {
        let mut words: Vec<std::ffi::OsString> = Vec::new();
        if self.mode == Mode::User && rustix::process::geteuid().is_root() {
            let uid = uid_of(TEST_USER).expect("checked by Mode::available").to_string();
            words.extend(
                ["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", "--inh-caps=-all"].map(Into::into),
            );
        }
        words.extend(prefix.iter().map(Into::into));
        words.push(program.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.folder.path().join("home"))
            .env("DISPENSE_DATA_DIR", self.data_dir())
            // Tests run side by side.
            .env("DISPENSE_SSH_ADDRESS", "127.0.0.1:0")
            // And ask nobody beyond this machine.
            .env("DISPENSE_PROVIDER_URL", "")
            .current_dir(self.work_dir());
        command
    }

    /// Runs `dispense` to its end with empty stdin.
    pub fn dispense(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().expect("the binary starts")
    }

    /// Runs `dispense`, which must succeed; its stdout as text.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.dispense(args);
        assert!(
            output.status.success(),
            "dispense {args:?} ended with {}\nstdout: {}\nstderr: {}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        String::from_utf8(output.stdout).expect("text")
    }

    /// Starts `dispense up` and waits until it serves.
    pub fn up(&self) -> Up<'_> {
        self.up_with(&[])
    }

    /// Starts `dispense up` with more flags and waits until it serves.
    pub fn up_with(&self, flags: &[&str]) -> Up<'_> {
        self.up_with_all(flags, &[])
    }

    /// Starts `dispense up` with more variables and waits until it serves.
    pub fn up_with_env(&self, variables: &[(&str, &str)]) -> Up<'_> {
        self.up_with_all(&[], variables)
    }

    /// Both.
    pub fn up_with_all(&self, flags: &[&str], variables: &[(&str, &str)]) -> Up<'_> {
        let any = "127.0.0.1:0";
        let mut args = vec!["up", "--address", any, "--runner-address", any];
        args.extend_from_slice(flags);
        let log = fs::File::create(self.up_log()).expect("our own directory");
        let child = self
            .command(args)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        let up = Up { host: self, child: Some(child) };
        wait::until(
            "a runner is available",
            Duration::from_secs(30),
            // It starts no server of its own, as other commands do.
            || String::from_utf8_lossy(&self.dispense(&["config", "show", "--output", "json"]).stdout).into_owned(),
            |text| text.contains("runnerUrl"),
        );
        up
    }

    /// Ends the test: nothing of this host may be left on the machine.
    pub fn finish(mut self) {
        self.finished = true;
        let left = || dispense_backend::testing::leaks::find(&self.data_dir());
        wait::until("nothing is left on the host", GONE_TIMEOUT, left, Vec::is_empty);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        assert!(self.finished || std::thread::panicking(), "a test ends with Host::finish");
        if std::thread::panicking() {
            for log in [self.data_dir().join("embedded.log"), self.up_log()] {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                    eprintln!("{}: {line}", log.display());
                }
            }
        }
    }
}

/// A running `dispense up`.
pub struct Up<'a> {
    host: &'a Host,
    child: Option<Child>,
}

impl Up<'_> {
    /// Host and port of the public door.
    pub fn address(&self) -> String {
        let text = self.host.ok(&["config", "show", "--output", "json"]);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        json["url"].as_str().expect("it serves").trim_start_matches("http://").to_owned()
    }

    /// The administrator's key.
    pub fn key(&self) -> String {
        let key = fs::read_to_string(self.host.data_dir().join("admin.key")).expect("the server wrote it");
        key.trim().to_owned()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("stopped only once").id()
    }

    /// Kills it with no chance to clean up.
    pub fn kill(mut self) {
        let mut child = self.child.take().expect("stopped only once");
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
    }

    /// Deletes every sandbox, then asks the server to end and waits for it.
    pub fn stop(mut self) {
        let list = self.host.ok(&["list", "--output", "json"]);
        let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        for sandbox in list["sandboxes"].as_array().into_iter().flatten() {
            self.host.ok(&["delete", sandbox["id"].as_str().expect("an id")]);
        }
        let mut child = self.child.take().expect("stopped only once");
        terminate(child.id());
        let status = child.wait().expect("it is ours");
        let log = fs::read_to_string(self.host.up_log()).unwrap_or_default();
        assert!(status.success(), "`dispense up` ended with {status}: {log}");
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The first processes of all boxes whose files are below a directory.
pub fn agents_below(dir: &Path) -> Vec<u32> {
    let dir = dir.display().to_string();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_ours = |pid: &u32| {
        let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        name.starts_with(b"dispense-agent") && mounts.contains(&dir)
    };
    pids.filter(is_ours).collect()
}

/// Sends SIGTERM to a process that the test started.
pub fn terminate(pid: u32) {
    send(pid, rustix::process::Signal::TERM);
}

/// Sends SIGTERM to a process of the test that may have ended.
pub fn terminate_if_there(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("pids are small")).expect("not zero");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
}

/// Kills a process that the test started and waits until the kernel has taken it down, whoever reaps it: the first
/// process of a box shows no memory and no command long before that.
pub fn kill(pid: u32) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let raw = rustix::process::Pid::from_raw(i32::try_from(pid).expect("pids are small")).expect("not zero");
    let watch = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).expect("it is there");
    send(pid, rustix::process::Signal::KILL);
    let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&limit)).expect("a pidfd can be polled");
    assert_eq!(ended, 1, "process {pid} was killed and lives on");
}

/// Sends a signal to a process that the test started.
pub fn send(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("pids are small")).expect("not zero");
    rustix::process::kill_process(pid, signal).expect("it is ours and not reaped yet");
}
