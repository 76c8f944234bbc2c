//! The peers that are installed here: one run of `echo`, and one exec of it in a running container.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::measure::Contestant;

/// Peers with what they leave behind when dropped.
pub(crate) struct Peers {
    /// Create to first output.
    pub(crate) create: Vec<Contestant>,
    /// Exec in a running container.
    pub(crate) exec: Vec<Contestant>,
    clean_up: Vec<Vec<String>>,
}

impl Drop for Peers {
    fn drop(&mut self) {
        for command in &self.clean_up {
            // Whatever could be removed is; a leftover is visible in the peer's own list.
            let _ = words(command).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

impl Peers {
    /// Finds those that work here; says which do not.
    pub(crate) fn find(root: &Path, work: &Path) -> Result<Self> {
        let mut peers = Self { create: Vec::new(), exec: Vec::new(), clean_up: Vec::new() };
        peers.bubblewrap(root);
        for runtime in ["crun", "runc"] {
            if installed(&[runtime, "--version"]) {
                // E.g. crun refuses a machine with both versions of cgroups mounted.
                if let Err(error) = peers.oci(runtime, root, &work.join(runtime)) {
                    println!("not measured: {runtime} ({error:#})");
                }
            }
        }
        if installed(&["podman", "info"]) {
            let root = root.display().to_string();
            // Its own default raises limits, which root without CAP_SYS_RESOURCE cannot.
            let options = ["--network", "none", "--ulimit", "host", "--rootfs"];
            if let Err(error) = peers.engine(&["podman"], &options, &root) {
                println!("not measured: podman ({error})");
            }
        }
        if installed(&["docker", "info"]) {
            let tar = format!("tar -C {} -c . | docker import - dispense-bench:latest", root.display());
            check(Command::new("sh").args(["-c", &tar]).stdout(Stdio::null()))?;
            if let Err(error) = peers.engine(&["docker"], &["--network", "none"], "dispense-bench:latest") {
                println!("not measured: docker ({error})");
            }
            peers.clean_up.push(owned(&["docker", "rmi", "-f", "dispense-bench:latest"]));
        }
        Ok(peers)
    }

    fn bubblewrap(&mut self, root: &Path) {
        if !installed(&["bwrap", "--version"]) {
            return;
        }
        let root = root.display().to_string();
        let args =
            ["bwrap", "--unshare-all", "--bind", &root, "/", "--proc", "/proc", "--dev", "/dev", "/bin/echo", "ready"];
        self.create.push(timed("bwrap", owned(&args)));
    }

    fn oci(&mut self, runtime: &'static str, root: &Path, bundle: &Path) -> Result<()> {
        fs::create_dir_all(bundle)?;
        check(Command::new(runtime).arg("spec").current_dir(bundle))?;
        let config = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&config)?)?;
        spec["root"] = json!({"path": root, "readonly": true});
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["/bin/echo", "ready"]);
        fs::write(&config, serde_json::to_vec(&spec)?)?;
        let live = bundle.join("live");
        fs::create_dir_all(&live)?;
        spec["process"]["args"] = json!(["/bin/sleep", "100000"]);
        fs::write(live.join("config.json"), serde_json::to_vec(&spec)?)?;
        let name = "dispense-bench-live";
        check(
            Command::new(runtime)
                .args(["run", "--detach", "--bundle"])
                .arg(&live)
                .arg(name)
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
        )?;
        self.clean_up.push(owned(&[runtime, "delete", "--force", name]));
        let mut count = 0;
        let create_bundle: PathBuf = bundle.to_owned();
        self.create.push(Contestant::new(format!("{runtime} run"), move || {
            count += 1;
            let name = format!("dispense-bench-{count}");
            first_byte(Command::new(runtime).args(["run", "--bundle"]).arg(&create_bundle).arg(name))
        }));
        self.exec.push(timed(format!("{runtime} exec"), owned(&[runtime, "exec", name, "/bin/echo", "ready"])));
        Ok(())
    }

    fn engine(&mut self, engine: &[&str], options: &[&str], image: &str) -> Result<()> {
        let name = "dispense-bench-live";
        let live = [engine, &["run", "--detach", "--name", name], options, &[image, "/bin/sleep", "100000"]].concat();
        check(words(&owned(&live)).stdout(Stdio::null()))?;
        self.clean_up.push(owned(&[engine, &["rm", "--force", name]].concat()));
        let run = [engine, &["run", "--rm"], options, &[image, "/bin/echo", "ready"]].concat();
        self.create.push(timed(format!("{} run", engine[0]), owned(&run)));
        let exec = [engine, &["exec", name, "/bin/echo", "ready"]].concat();
        self.exec.push(timed(format!("{} exec", engine[0]), owned(&exec)));
        Ok(())
    }
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

fn words(args: &[String]) -> Command {
    let mut command = Command::new(&args[0]);
    command.args(&args[1..]);
    command
}

fn timed(name: impl Into<String>, args: Vec<String>) -> Contestant {
    Contestant::new(name, move || first_byte(&mut words(&args)))
}

fn installed(probe: &[&str]) -> bool {
    let works = words(&owned(probe))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !works {
        println!("not measured: {} (`{}` does not work here)", probe[0], probe.join(" "));
    }
    works
}

fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("failed to start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Starts a command; the time until it prints its first byte. Its end is waited for, but not counted.
fn first_byte(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdout = child.stdout.take().context("stdout is piped")?;
    let mut first = [0; 1];
    let count = stdout.read(&mut first)?;
    let took = start.elapsed();
    std::io::copy(&mut stdout, &mut std::io::sink())?;
    let status = child.wait()?;
    if count == 0 || !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(took)
}
