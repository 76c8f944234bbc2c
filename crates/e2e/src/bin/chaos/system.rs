//! The processes: one server and a few runners, as on as many machines, and what they leave.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dispense_client::Client;
use dispense_e2e::pair::Running;
use dispense_e2e::{Host, Mode, wait};
use rustix::process::Signal;

const UP_TIMEOUT: Duration = Duration::from_secs(60);

/// A process and how to start it again.
pub(crate) struct Part {
    host: Host,
    args: Vec<String>,
    process: Option<Running>,
}

impl Part {
    fn start(&mut self) {
        self.process = Some(Running::start(&mut self.host.command(&self.args)));
    }

    /// Kills it with no chance to clean up.
    pub(crate) fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it again.
    pub(crate) fn restart(&mut self) {
        self.start();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            dispense_e2e::host::send(process.pid(), signal);
        }
    }
}

/// Everything that runs.
pub(crate) struct System {
    pub(crate) server: Part,
    pub(crate) runners: Vec<Part>,
    url: String,
    key: String,
}

impl System {
    pub(crate) fn start(runners: usize) -> Result<Self> {
        let mode = Mode::available().first().copied().context("there is nobody to run as")?;
        let host = Host::new(mode);
        let args = ["server", "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"];
        let mut server = Part { host, args: args.map(str::to_owned).to_vec(), process: None };
        server.start();
        let show = || server.host.ok(&["config", "show", "--output", "json"]);
        let text = wait::until("the server serves", UP_TIMEOUT, show, |text| text.contains("runnerUrl"));
        let json: serde_json::Value = serde_json::from_str(&text)?;
        let field = |name: &str| json[name].as_str().map(str::to_owned).with_context(|| format!("{name} in {text}"));
        let (url, runner_url, token) = (field("url")?, field("runnerUrl")?, field("joinToken")?);
        // From now on on the same ports.
        let address = |url: &str| url.trim_start_matches("http://").to_owned();
        server.args = ["server", "--address", &address(&url), "--runner-address", &address(&runner_url)]
            .map(str::to_owned)
            .to_vec();
        let key = fs::read_to_string(server.host.data_dir().join("admin.key"))?.trim().to_owned();
        let mut system = Self { server, runners: Vec::new(), url, key };
        for number in 1..=runners {
            let name = format!("runner-{number}");
            let args = ["runner", "--join", &runner_url, "--token", &token, "--name", &name];
            let mut part = Part { host: Host::new(mode), args: args.map(str::to_owned).to_vec(), process: None };
            part.start();
            system.runners.push(part);
        }
        Ok(system)
    }

    /// A client, once all runners are there.
    pub(crate) async fn client(&self) -> Result<Client> {
        let client = Client::connect(&self.url, &self.key).await?;
        let end = Instant::now() + UP_TIMEOUT;
        while client.runners().await?.len() < self.runners.len() {
            if Instant::now() > end {
                bail!("the runners have not joined");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(client)
    }

    /// The first processes of all boxes.
    pub(crate) fn agents(&self) -> Vec<u32> {
        self.runners.iter().flat_map(|part| dispense_e2e::host::agents_below(&part.host.data_dir())).collect()
    }

    /// Boxes that the runners have on their disks.
    pub(crate) fn boxes(&self) -> Vec<String> {
        let folders = self.runners.iter().map(|part| part.host.data_dir().join("runner/native/boxes"));
        let entries = folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Ends everything; what is left on this machine.
    pub(crate) async fn stop(self) -> Result<Vec<String>> {
        let parts: Vec<Part> = self.runners.into_iter().chain([self.server]).collect();
        let mut left = Vec::new();
        for mut part in parts {
            if let Some(process) = part.process.take()
                && !process.stop().success()
            {
                left.push("a process did not end well".to_owned());
            }
            // Panics, with a list, when something is left.
            tokio::task::spawn_blocking(move || part.host.finish()).await?;
        }
        Ok(left)
    }
}
