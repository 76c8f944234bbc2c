//! Dispense itself, with the server already up: through the client library, and through the command.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dispense_client::v1::process_event::Kind;
use dispense_client::{Client, v1};
use tokio::runtime::Runtime;

use crate::measure::Contestant;

const TEMPLATE: &str = "bench";

/// A server and a runner of our own.
pub(crate) struct System {
    child: Child,
    api: Rc<Api>,
    command: PathBuf,
    data_dir: PathBuf,
}

struct Api {
    runtime: Runtime,
    client: Client,
}

impl System {
    /// Starts `dispense up` with the root file system as a template.
    pub(crate) fn start(command: &Path, root: &Path, work: &Path) -> Result<Self> {
        let data_dir = work.join("data");
        let mut child = Command::new(command)
            .args(["up", "--address", "127.0.0.1:0", "--runner-address", "127.0.0.1:0"])
            .args(["--ssh-address", "127.0.0.1:0", "--template"])
            .arg(format!("{TEMPLATE}={}", root.display()))
            .arg("--data-dir")
            .arg(&data_dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start `dispense up`")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        let url = url.with_context(|| format!("`dispense up` said: {line}"))?.to_owned();
        let key = fs::read_to_string(data_dir.join("admin.key"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(Client::connect(&url, key.trim()))?;
        Ok(Self { child, api: Rc::new(Api { runtime, client }), command: command.to_owned(), data_dir })
    }

    /// Create to first output.
    pub(crate) fn create_contestants(&self) -> Result<Vec<Contestant>> {
        let api = self.api.clone();
        let (command, data_dir) = (self.command.clone(), self.data_dir.clone());
        Ok(vec![
            Contestant::new("dispense: create and run (API)", move || api.create_to_first_output()),
            Contestant::new("dispense run (command)", move || {
                let mut run = Command::new(&command);
                run.args(["run", "--template", TEMPLATE, "--data-dir"]).arg(&data_dir).args([
                    "--",
                    "/bin/echo",
                    "ready",
                ]);
                first_byte(&mut run)
            }),
        ])
    }

    /// Exec in a running sandbox.
    pub(crate) fn exec_contestants(&self) -> Result<Vec<Contestant>> {
        let sandbox = self.api.create(true)?;
        let (api, id) = (self.api.clone(), sandbox.id.clone());
        let (command, data_dir) = (self.command.clone(), self.data_dir.clone());
        Ok(vec![
            Contestant::new("dispense: exec (API)", move || {
                let start = Instant::now();
                api.runtime.block_on(api.echo(&id))?;
                Ok(start.elapsed())
            }),
            Contestant::new("dispense exec (command)", move || {
                let mut exec = Command::new(&command);
                exec.args(["exec", "--data-dir"]).arg(&data_dir).args([&sandbox.id, "--", "/bin/echo", "ready"]);
                first_byte(&mut exec)
            }),
        ])
    }

    /// Deletes what is left and ends the server.
    pub(crate) fn stop(mut self) -> Result<()> {
        let api = self.api.clone();
        api.runtime.block_on(async {
            for sandbox in api.client.list_all(v1::ListSandboxesRequest::default()).await? {
                api.client.delete(&sandbox.id, false, true).await?;
            }
            anyhow::Ok(())
        })?;
        dispense_e2e::host::terminate(self.child.id());
        ensure!(self.child.wait()?.success(), "`dispense up` did not end well");
        Ok(())
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // After a failure; after `stop` there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Api {
    fn create(&self, wait: bool) -> Result<v1::Sandbox> {
        let spec = v1::SandboxSpec { template: TEMPLATE.to_owned(), ..Default::default() };
        let request = v1::CreateSandboxRequest { spec: Some(spec), wait, ..Default::default() };
        Ok(self.runtime.block_on(self.client.create(request))?)
    }

    fn create_to_first_output(&self) -> Result<Duration> {
        let start = Instant::now();
        let sandbox = self.create(false)?;
        let result = self.runtime.block_on(self.echo(&sandbox.id));
        let took = start.elapsed();
        self.runtime.block_on(self.client.delete(&sandbox.id, false, true))?;
        result.map(|()| took)
    }

    /// Returns at the first output; the rest is read to the end.
    async fn echo(&self, sandbox: &str) -> Result<()> {
        let args = ["/bin/echo", "ready"].map(str::to_owned).to_vec();
        let mut process = self.client.run(sandbox, v1::StartProcess { args, ..Default::default() }).await?;
        while let Some(event) = process.events.next().await? {
            match event.kind {
                Some(Kind::Output(_)) => return Ok(()),
                Some(Kind::Exited(exited)) => bail!("echo ended without output: {exited:?}"),
                _ => {}
            }
        }
        bail!("the stream ended without output")
    }
}

fn first_byte(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut byte = [0];
    let read = child.stdout.as_mut().context("piped")?.read(&mut byte)?;
    let took = start.elapsed();
    let output = child.wait_with_output()?;
    ensure!(read == 1 && output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}
