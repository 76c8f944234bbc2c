//! The fake backend: boxes in memory, with an agent that only says hello and shuts down. For tests of what
//! stands above a backend; it passes the same conformance suite, and can be told to fail, stall and die.

mod agent;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

pub use agent::count_byte;
use async_trait::async_trait;
use dispense_api::error::reason;
use dispense_api::id::{Generation, SandboxId};
use dispense_api::v1;
use tokio::sync::watch;

use crate::{Backend, BackendError, BoxExit, BoxReport, BoxSpec, BoxState, ByteStream, Capabilities, Network};

/// Bytes between a caller and the agent.
const STREAM_BYTES: usize = 64 << 10;
const TEMPLATE: &str = "host";

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Of [`Backend::create`].
    Create,
    /// Of [`Backend::start`].
    Start,
    /// Of [`Backend::stop`].
    Stop,
    /// Of [`Backend::destroy`].
    Destroy,
    /// Of [`Backend::dial`].
    Dial,
}

/// How it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// With an error, at once.
    Fail,
    /// After this long, well.
    Stall(Duration),
}

struct FakeBox {
    spec: BoxSpec,
    processes: Vec<FakeProcess>,
    /// What its agent was told that processes inherit.
    environment: Option<BTreeMap<String, String>>,
    /// While it runs: told when the agent has ended, and how.
    running: Option<watch::Sender<Option<BoxExit>>>,
}

/// A `count N`, which writes N bytes.
#[derive(Debug, Clone)]
struct FakeProcess {
    key: String,
    pid: u32,
    total: u64,
}

impl FakeProcess {
    fn describe(&self) -> v1::Process {
        let started_at = Some((SystemTime::UNIX_EPOCH + Duration::from_secs(self.pid.into())).into());
        v1::Process { pid: self.pid, started_at, ..v1::Process::default() }
    }
}

/// What outlives a runner: the boxes.
#[derive(Default)]
pub struct FakeMachine {
    boxes: Mutex<HashMap<SandboxId, FakeBox>>,
    faults: Mutex<HashMap<Step, Fault>>,
    /// Its agents are of a version that takes one call a stream.
    old_agents: AtomicBool,
}

impl FakeMachine {
    fn boxes(&self) -> MutexGuard<'_, HashMap<SandboxId, FakeBox>> {
        self.boxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every box with its generation, and whether it runs.
    pub fn state(&self) -> Vec<(SandboxId, Generation, bool)> {
        let boxes = self.boxes();
        boxes.values().map(|one| (one.spec.sandbox.clone(), one.spec.generation, one.running.is_some())).collect()
    }

    /// Starts a process, unless its key is known; `None` without such a box.
    fn start(&self, sandbox: &SandboxId, start: &v1::StartProcess) -> Option<FakeProcess> {
        let mut boxes = self.boxes();
        let processes = &mut boxes.get_mut(sandbox)?.processes;
        if let Some(known) = processes.iter().find(|process| process.key == start.key) {
            return Some(known.clone());
        }
        let total = start.args.get(1).and_then(|text| text.parse().ok()).unwrap_or(0);
        let pid = u32::try_from(processes.len()).unwrap_or(u32::MAX).saturating_add(2);
        processes.push(FakeProcess { key: start.key.clone(), pid, total });
        processes.last().cloned()
    }

    fn set_environment(&self, sandbox: &SandboxId, variables: BTreeMap<String, String>) {
        if let Some(found) = self.boxes().get_mut(sandbox) {
            found.environment = Some(variables);
        }
    }

    /// What the agent of a box was told that processes inherit; `None` when it was told nothing since it started.
    pub fn told(&self, sandbox: &SandboxId) -> Option<BTreeMap<String, String>> {
        self.boxes().get(sandbox)?.environment.clone()
    }

    fn process(&self, sandbox: &SandboxId, pid: u32) -> Option<FakeProcess> {
        self.boxes().get(sandbox)?.processes.iter().find(|process| process.pid == pid).cloned()
    }

    /// From now on its agents take one call a stream, as those of older versions.
    pub fn make_agents_old(&self) {
        self.old_agents.store(true, Ordering::Relaxed);
    }

    /// From now on a step goes wrong; `None` mends it.
    pub fn script(&self, step: Step, fault: Option<Fault>) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            Some(fault) => faults.insert(step, fault),
            None => faults.remove(&step),
        };
    }

    /// The agent of a box ends, as a crash or the kernel ends it.
    pub fn kill_agent(&self, sandbox: &SandboxId, exit: BoxExit) {
        if let Some(found) = self.boxes().get_mut(sandbox)
            && let Some(running) = found.running.take()
        {
            running.send_replace(Some(exit));
            found.processes.clear();
            found.environment = None;
        }
    }

    async fn fault(&self, step: Step) -> Result<(), BackendError> {
        let fault = self.faults.lock().unwrap_or_else(PoisonError::into_inner).get(&step).copied();
        match fault {
            None => Ok(()),
            Some(Fault::Fail) => Err(BackendError::failed(format!("{step:?} a box"), "the script says so")),
            Some(Fault::Stall(time)) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
        }
    }
}

/// A backend on a fake machine.
pub struct Fake(Arc<FakeMachine>);

impl Fake {
    /// Opens the machine, as a runner does when it starts.
    pub fn on(machine: Arc<FakeMachine>) -> Self {
        Self(machine)
    }

    /// The environment that the agent of a box has; empty when there is no such box.
    pub fn environment(&self, sandbox: &SandboxId) -> BTreeMap<String, String> {
        self.with(sandbox, |found| Ok(found.spec.env.clone())).unwrap_or_default()
    }

    fn with<T>(
        &self,
        sandbox: &SandboxId,
        f: impl FnOnce(&mut FakeBox) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        match self.0.boxes().get_mut(sandbox) {
            Some(found) => f(found),
            None => Err(BackendError::Unknown(sandbox.clone())),
        }
    }
}

#[async_trait]
impl Backend for Fake {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            backend: "fake".to_owned(),
            templates: vec![TEMPLATE.to_owned()],
            networks: vec![Network::None],
            unenforced_limits: BTreeMap::new(),
            disk_in_memory: None,
            unusable: None,
        }
    }

    async fn create(&self, spec: &BoxSpec) -> Result<(), BackendError> {
        if spec.template != TEMPLATE {
            let message = format!("template `{}` does not exist: there is `{TEMPLATE}`", spec.template);
            return Err(BackendError::Refused { reason: reason::TEMPLATE_UNKNOWN, message });
        }
        self.0.fault(Step::Create).await?;
        let mut boxes = self.0.boxes();
        match boxes.get(&spec.sandbox) {
            Some(there) if there.spec == *spec => Ok(()),
            Some(there) => Err(BackendError::Exists(spec.sandbox.clone(), there.spec.generation)),
            None => {
                let made = FakeBox { spec: spec.clone(), processes: vec![], environment: None, running: None };
                boxes.insert(spec.sandbox.clone(), made);
                Ok(())
            }
        }
    }

    async fn adopt(&self, sandbox: &SandboxId) -> Result<(), BackendError> {
        self.with(sandbox, |found| match found.running {
            Some(_) => Ok(()),
            None => Err(BackendError::NotRunning(sandbox.clone())),
        })
    }

    async fn start(&self, sandbox: &SandboxId) -> Result<(), BackendError> {
        self.with(sandbox, |_| Ok(()))?;
        self.0.fault(Step::Start).await?;
        self.with(sandbox, |found| {
            found.running.get_or_insert_with(|| watch::channel(None).0);
            Ok(())
        })
    }

    async fn stop(&self, sandbox: &SandboxId) -> Result<(), BackendError> {
        self.with(sandbox, |_| Ok(()))?;
        self.0.fault(Step::Stop).await?;
        self.0.kill_agent(sandbox, BoxExit::default());
        Ok(())
    }

    async fn destroy(&self, sandbox: &SandboxId) -> Result<(), BackendError> {
        self.0.fault(Step::Destroy).await?;
        self.0.kill_agent(sandbox, BoxExit::default());
        self.0.boxes().remove(sandbox);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<BoxReport>, BackendError> {
        let boxes = self.0.boxes();
        let report = |found: &FakeBox| BoxReport {
            sandbox: found.spec.sandbox.clone(),
            generation: found.spec.generation,
            state: if found.running.is_some() { BoxState::Running } else { BoxState::Stopped },
            unenforced_limits: BTreeMap::new(),
        };
        Ok(boxes.values().map(report).collect())
    }

    async fn dial(&self, sandbox: &SandboxId) -> Result<Box<dyn ByteStream>, BackendError> {
        self.0.fault(Step::Dial).await?;
        let ended = self.with(sandbox, |found| match &found.running {
            Some(running) => Ok(running.subscribe()),
            None => Err(BackendError::NotRunning(sandbox.clone())),
        })?;
        let (near, far) = tokio::io::duplex(STREAM_BYTES);
        let (machine, sandbox) = (self.0.clone(), sandbox.clone());
        tokio::spawn(async move {
            if let agent::Answered::ShutDown = agent::serve(far, &machine, &sandbox, ended).await {
                machine.kill_agent(&sandbox, BoxExit::default());
            }
        });
        Ok(Box::new(near))
    }

    async fn wait(&self, sandbox: &SandboxId) -> Result<BoxExit, BackendError> {
        let ended = self.with(sandbox, |found| Ok(found.running.as_ref().map(watch::Sender::subscribe)))?;
        let Some(mut ended) = ended else { return Ok(BoxExit::default()) };
        let exit = ended.wait_for(Option::is_some).await;
        Ok(exit.ok().and_then(|exit| *exit).unwrap_or_default())
    }

    async fn close(&self) {}
}
