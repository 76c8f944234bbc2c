//! A PostgreSQL server of a test's own, from Debian's package, reached by a socket in a temporary directory.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::host::{skipped, user_ids};
use crate::pair::Running;
use crate::wait;

/// Debian's user; PostgreSQL refuses to run as root.
const USER: &str = "postgres";
const UP_TIMEOUT: Duration = Duration::from_secs(60);
/// Set for a run of the tests in which every in-process server keeps its data in PostgreSQL.
const STORE_VARIABLE: &str = "DISPENSE_TEST_STORE";

/// A running server.
pub struct Postgres {
    programs: PathBuf,
    folder: tempfile::TempDir,
    server: Option<Running>,
}

impl Postgres {
    /// Whether this run of the tests is to use it everywhere.
    pub fn is_asked_for() -> bool {
        std::env::var(STORE_VARIABLE).is_ok_and(|store| store == "postgres")
    }

    /// Starts one; `None`, with the reason, where it is not installed.
    pub fn start() -> Option<Self> {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let programs = versions.map(|version| version.path().join("bin")).find(|path| path.join("initdb").is_file());
        let Some(programs) = programs else {
            skipped("PostgreSQL: it is not installed (`apt-get install postgresql`)");
            return None;
        };
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut postgres = Self { programs, folder, server: None };
        if let Some((uid, gid)) = postgres.ids() {
            chown(postgres.folder.path(), Some(uid), Some(gid)).expect("root may");
        }
        let mut initdb = postgres.command("initdb");
        initdb.args(["--no-sync", "--auth=trust", "--username=dispense", "--encoding=UTF8", "--locale=C", "--pgdata"]);
        let made = initdb.arg(postgres.data()).output().expect("it starts");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        postgres.run();
        Some(postgres)
    }

    /// As root the programs run as their own user.
    fn ids(&self) -> Option<(u32, u32)> {
        if rustix::process::geteuid().is_root() { user_ids(USER) } else { None }
    }

    fn command(&self, program: &str) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(self.programs.join(program));
        if let Some((uid, gid)) = self.ids() {
            command.uid(uid).gid(gid);
        }
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn socket_dir(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it where it was.
    pub fn run(&mut self) {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.socket_dir()).args(["-c", "listen_addresses=", "-F"]);
        self.server = Some(Running::start(&mut command));
        let ready = || {
            let mut probe = self.command("pg_isready");
            probe
                .arg("--host")
                .arg(self.socket_dir())
                .stdout(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        wait::until("PostgreSQL is ready", UP_TIMEOUT, ready, |ready| *ready);
    }

    /// Kills it with no chance to clean up.
    pub fn kill(&mut self) {
        let running = self.server.take().expect("it runs");
        running.kill();
        // Its children notice by themselves, and a new one does not start beside them.
        let lock = self.data().join("postmaster.pid");
        let _ = fs::remove_file(lock);
    }

    /// Where a server finds its database.
    pub fn url(&self) -> String {
        format!("postgres://dispense@localhost/postgres?host={}", self.socket_dir().display())
    }
}
