//! Several servers on one PostgreSQL database behind a load balancer: each answers for every sandbox, and each can be
//! killed.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dispense_client::Client;
use dispense_client::v1::CreateSandboxRequest;
use dispense_e2e::host;
use dispense_e2e::pair::Running;
use dispense_e2e::postgres::Postgres;
use dispense_e2e::{Balancer, Host, Mode, ServerProcess, wait};

/// For one server to lead in the place of another, and for runner and clients to find it.
const FAILOVER: Duration = Duration::from_secs(60);

/// Two servers, a balancer, a runner behind it, and the host of a client.
struct Cluster {
    _postgres: Postgres,
    servers: [ServerProcess; 2],
    balancer: Balancer,
    runner_host: Host,
    runner: Running,
    client_host: Host,
}

impl Cluster {
    fn start() -> Option<Self> {
        let mode = Mode::available().into_iter().next()?;
        let postgres = Postgres::start()?;
        let first = ServerProcess::start_on(mode, Some(postgres.url()));
        let servers = [first.follower(), first];
        let balancer = Balancer::start(&servers.each_ref())?;
        let runner_host = Host::new(mode);
        let args = ["runner", "--join", balancer.runner_url(), "--token", servers[0].join_token(), "--name", "far-1"];
        let runner = Running::start(&mut runner_host.command(args));
        let cluster =
            Self { _postgres: postgres, servers, balancer, runner_host, runner, client_host: Host::new(mode) };
        for server in &cluster.servers {
            cluster.wait_for_runner(server.url());
        }
        Some(cluster)
    }

    /// `dispense` of a client that knows this address only.
    fn dispense(&self, url: &str, args: &[&str]) -> (bool, String) {
        let mut command = self.client_host.command(args);
        command.env("DISPENSE_URL", url).env("DISPENSE_API_KEY", self.servers[0].key()).stdin(Stdio::null());
        let output = command.output().expect("the binary starts");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[track_caller]
    fn wait_for_runner(&self, url: &str) {
        let list = || self.dispense(url, &["runner", "list", "--output", "json"]);
        wait::until("the runner is available", FAILOVER, list, |(_, out)| out.contains("\"available\""));
    }

    /// Counts to a number, a line each, into a file.
    fn count(&self, to: u32) -> (Child, PathBuf) {
        let script = format!("for i in $(seq 1 {to}); do echo $i; sleep 0.05; done");
        let mut command = self.client_host.command(["exec", "counter", "--", "sh", "-c", &script]);
        command.env("DISPENSE_URL", self.balancer.url()).env("DISPENSE_API_KEY", self.servers[0].key());
        let output = self.client_host.work_dir().join("counted");
        command.stdin(Stdio::null()).stdout(File::create(&output).expect("writable"));
        (command.spawn().expect("the binary starts"), output)
    }

    fn finish(self) {
        let (_, list) = self.dispense(self.balancer.url(), &["list", "--output", "json"]);
        let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        for sandbox in list["sandboxes"].as_array().into_iter().flatten() {
            let id = sandbox["id"].as_str().expect("an id");
            assert!(self.dispense(self.balancer.url(), &["delete", id]).0, "{id} is deleted");
        }
        assert!(self.runner.stop().success(), "the runner ends well");
        for server in self.servers {
            server.finish();
        }
        self.runner_host.finish();
        self.client_host.finish();
    }
}

/// Creates sandboxes and deletes every other one, until it is told to end: what it was told is there, and what may be.
struct Load {
    made: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<(BTreeSet<String>, BTreeSet<String>)>,
}

impl Load {
    fn start(url: &str, key: &str, prefix: &'static str) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let made = Arc::new(AtomicUsize::new(0));
        let (url, key, told, count) = (url.to_owned(), key.to_owned(), ended.clone(), made.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let thread = std::thread::spawn(move || runtime.block_on(work(&url, &key, prefix, &told, &count)));
        Self { made, ended, thread }
    }

    /// Returns when it has made some more.
    fn go_on(&self) {
        let before = self.made.load(Ordering::Relaxed);
        let made = || self.made.load(Ordering::Relaxed);
        wait::until("load goes on", FAILOVER, made, |made| *made >= before + 8);
    }

    fn stop(self) -> (BTreeSet<String>, BTreeSet<String>) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

async fn work(
    url: &str,
    key: &str,
    prefix: &str,
    ended: &AtomicBool,
    made: &AtomicUsize,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let client = Client::connect(url, key).await.expect("a server answers");
    let (mut there, mut unsure) = (BTreeSet::new(), BTreeSet::new());
    // Not faster than the runner comes back.
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    for number in 0.. {
        tick.tick().await;
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{prefix}-{number}");
        let request = CreateSandboxRequest { name: name.clone(), wait: true, ..Default::default() };
        if client.create(request).await.is_err() {
            unsure.insert(name);
            continue;
        }
        made.fetch_add(1, Ordering::Relaxed);
        if number % 2 == 0 {
            there.insert(name);
        } else if client.delete(&name, false, true).await.is_err() {
            unsure.insert(name);
        }
    }
    (there, unsure)
}

#[test]
fn any_server_answers_and_each_can_be_killed_under_load() {
    let Some(mut cluster) = Cluster::start() else { return };
    let url = cluster.balancer.url().to_owned();
    assert!(cluster.dispense(&url, &["create", "--name", "counter"]).0);
    let (mut counting, output) = cluster.count(400);
    let counted = || std::fs::read_to_string(&output).expect("text");
    wait::until("it counts", FAILOVER, counted, |text| !text.is_empty());
    let loads = ["a", "b"].map(|prefix| Load::start(&url, cluster.servers[0].key(), prefix));
    // The leader first, then the one that leads in its place.
    for index in [1, 0] {
        loads.iter().for_each(Load::go_on);
        cluster.servers[index].kill();
        let other = cluster.servers[1 - index].url().to_owned();
        cluster.wait_for_runner(&other);
        let name = format!("after-{index}");
        wait::until(
            "changes go on",
            FAILOVER,
            || cluster.dispense(&other, &["create", "--name", &name]).0,
            |done| *done,
        );
        cluster.servers[index].restart();
        let own = cluster.servers[index].url().to_owned();
        cluster.wait_for_runner(&own);
    }
    loads.iter().for_each(Load::go_on);
    let results = loads.map(Load::stop);
    let ended = || (counting.try_wait().expect("ours"), counted().lines().last().map(str::to_owned));
    let (status, _) = wait::until("it has counted", FAILOVER, ended, |(status, _)| status.is_some());
    assert_eq!(counted(), (1..=400).map(|number| format!("{number}\n")).collect::<String>());
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    let (_, list) = cluster.dispense(&url, &["list", "--output", "json"]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let running = |sandbox: &&serde_json::Value| sandbox["state"] == "running";
    let names: BTreeSet<String> = list["sandboxes"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(running)
        .map(|sandbox| sandbox["name"].as_str().expect("a name").to_owned())
        .collect();
    for (there, unsure) in &results {
        assert!(there.len() > 5, "there was load: {there:?}");
        assert!(there.is_subset(&names), "lost: {:?}", there.difference(&names));
        eprintln!("{} kept, {} without an answer", there.len(), unsure.len());
    }
    let ours = |name: &&String| results.iter().all(|(there, unsure)| !there.contains(*name) && !unsure.contains(*name));
    let strange: Vec<_> = names.iter().filter(ours).filter(|name| name.starts_with(['a', 'b'])).collect();
    assert_eq!(strange, ["after-0", "after-1"], "what was deleted is gone");
    cluster.finish();
}

#[test]
fn a_leader_that_hangs_is_replaced_and_steps_down_when_it_is_back() {
    let Some(mut cluster) = Cluster::start() else { return };
    let url = cluster.servers[0].url().to_owned();
    assert!(cluster.dispense(&url, &["create", "--name", "box"]).0);
    let hung = cluster.servers[1].take();
    host::send(hung.pid(), rustix::process::Signal::STOP);
    // The runner's link to it is silent until it asks.
    cluster.wait_for_runner(&url);
    let exec = || cluster.dispense(&url, &["exec", "box", "--", "echo", "here"]);
    wait::until("sandboxes are reached", FAILOVER, exec, |(_, out)| out == "here\n");
    host::send(hung.pid(), rustix::process::Signal::CONT);
    let code = hung.ended(FAILOVER);
    assert_eq!(code, Some(1), "it steps down");
    assert!(cluster.dispense(&url, &["create", "--name", "other"]).0);
    cluster.servers[1].restart();
    cluster.wait_for_runner(cluster.servers[1].url());
    cluster.finish();
}

#[test]
fn a_server_with_another_key_for_the_secrets_says_what_to_copy() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let Some(postgres) = Postgres::start() else { return };
    let first = ServerProcess::start_on(mode, Some(postgres.url()));
    let second = Host::new(mode);
    let args = ["server", "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"];
    let refused = second.command(args).env("DISPENSE_DATABASE_URL", postgres.url()).output().expect("it starts");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("copy its secrets.key"), "{text}");
    first.finish();
    second.finish();
}
