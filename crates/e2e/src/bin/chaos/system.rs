//! The processes: one server and a few runners, as on as many machines, and what they leave.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dispense_client::Client;
use dispense_e2e::pair::Running;
use dispense_e2e::{Host, Mode, ServerProcess};

const UP_TIMEOUT: Duration = Duration::from_secs(60);

/// A runner process and how to start it again.
pub(crate) struct Part {
    host: Host,
    args: Vec<String>,
    process: Option<Running>,
}

impl Part {
    /// Kills it with no chance to clean up.
    pub(crate) fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it.
    pub(crate) fn restart(&mut self) {
        self.process = Some(Running::start(&mut self.host.command(&self.args)));
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Running::pid)
    }
}

/// Everything that runs.
pub(crate) struct System {
    pub(crate) server: ServerProcess,
    pub(crate) runners: Vec<Part>,
}

impl System {
    pub(crate) fn start(runners: usize) -> Result<Self> {
        let mode = Mode::available().first().copied().context("there is nobody to run as")?;
        let mut system = Self { server: ServerProcess::start(mode), runners: Vec::new() };
        for number in 1..=runners {
            let name = format!("runner-{number}");
            let (url, token) = (system.server.runner_url(), system.server.join_token());
            let args = ["runner", "--join", url, "--token", token, "--name", &name];
            let mut part = Part { host: Host::new(mode), args: args.map(str::to_owned).to_vec(), process: None };
            part.restart();
            system.runners.push(part);
        }
        Ok(system)
    }

    /// A client, once all runners are there.
    pub(crate) async fn client(&self) -> Result<Client> {
        let client = Client::connect(self.server.url(), self.server.key()).await?;
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
        let mut left = Vec::new();
        for mut part in self.runners {
            if let Some(process) = part.process.take()
                && !process.stop().success()
            {
                left.push("a runner did not end well".to_owned());
            }
            // Panics, with a list, when something is left.
            tokio::task::spawn_blocking(move || part.host.finish()).await?;
        }
        tokio::task::spawn_blocking(move || self.server.finish()).await?;
        Ok(left)
    }
}
