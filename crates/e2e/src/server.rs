//! A server process on a host of its own, which can be killed and started again where it was.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::pair::Running;
use crate::{Host, Mode, wait};

/// For a process to come up on a loaded machine.
const UP_TIMEOUT: Duration = Duration::from_secs(60);

/// `dispense server`.
pub struct ServerProcess {
    host: Host,
    process: Option<Running>,
    url: String,
    runner_url: String,
    join_token: String,
    key: String,
    /// Of a database that it shares with others.
    database: Option<String>,
}

impl ServerProcess {
    /// Starts it on free ports and waits until it serves.
    pub fn start(mode: Mode) -> Self {
        Self::start_on(mode, None)
    }

    /// The same, on a PostgreSQL database where one is given.
    pub fn start_on(mode: Mode, database: Option<String>) -> Self {
        let host = Host::new(mode);
        let any = ["server", "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"];
        let process = Running::start(on(database.as_deref(), &mut host.command(any)));
        let show = || host.ok(&["config", "show", "--output", "json"]);
        let text = wait::until("the server serves", UP_TIMEOUT, show, |text| text.contains("runnerUrl"));
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let field = |name: &str| json[name].as_str().unwrap_or_else(|| panic!("{name} in {text}")).to_owned();
        let key = fs::read_to_string(host.data_dir().join("admin.key")).expect("the server wrote it");
        Self {
            url: field("url"),
            runner_url: field("runnerUrl"),
            join_token: field("joinToken"),
            key: key.trim().to_owned(),
            host,
            process: Some(process),
            database,
        }
    }

    /// Starts one more on the same database, on free ports, and returns when its ports take connections: it follows.
    pub fn follower(&self) -> Self {
        let host = Host::new(self.host.mode());
        for name in ["secrets.key", "admin.key"] {
            let copy = host.data_dir().join(name);
            fs::copy(self.host.data_dir().join(name), &copy).expect("the first server has made it");
            host.own(&copy);
        }
        let [public, runners] = [free_address(), free_address()];
        let mut follower = Self {
            url: format!("http://{public}"),
            runner_url: format!("http://{runners}"),
            join_token: self.join_token.clone(),
            key: self.key.clone(),
            host,
            process: None,
            database: self.database.clone(),
        };
        follower.restart();
        let connect = || TcpStream::connect(public).is_ok();
        wait::until("the follower serves", UP_TIMEOUT, connect, |connected| *connected);
        follower
    }

    /// Starts it again where it was.
    pub fn restart(&mut self) {
        let address = |url: &str| url.trim_start_matches("http://").to_owned();
        let (public, runners) = (address(&self.url), address(&self.runner_url));
        let args = ["server", "--address", &public, "--runner-address", &runners];
        self.process = Some(Running::start(on(self.database.as_deref(), &mut self.host.command(args))));
    }

    /// Kills it with no chance to clean up.
    pub fn kill(&mut self) {
        self.take().kill();
    }

    /// The process, which this forgets.
    pub fn take(&mut self) -> Running {
        self.process.take().expect("it runs")
    }

    /// The process.
    pub fn process(&self) -> &Running {
        self.process.as_ref().expect("it runs")
    }

    /// The host that it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where clients reach it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where runners reach it.
    pub fn runner_url(&self) -> &str {
        &self.runner_url
    }

    /// With it a runner joins.
    pub fn join_token(&self) -> &str {
        &self.join_token
    }

    /// The administrator's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Ends it, if it runs, and the test of its host.
    pub fn finish(mut self) {
        if let Some(process) = self.process.take() {
            assert!(process.stop().success(), "the server ends well");
        }
        self.host.finish();
    }
}

/// Tests ask far more often than people.
fn on<'c>(database: Option<&str>, command: &'c mut Command) -> &'c mut Command {
    if let Some(url) = database {
        command.env("DISPENSE_DATABASE_URL", url);
    }
    command.env("DISPENSE_RATE_LIMITING_ENABLED", "false")
}

/// An address that nobody has now.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("it is bound")
}
