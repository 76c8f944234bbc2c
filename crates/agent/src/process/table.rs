//! The table of processes that were started through the agent.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use dispense_api::error::{Code, Error, reason};
use dispense_api::v1::{self, process_ref};
use tokio::io::Interest;
use tokio::sync::{Mutex, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::input::{Input, Target};
use super::spawn::{Plan, Started};
use super::{Process, Stream, output};
use crate::activity::Activity;
use crate::config::Config;
use crate::sys::{self, Ended};
use crate::usage;

/// Finished processes that stay readable.
const FINISHED_MAX: usize = 1024;
/// And what their journals keep in all: memory of the sandbox, whose limit may allow less.
const FINISHED_MAX_BYTES: usize = 64 << 20;
/// Of a sandbox's memory, finished processes take at most one part of so many.
const FINISHED_MEMORY_PART: u64 = 8;
/// Bytes of the key of a start.
const KEY_MAX_BYTES: usize = 64;
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
    /// Finished processes, oldest first, with the bytes that each keeps.
    finished: VecDeque<(i32, usize)>,
    finished_bytes: usize,
    /// Pids by the key of their start.
    by_key: HashMap<String, i32>,
}

impl Table {
    /// A process has ended; the oldest that did are forgotten when they are too many.
    fn finish(&mut self, pid: i32, bytes: usize, max_bytes: usize) {
        self.finished.push_back((pid, bytes));
        self.finished_bytes += bytes;
        while self.finished.len() > FINISHED_MAX || (self.finished_bytes > max_bytes && self.finished.len() > 1) {
            let Some((oldest, _)) = self.finished.front().copied() else { return };
            self.forget(oldest);
        }
    }

    /// Removes a finished process.
    fn forget(&mut self, pid: i32) {
        let Some(index) = self.finished.iter().position(|(finished, _)| *finished == pid) else { return };
        if let Some((_, bytes)) = self.finished.remove(index) {
            self.finished_bytes -= bytes;
        }
        if let Some(entry) = self.entries.remove(&pid) {
            self.by_key.remove(&entry.process.key);
        }
    }
}

/// All processes.
#[derive(Debug)]
pub(crate) struct Processes {
    config: Arc<Config>,
    table: Arc<StdMutex<Table>>,
    tasks: TaskTracker,
    activity: Arc<Activity>,
    /// Counts ends.
    ends: watch::Sender<u64>,
}

impl Processes {
    /// An empty table.
    pub(crate) fn new(config: Arc<Config>, tasks: TaskTracker, activity: Arc<Activity>) -> Self {
        Self { config, table: Arc::default(), tasks, activity, ends: watch::channel(0).0 }
    }

    /// Starts a process, unless one was started with the same key.
    pub(crate) fn start(&self, mut start: v1::StartProcess) -> Result<Arc<Process>, Error> {
        let key = std::mem::take(&mut start.key);
        if let Some(process) = self.of_key(&key)? {
            return Ok(process);
        }
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
            (Some(terminal), _) => Target::Terminal(terminal.clone()),
            (None, Some(pipe)) => {
                output::set_nonblocking(&pipe).map_err(failed)?;
                Target::Pipe(sys::register(pipe, Interest::WRITABLE).map_err(failed)?)
            }
            (None, None) => Target::Closed,
        };
        let process = Arc::new(Process {
            pid,
            name,
            key,
            args: plan.args,
            cwd: plan.cwd,
            user: plan.user.name,
            started_at: SystemTime::now(),
            started: Instant::now(),
            terminal: terminal_fd,
            streams: outputs.iter().map(|(kind, _)| Stream::new(*kind)).collect(),
            exit: StdMutex::default(),
            over: CancellationToken::new(),
            activity: self.activity.clone(),
            told: AtomicBool::new(false),
            version: watch::channel(0).0,
        });
        for (index, (_, fd)) in outputs.into_iter().enumerate() {
            self.tasks.spawn(output::pump(process.clone(), index, fd));
        }
        self.insert(Entry { process: process.clone(), input: Arc::new(Mutex::new(Input::new(input))) });
        self.tasks.spawn(follow(process.clone(), ended, timeout, self.table.clone(), self.ends.clone()));
        Ok(process)
    }

    fn of_key(&self, key: &str) -> Result<Option<Arc<Process>>, Error> {
        if key.len() > KEY_MAX_BYTES {
            let message = format!("`start.key` is longer than {KEY_MAX_BYTES} bytes");
            return Err(Error::new(Code::InvalidArgument, "process_invalid", message));
        }
        let table = self.lock();
        let pid = table.by_key.get(key).filter(|_| !key.is_empty());
        Ok(pid.and_then(|pid| table.entries.get(pid)).map(|entry| entry.process.clone()))
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
        // The kernel has used the pid again.
        table.forget(pid);
        if !entry.process.key.is_empty() {
            table.by_key.insert(entry.process.key.clone(), pid);
        }
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
                reason::PROCESS_UNKNOWN,
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

    /// Counts up whenever a process has ended.
    pub(crate) fn ends(&self) -> watch::Receiver<u64> {
        self.ends.subscribe()
    }

    /// The logs that were not told, oldest first: of processes that have ended, or of all.
    pub(crate) fn untold(&self, ended_only: bool, tail_bytes: usize) -> Vec<v1::ProcessLog> {
        let table = self.lock();
        let mut processes: Vec<&Arc<Process>> = table.entries.values().map(|entry| &entry.process).collect();
        processes.retain(|process| !process.told.load(Ordering::Relaxed) && (process.exit().is_some() || !ended_only));
        processes.sort_by_key(|process| process.started);
        let mut logs = Vec::new();
        for process in processes {
            process.told.store(true, Ordering::Relaxed);
            logs.push(process.log(tail_bytes));
        }
        logs
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
    ends: watch::Sender<u64>,
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
    let memory = usage::memory_limit_bytes().map_or(u64::MAX, |limit| limit / FINISHED_MEMORY_PART);
    let max_bytes = usize::try_from(memory).unwrap_or(usize::MAX).min(FINISHED_MAX_BYTES);
    table.lock().unwrap_or_else(PoisonError::into_inner).finish(process.pid, process.kept_bytes(), max_bytes);
    ends.send_modify(|count| *count += 1);
}
