//! The table of processes that were started through the agent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use dispense_api::error::{Code, Error};
use dispense_api::v1::{self, process_ref};
use tokio::io::Interest;
use tokio::sync::{Mutex, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::input::Input;
use super::spawn::{Plan, Started};
use super::{Process, Stream, output};
use crate::config::Config;
use crate::sys::{self, Ended};
use crate::usage;

/// Finished processes that stay readable.
const FINISHED_MAX: usize = 64;
/// Processes that live at the same time; the sandbox's own limit is usually lower.
const LIVE_MAX: usize = 4096;
/// Bytes of a process's name.
const NAME_MAX_BYTES: usize = 128;
/// Between SIGTERM and SIGKILL of a process whose time is over.
const TIMEOUT_GRACE: Duration = Duration::from_secs(2);
/// Children may keep the output open after the process's end (`cmd &`). This much longer more is waited for
/// before the end is told; it costs nothing when the output closes with the process.
const LINGER: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct Entry {
    process: Arc<Process>,
    input: Arc<Mutex<Input>>,
}

#[derive(Debug, Default)]
struct Table {
    /// By pid. A pid is used again only after its process was reaped.
    entries: BTreeMap<i32, Entry>,
    /// Pids of finished processes, oldest first.
    finished: VecDeque<i32>,
}

/// All processes.
#[derive(Debug)]
pub(crate) struct Processes {
    config: Arc<Config>,
    table: Arc<StdMutex<Table>>,
    tasks: TaskTracker,
}

impl Processes {
    /// An empty table.
    pub(crate) fn new(config: Arc<Config>, tasks: TaskTracker) -> Self {
        Self { config, table: Arc::default(), tasks }
    }

    /// Starts a process.
    pub(crate) fn start(&self, mut start: v1::StartProcess) -> Result<Arc<Process>, Error> {
        let name = std::mem::take(&mut start.name);
        self.check_name(&name)?;
        let timeout = (start.timeout_ms > 0).then(|| Duration::from_millis(start.timeout_ms));
        let plan = Plan::new(start, &self.config)?;
        let started = plan.start()?;
        let failed = |error: std::io::Error| {
            Error::new(Code::Internal, "process_failed", format!("failed to watch the process: {error}"))
        };
        let Started { pid, ended, stdin, outputs, terminal } = started;
        let mut terminal_fd = None;
        if let Some(fd) = terminal {
            output::set_nonblocking(&fd).map_err(failed)?;
            terminal_fd = Some(Arc::new(sys::register(fd, Interest::READABLE | Interest::WRITABLE).map_err(failed)?));
        }
        let input = match (&terminal_fd, stdin) {
            (Some(terminal), _) => Input::Terminal(terminal.clone()),
            (None, Some(pipe)) => {
                output::set_nonblocking(&pipe).map_err(failed)?;
                Input::Pipe(sys::register(pipe, Interest::WRITABLE).map_err(failed)?)
            }
            (None, None) => Input::Closed,
        };
        let process = Arc::new(Process {
            pid,
            name,
            args: plan.args,
            cwd: plan.cwd,
            user: plan.user.name,
            started_at: SystemTime::now(),
            started: Instant::now(),
            terminal: terminal_fd,
            streams: outputs.iter().map(|(kind, _)| Stream::new(*kind)).collect(),
            exit: StdMutex::default(),
            over: CancellationToken::new(),
            version: watch::channel(0).0,
        });
        for (index, (_, fd)) in outputs.into_iter().enumerate() {
            self.tasks.spawn(output::pump(process.clone(), index, fd));
        }
        self.insert(Entry { process: process.clone(), input: Arc::new(Mutex::new(input)) });
        self.tasks.spawn(follow(process.clone(), ended, timeout, self.table.clone()));
        Ok(process)
    }

    fn check_name(&self, name: &str) -> Result<(), Error> {
        if name.len() > NAME_MAX_BYTES {
            return Err(Error::new(
                Code::InvalidArgument,
                "process_invalid",
                format!("`start.name` is longer than {NAME_MAX_BYTES} bytes"),
            ));
        }
        let table = self.lock();
        let mut live = table.entries.values().filter(|entry| entry.process.exit().is_none());
        if !name.is_empty() && live.any(|entry| entry.process.name == name) {
            let message = format!("a process named `{name}` runs already: end it, or choose another name");
            return Err(Error::new(Code::AlreadyExists, "process_name_taken", message));
        }
        if table.entries.len() - table.finished.len() >= LIVE_MAX {
            return Err(Error::new(
                Code::ResourceExhausted,
                "processes_exhausted",
                format!("{LIVE_MAX} processes run already: end some"),
            ));
        }
        Ok(())
    }

    fn insert(&self, entry: Entry) {
        let mut table = self.lock();
        let pid = entry.process.pid;
        table.finished.retain(|finished| *finished != pid);
        table.entries.insert(pid, entry);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a process, live or finished; of a name the live one, else the newest.
    pub(crate) fn find(&self, reference: Option<v1::ProcessRef>) -> Result<(Arc<Process>, Arc<Mutex<Input>>), Error> {
        let table = self.lock();
        let (found, named) = match reference.and_then(|reference| reference.by) {
            Some(process_ref::By::Pid(pid)) => {
                (i32::try_from(pid).ok().and_then(|pid| table.entries.get(&pid)), format!("process {pid}"))
            }
            Some(process_ref::By::Name(name)) => {
                let of_name = table.entries.values().filter(|entry| entry.process.name == name && !name.is_empty());
                (
                    of_name.max_by_key(|entry| (entry.process.exit().is_none(), entry.process.started)),
                    format!("process `{name}`"),
                )
            }
            None => {
                return Err(Error::new(
                    Code::InvalidArgument,
                    "process_invalid",
                    "`process` is empty: give a pid or a name",
                ));
            }
        };
        let missing = || {
            Error::new(
                Code::NotFound,
                "process_unknown",
                format!("{named} does not exist: list the processes of the sandbox"),
            )
        };
        found.map(|entry| (entry.process.clone(), entry.input.clone())).ok_or_else(missing)
    }

    /// Input of a process that was just started.
    pub(crate) fn input(&self, process: &Process) -> Option<Arc<Mutex<Input>>> {
        self.lock().entries.get(&process.pid).map(|entry| entry.input.clone())
    }

    /// All, or only those that live.
    pub(crate) fn list(&self, all: bool) -> Vec<v1::Process> {
        let table = self.lock();
        let processes = table.entries.values().map(|entry| &entry.process);
        processes.filter(|process| all || process.exit().is_none()).map(|process| process.describe()).collect()
    }

    /// How many live.
    pub(crate) fn live(&self) -> u32 {
        let table = self.lock();
        u32::try_from(table.entries.len() - table.finished.len()).unwrap_or(u32::MAX)
    }
}

/// Follows a process to its end.
async fn follow(
    process: Arc<Process>,
    mut ended: oneshot::Receiver<Ended>,
    timeout: Option<Duration>,
    table: Arc<StdMutex<Table>>,
) {
    let oom_before = usage::oom_kills();
    let mut timed_out = false;
    let deadline = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let how = tokio::select! {
        how = &mut ended => how,
        () = deadline => {
            timed_out = true;
            let _ = process.signal(libc::SIGTERM);
            tokio::select! {
                how = &mut ended => how,
                () = tokio::time::sleep(TIMEOUT_GRACE) => {
                    let _ = process.signal(libc::SIGKILL);
                    (&mut ended).await
                }
            }
        }
    };
    // The sender goes only with the reaper, and that only with the agent.
    let how = how.unwrap_or(Ended::Signal(libc::SIGKILL as u8));
    let exited = process.ended(how, timed_out, usage::oom_kills() > oom_before);
    let drained = async {
        let mut version = process.version.subscribe();
        while !process.streams.iter().all(|stream| stream.journal().is_finished()) {
            let _ = version.changed().await;
        }
    };
    tokio::pin!(drained);
    if tokio::time::timeout(LINGER, &mut drained).await.is_err() {
        process.over.cancel();
        drained.await;
    }
    process.set_exit(exited);
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    table.finished.push_back(process.pid);
    if table.finished.len() > FINISHED_MAX
        && let Some(oldest) = table.finished.pop_front()
    {
        table.entries.remove(&oldest);
    }
}
