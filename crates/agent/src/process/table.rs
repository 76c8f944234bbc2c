//! The table of processes that were started through the agent.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use dispense_api::error::{Code, Error, reason};
use dispense_api::v1::{self, process_ref};
use tokio::io::Interest;
use tokio::sync::{Mutex, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::input::{Input, Target};
use super::spawn::{Plan, Started};
use super::spool::{self, Spool};
use super::{Process, Stream, output};
use crate::activity::Activity;
use crate::config::{self, Config};
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

/// What is written to the disk at once; more is written by a thread that may wait.
const AT_ONCE_MAX_BYTES: usize = 256 << 10;
/// Of one process: each may take its part of what is kept.
const STREAMS_MAX: usize = 3;
/// When the sandbox ends, those that have ended before are followed to their ends within this time.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
struct Entry {
    process: Arc<Process>,
    input: Arc<Mutex<Input>>,
}

#[derive(Debug, Default)]
struct Table {
    /// By pid. A pid is used again only after its process was reaped.
    live: BTreeMap<i32, Entry>,
    /// In the order of their ends, with the bytes that each keeps.
    finished: VecDeque<(Entry, usize)>,
    finished_bytes: usize,
    /// By the key of their start.
    by_key: HashMap<String, Entry>,
}

impl Table {
    /// A process has ended; the oldest that did are forgotten when they are too many.
    fn finish(&mut self, entry: Entry, max_bytes: usize) {
        let Entry { process, .. } = &entry;
        if self.live.get(&process.pid).is_some_and(|live| Arc::ptr_eq(&live.process, process)) {
            self.live.remove(&process.pid);
        }
        let bytes = process.kept_bytes();
        self.finished_bytes += bytes;
        self.finished.push_back((entry, bytes));
        while self.finished.len() > FINISHED_MAX || (self.finished_bytes > max_bytes && self.finished.len() > 1) {
            let Some((oldest, bytes)) = self.finished.pop_front() else { return };
            self.finished_bytes -= bytes;
            self.by_key.remove(&oldest.process.key);
        }
    }

    /// All; those that have ended first.
    fn all(&self) -> impl Iterator<Item = &Entry> {
        self.finished.iter().map(|(entry, _)| entry).chain(self.live.values())
    }

    /// The live one, or the one that started last.
    fn newest(&self, is: impl Fn(&Process) -> bool) -> Option<&Entry> {
        let found = self.all().filter(|entry| is(&entry.process));
        found.max_by_key(|entry| (entry.process.exit().is_none(), entry.process.started_at))
    }
}

/// All processes.
#[derive(Debug)]
pub(crate) struct Processes {
    config: Arc<Config>,
    /// What processes inherit from now on.
    environment: StdMutex<BTreeMap<String, String>>,
    tasks: TaskTracker,
    activity: Arc<Activity>,
    kept: Arc<Kept>,
}

/// What the end of a process changes.
#[derive(Debug)]
struct Kept {
    table: StdMutex<Table>,
    /// Counts ends.
    ends: watch::Sender<u64>,
    /// Of a sandbox; elsewhere the disk is somebody else's.
    spool: Option<Spool>,
}

impl Kept {
    fn new(activity: &Arc<Activity>) -> Arc<Self> {
        let spool = (std::process::id() == 1).then(|| Spool::new(Path::new(spool::FOLDER), finished_max_bytes()));
        let mut table = Table::default();
        for log in spool.iter().flat_map(Spool::read) {
            let Some(process) = Process::of_log(log, activity.clone()) else { continue };
            let entry = Entry { process: Arc::new(process), input: Arc::new(Mutex::new(Input::new(Target::Closed))) };
            table.finish(entry, finished_max_bytes());
        }
        Arc::new(Self { table: StdMutex::new(table), ends: watch::channel(0).0, spool })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what a process wrote.
    async fn write_down(self: &Arc<Self>, process: &Arc<Process>) {
        if process.kept_bytes() > AT_ONCE_MAX_BYTES {
            let (kept, written) = (self.clone(), process.clone());
            let (done, over) = oneshot::channel();
            let write = move || {
                kept.append(&written);
                // Whoever waited may have gone.
                let _ = done.send(());
            };
            // The runtime's own threads would end the task where a sandbox may have no more of them.
            if std::thread::Builder::new().name("spool".to_owned()).spawn(write).is_ok() {
                let _ = over.await;
                return;
            }
        }
        self.append(process);
    }

    fn append(&self, process: &Process) {
        let Some(spool) = &self.spool else { return };
        if let Err(error) = spool.append(&process.log(finished_max_bytes() / STREAMS_MAX)) {
            tracing::warn!(pid = process.pid, %error, "output is kept no longer than the agent");
        }
    }
}

/// What the journals of finished processes keep in all, in memory and twice that on the disk.
fn finished_max_bytes() -> usize {
    static MAX_BYTES: OnceLock<usize> = OnceLock::new();
    *MAX_BYTES.get_or_init(|| {
        let memory = usage::memory_limit_bytes().map_or(u64::MAX, |limit| limit / FINISHED_MEMORY_PART);
        usize::try_from(memory).unwrap_or(usize::MAX).min(FINISHED_MAX_BYTES)
    })
}

impl Processes {
    /// An empty table.
    pub(crate) fn new(config: Arc<Config>, tasks: TaskTracker, activity: Arc<Activity>) -> Self {
        let kept = Kept::new(&activity);
        let environment = StdMutex::new(config.base_env.clone());
        Self { config, environment, tasks, activity, kept }
    }

    /// Processes to come inherit these variables; what runs keeps its own.
    pub(crate) fn set_environment(&self, variables: BTreeMap<String, String>) {
        let variables = config::inherited(variables);
        *self.environment.lock().unwrap_or_else(PoisonError::into_inner) = variables;
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
        let environment = self.environment.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let plan = Plan::new(start, &self.config, environment)?;
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
            pty: terminal_fd.is_some(),
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
        let entry = Entry { process: process.clone(), input: Arc::new(Mutex::new(Input::new(input))) };
        self.insert(entry.clone());
        self.tasks.spawn(follow(entry, ended, timeout, self.kept.clone()));
        Ok(process)
    }

    fn of_key(&self, key: &str) -> Result<Option<Arc<Process>>, Error> {
        if key.len() > KEY_MAX_BYTES {
            let message = format!("`start.key` is longer than {KEY_MAX_BYTES} bytes");
            return Err(Error::new(Code::InvalidArgument, "process_invalid", message));
        }
        let table = self.kept.lock();
        Ok(table.by_key.get(key).filter(|_| !key.is_empty()).map(|entry| entry.process.clone()))
    }

    fn check_name(&self, name: &str) -> Result<(), Error> {
        if name.len() > NAME_MAX_BYTES {
            return Err(Error::new(
                Code::InvalidArgument,
                "process_invalid",
                format!("`start.name` is longer than {NAME_MAX_BYTES} bytes"),
            ));
        }
        let table = self.kept.lock();
        let mut live = table.live.values().filter(|entry| entry.process.exit().is_none());
        if !name.is_empty() && live.any(|entry| entry.process.name == name) {
            let message = format!("a process named `{name}` runs already: end it, or choose another name");
            return Err(Error::new(Code::AlreadyExists, "process_name_taken", message));
        }
        if table.live.len() >= LIVE_MAX {
            return Err(Error::new(
                Code::ResourceExhausted,
                "processes_exhausted",
                format!("{LIVE_MAX} processes run already: end some"),
            ));
        }
        Ok(())
    }

    fn insert(&self, entry: Entry) {
        let mut table = self.kept.lock();
        if !entry.process.key.is_empty() {
            table.by_key.insert(entry.process.key.clone(), entry.clone());
        }
        // One that had the pid has ended, and is followed to its end by its own task.
        table.live.insert(entry.process.pid, entry);
    }

    /// Finds a process, live or finished; of several the live one, else the newest.
    pub(crate) fn find(&self, reference: Option<v1::ProcessRef>) -> Result<(Arc<Process>, Arc<Mutex<Input>>), Error> {
        let table = self.kept.lock();
        let reference = reference.unwrap_or_default();
        let started_at = reference.started_at;
        let is_of = |process: &Process| started_at.is_none_or(|at| at == process.started_at.into());
        let (found, named) = match reference.by {
            Some(process_ref::By::Pid(pid)) => (
                table.newest(|process| u32::try_from(process.pid) == Ok(pid) && is_of(process)),
                format!("process {pid}"),
            ),
            Some(process_ref::By::Name(name)) => (
                table.newest(|process| process.name == name && !name.is_empty() && is_of(process)),
                format!("process `{name}`"),
            ),
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
    pub(crate) fn input(&self, process: &Arc<Process>) -> Option<Arc<Mutex<Input>>> {
        let table = self.kept.lock();
        let mut newest_first =
            table.live.get(&process.pid).into_iter().chain(table.finished.iter().rev().map(|(entry, _)| entry));
        newest_first.find(|entry| Arc::ptr_eq(&entry.process, process)).map(|entry| entry.input.clone())
    }

    /// All, or only those that live.
    pub(crate) fn list(&self, all: bool) -> Vec<v1::Process> {
        let table = self.kept.lock();
        let processes = table.all().map(|entry| &entry.process);
        processes.filter(|process| all || process.exit().is_none()).map(|process| process.describe()).collect()
    }

    /// Counts up whenever a process has ended.
    pub(crate) fn ends(&self) -> watch::Receiver<u64> {
        self.kept.ends.subscribe()
    }

    /// The logs that were not told, oldest first: of processes that have ended, or of all.
    pub(crate) fn untold(&self, ended_only: bool, tail_bytes: usize) -> Vec<v1::ProcessLog> {
        let table = self.kept.lock();
        let mut processes: Vec<&Arc<Process>> = table.all().map(|entry| &entry.process).collect();
        processes.retain(|process| !process.told.load(Ordering::Relaxed) && (process.exit().is_some() || !ended_only));
        processes.sort_by_key(|process| process.started_at);
        let mut logs = Vec::new();
        for process in processes {
            process.told.store(true, Ordering::Relaxed);
            logs.push(process.log(tail_bytes));
        }
        logs
    }

    /// How many live.
    pub(crate) fn live(&self) -> u32 {
        u32::try_from(self.kept.lock().live.len()).unwrap_or(u32::MAX)
    }

    /// Writes down what those wrote that end with the sandbox; `over` says that none of them runs any more.
    pub(crate) async fn write_down(&self, over: bool) {
        let mut ends = self.kept.ends.subscribe();
        let settled = async { while over && self.live() > 0 && ends.changed().await.is_ok() {} };
        // One that does not settle is written down as it is.
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, settled).await;
        let left: Vec<_> = self.kept.lock().live.values().map(|entry| entry.process.clone()).collect();
        for process in left {
            self.kept.write_down(&process).await;
        }
    }
}

/// Follows a process to its end.
async fn follow(entry: Entry, mut ended: oneshot::Receiver<Ended>, timeout: Option<Duration>, kept: Arc<Kept>) {
    let process = entry.process.clone();
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
    // Whoever waits for the end is told first.
    tokio::task::yield_now().await;
    kept.write_down(&process).await;
    kept.lock().finish(entry, finished_max_bytes());
    kept.ends.send_modify(|count| *count += 1);
}
