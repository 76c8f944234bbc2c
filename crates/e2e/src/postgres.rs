//! A PostgreSQL server of a test's own, from Debian's package, reached by a socket in a temporary directory.

use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, io};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

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

    /// A network to it that a test may break.
    pub async fn wire(&self) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let fault = watch::Sender::new(Fault::None);
        let (database, faults) = (self.socket_dir().join(".s.PGSQL.5432"), fault.clone());
        let accepts = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, database.clone(), faults.clone()));
            }
        });
        Wire { address, fault, _accepts: AbortOnDropHandle::new(accepts) }
    }
}

/// What is wrong with a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The `COMMIT` of the transaction that names this is cut off before it arrives.
    CommitLost(&'static str),
    /// It arrives, and its answer is cut off.
    AnswerLost(&'static str),
    /// Nothing passes, and neither end is told.
    Silence,
    /// What was connected is cut off, and what connects is not answered.
    Gone,
}

/// A network between a server and its database.
pub struct Wire {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    _accepts: AbortOnDropHandle<()>,
}

impl Wire {
    /// Where a server finds its database at the other end.
    pub fn url(&self) -> String {
        format!("postgres://dispense@{}/postgres", self.address)
    }

    /// Breaks it, or mends it.
    pub fn fail(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Whether what was to fail has failed.
    pub fn has_failed(&self) -> bool {
        *self.fault.borrow() == Fault::None
    }
}

/// Carries one connection until either end is closed, or a fault cuts it.
async fn carry(mut client: TcpStream, database: PathBuf, fault: watch::Sender<Fault>) -> io::Result<()> {
    let mut database = UnixStream::connect(database).await?;
    let mut told = fault.subscribe();
    let (mut asked, mut answered) = ([0; 16 << 10], [0; 16 << 10]);
    let has = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    let mut named = false;
    // The sender is ours.
    let _ = told.wait_for(|fault| *fault != Fault::Gone).await;
    loop {
        let _ = told.wait_for(|fault| *fault != Fault::Silence).await;
        if *told.borrow() == Fault::Gone {
            return Ok(());
        }
        tokio::select! {
            _ = told.changed() => {}
            read = client.read(&mut asked) => {
                let asked = &asked[..read?];
                let now = *told.borrow_and_update();
                if let Fault::CommitLost(name) | Fault::AnswerLost(name) = now {
                    named |= has(asked, name.as_bytes());
                }
                let cut = named && has(asked, b"COMMIT\0");
                if asked.is_empty() {
                    return Ok(());
                }
                if !(cut && matches!(now, Fault::CommitLost(_))) {
                    database.write_all(asked).await?;
                }
                if cut {
                    if let Fault::AnswerLost(_) = now {
                        // The first byte of it.
                        database.read_u8().await?;
                    }
                    fault.send_replace(Fault::None);
                    return Ok(());
                }
            }
            read = database.read(&mut answered) => match read? {
                0 => return Ok(()),
                count => client.write_all(&answered[..count]).await?,
            },
        }
    }
}
