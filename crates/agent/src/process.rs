//! Processes of the sandbox: started, read, written, signalled and listed here.
//!
//! Each process is a session and process group of its own. Its output goes into journals that readers follow
//! from an offset; a lossless reader holds the process back, any other is told of gaps.

mod events;
mod input;
mod journal;
mod output;
mod spawn;
mod spool;
mod table;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use dispense_api::v1::{self, OutputStream, process_exited};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::activity::Activity;
use crate::sys::Ended;
use journal::Journal;

pub(crate) use events::{Event, Events};
pub(crate) use input::{Input, InputError};
pub(crate) use table::Processes;

/// One process, live or ended.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) name: String,
    pub(crate) key: String,
    args: Vec<String>,
    cwd: String,
    user: String,
    pty: bool,
    pub(crate) started_at: SystemTime,
    started: Instant,
    /// The terminal's controlling side, also for resizing.
    terminal: Option<Arc<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>>>,
    streams: Vec<Stream>,
    exit: Mutex<Option<v1::ProcessExited>>,
    /// The process itself has ended; its pumps read what is there and then finish.
    over: CancellationToken,
    activity: Arc<Activity>,
    /// Its log was told to the runner.
    pub(crate) told: AtomicBool,
    /// Changes whenever a reader or the pump of a journal may go on.
    version: watch::Sender<u64>,
}

/// One stream of output.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) kind: OutputStream,
    journal: Mutex<Journal>,
}

impl Stream {
    fn new(kind: OutputStream) -> Self {
        Self { kind, journal: Mutex::default() }
    }

    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// One of an agent before this one, which has ended with it if not before.
    fn of_log(log: v1::ProcessLog, activity: Arc<Activity>) -> Option<Self> {
        let process = log.process?;
        let kinds: &[_] =
            if process.pty { &[OutputStream::Pty] } else { &[OutputStream::Stdout, OutputStream::Stderr] };
        let stream = |kind: &OutputStream| {
            let tail = log.tails.iter().find(|tail| tail.stream() == *kind);
            let journal = tail.map(|tail| Journal::holding(tail.offset, tail.data.clone())).unwrap_or_default();
            Stream { kind: *kind, journal: Mutex::new(journal.finished()) }
        };
        let killed = process_exited::Status::Signal(libc::SIGKILL.unsigned_abs());
        let exited = process.exited.unwrap_or(v1::ProcessExited { status: Some(killed), ..Default::default() });
        Some(Self {
            pid: i32::try_from(process.pid).ok()?,
            name: process.name,
            key: String::new(),
            args: process.args,
            cwd: process.cwd,
            user: process.user,
            pty: process.pty,
            started_at: process.started_at.and_then(|at| at.try_into().ok())?,
            started: Instant::now(),
            terminal: None,
            streams: kinds.iter().map(stream).collect(),
            exit: Mutex::new(Some(exited)),
            over: CancellationToken::new(),
            activity,
            told: AtomicBool::new(true),
            version: watch::channel(0).0,
        })
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    pub(crate) fn exit(&self) -> Option<v1::ProcessExited> {
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_exit(&self, exited: v1::ProcessExited) {
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(exited);
        self.changed();
    }

    /// As clients see it.
    pub(crate) fn describe(&self) -> v1::Process {
        let bytes =
            |kind| self.streams.iter().find(|stream| stream.kind == kind).map_or(0, |stream| stream.journal().len());
        v1::Process {
            pid: u32::try_from(self.pid).unwrap_or_default(),
            name: self.name.clone(),
            args: self.args.clone(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            pty: self.pty,
            started_at: Some(self.started_at.into()),
            exited: self.exit(),
            stdout_bytes: bytes(OutputStream::Stdout),
            stderr_bytes: bytes(OutputStream::Stderr),
            pty_bytes: bytes(OutputStream::Pty),
        }
    }

    /// The end of what it wrote, at most so many bytes of each stream.
    pub(crate) fn log(&self, tail_bytes: usize) -> v1::ProcessLog {
        let tail = |stream: &Stream| {
            let (offset, data) = stream.journal().tail(tail_bytes);
            (!data.is_empty()).then(|| v1::ProcessOutput { stream: stream.kind.into(), offset, data })
        };
        v1::ProcessLog { process: Some(self.describe()), tails: self.streams.iter().filter_map(tail).collect() }
    }

    /// Bytes that its journals keep.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.streams.iter().map(|stream| stream.journal().kept_bytes()).sum()
    }

    fn ended(&self, ended: Ended, timed_out: bool, out_of_memory: bool) -> v1::ProcessExited {
        let status = match ended {
            Ended::Code(code) => process_exited::Status::Code(code.into()),
            Ended::Signal(signal) => process_exited::Status::Signal(signal.into()),
        };
        let failed = ended != Ended::Code(0);
        v1::ProcessExited {
            status: Some(status),
            out_of_memory: failed && out_of_memory,
            timed_out,
            duration_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            disk_full: failed && crate::usage::disk_is_full(&self.cwd),
        }
    }

    /// Sends a signal to the process group. One that has ended needs none.
    pub(crate) fn signal(&self, signal: i32) -> std::io::Result<()> {
        if self.exit().is_some() {
            return Ok(());
        }
        let pid = rustix::process::Pid::from_raw(self.pid).ok_or(std::io::ErrorKind::InvalidInput)?;
        let Some(signal) = rustix::process::Signal::from_named_raw(signal) else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        match rustix::process::kill_process_group(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Process {
    /// Changes the size of its terminal.
    pub(crate) fn resize(&self, cols: u32, rows: u32) -> Result<(), dispense_api::error::Error> {
        use dispense_api::error::{Code, Error};
        let Some(terminal) = &self.terminal else {
            return Err(Error::new(
                Code::FailedPrecondition,
                "no_terminal",
                format!("process {} has no terminal", self.pid),
            ));
        };
        let failed =
            |error| Error::new(Code::Internal, "resize_failed", format!("the terminal takes no size: {error}"));
        output::set_size(terminal.get_ref(), cols, rows).map_err(failed)
    }
}
