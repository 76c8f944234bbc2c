//! From a request to a running process: users, environment, directories and descriptors.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use dispense_api::error::{Code, Error, reason};
use dispense_api::{limits, v1};
use rustix::fs::{Mode, OFlags};
use tokio::sync::oneshot;

use crate::config::Config;
use crate::reaper;
use crate::sftp;
use crate::sys::{self, Ended, Prepared, Stage};
use crate::user::{self, User};

/// Arguments at most; the kernel's own bound is in bytes and higher.
const ARGS_MAX: usize = 16_384;
/// Columns or rows of a terminal at most.
const TERMINAL_MAX: u32 = 10_000;

/// A request, checked and completed.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: String,
    pub(super) user: User,
    pub(super) pty: Option<v1::Pty>,
    pub(super) stdin: bool,
}

/// The agent's ends of a started process's descriptors.
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) ended: oneshot::Receiver<Ended>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) outputs: Vec<(v1::OutputStream, OwnedFd)>,
    pub(super) terminal: Option<OwnedFd>,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidArgument, "process_invalid", message)
}

impl Plan {
    /// Checks a request and fills in the sandbox's defaults.
    pub(super) fn new(
        start: v1::StartProcess,
        config: &Config,
        environment: BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        if start.args.first().is_none_or(String::is_empty) {
            return Err(invalid("no command was given: the first of its words (`args`) is empty"));
        }
        if start.args.len() > ARGS_MAX {
            return Err(invalid(format!("`start.args` has {} entries, at most {ARGS_MAX}", start.args.len())));
        }
        if start.env.len() > limits::MAP_MAX_ENTRIES {
            return Err(invalid(format!(
                "`start.env` has {} entries, at most {}",
                start.env.len(),
                limits::MAP_MAX_ENTRIES
            )));
        }
        if let Some(key) = start.env.keys().find(|key| key.is_empty() || key.contains('=')) {
            return Err(invalid(format!("`start.env` has the name `{key}`, which no variable can have")));
        }
        if let Some(pty) = &start.pty
            && (pty.cols > TERMINAL_MAX || pty.rows > TERMINAL_MAX)
        {
            return Err(invalid(format!("`start.pty` is larger than {TERMINAL_MAX} columns or rows")));
        }
        let user = user::find(if start.user.is_empty() { &config.user } else { &start.user })?;
        let cwd = if start.cwd.is_empty() { config.workdir.display().to_string() } else { start.cwd };
        if !cwd.starts_with('/') {
            return Err(invalid(format!("`start.cwd` is `{cwd}`: use an absolute path")));
        }
        let mut env = BTreeMap::from([
            ("HOME".to_owned(), user.home.display().to_string()),
            ("USER".to_owned(), user.name.clone()),
            ("LOGNAME".to_owned(), user.name.clone()),
            ("SHELL".to_owned(), user.shell.display().to_string()),
        ]);
        if let Some(pty) = &start.pty {
            let term = if pty.term.is_empty() { "xterm-256color" } else { &pty.term };
            env.insert("TERM".to_owned(), term.to_owned());
        }
        // What was said of the sandbox wins over what the user database says.
        env.extend(environment);
        env.extend(start.env);
        Ok(Self { args: start.args, env, cwd, user, pty: start.pty, stdin: start.stdin })
    }

    /// Starts it.
    pub(super) fn start(&self) -> Result<Started, Error> {
        let failed = |what: &str, error: std::io::Error| {
            Error::new(Code::ResourceExhausted, "process_failed", format!("failed to {what}: {error}"))
        };
        let candidates = self.candidates()?;
        let args = c_strings("start.args", self.args.iter().cloned())?;
        let env = c_strings("start.env", self.env.iter().map(|(key, value)| format!("{key}={value}")))?;
        let cwd = CString::new(self.cwd.as_str()).map_err(|_| invalid("`start.cwd` has a NUL byte"))?;
        let ends = Ends::open(self).map_err(|error| failed("open the process's descriptors", error))?;
        let own = rustix::process::geteuid().as_raw() == self.user.uid
            && rustix::process::getegid().as_raw() == self.user.gid;
        let identity =
            (!own).then_some(sys::Identity { uid: self.user.uid, gid: self.user.gid, groups: &self.user.groups });
        let prepared = Prepared {
            candidates: &candidates,
            args: &args,
            env: &env,
            cwd: &cwd,
            identity,
            stdin: ends.child[0].as_fd(),
            stdout: ends.child[1].as_fd(),
            stderr: ends.child[2].as_fd(),
            terminal: self.pty.is_some(),
        };
        let (pid, ended) =
            reaper::spawn(|| sys::spawn(&prepared)).map_err(|(stage, error)| self.refusal(stage, &error))?;
        Ok(Started { pid, ended, stdin: ends.stdin, outputs: ends.outputs, terminal: ends.terminal })
    }

    /// Paths where the command may be, as execvp looks for them.
    fn candidates(&self) -> Result<Vec<CString>, Error> {
        let command = &self.args[0];
        let absolute = |path: &Path| c_strings("start.args", [path.display().to_string()]);
        if command.contains('/') {
            return absolute(Path::new(command));
        }
        let path = self.env.get("PATH").map_or("", String::as_str);
        let folders = path.split(':').map(|folder| if folder.is_empty() { "." } else { folder });
        let paths = folders.map(|folder| format!("{folder}/{command}"));
        // The agent itself has it; the child's own program is still the agent when it looks.
        let own = (command == sftp::COMMAND).then(|| "/proc/self/exe".to_owned());
        c_strings("start.args", paths.chain(own))
    }

    fn refusal(&self, stage: Stage, error: &std::io::Error) -> Error {
        let command = &self.args[0];
        let kind = error.raw_os_error().unwrap_or_default();
        match (stage, kind) {
            (Stage::Exec, libc::ENOENT | libc::ENOTDIR) => Error::new(
                Code::NotFound,
                reason::COMMAND_NOT_FOUND,
                format!("command `{command}` does not exist in the sandbox: install it there, or check PATH"),
            ),
            (Stage::Exec, libc::E2BIG) => invalid("the arguments and the environment are too long for the kernel"),
            (Stage::Exec, _) => Error::new(
                Code::FailedPrecondition,
                reason::COMMAND_NOT_EXECUTABLE,
                format!("command `{command}` cannot be executed: {error}"),
            ),
            (Stage::Cwd, _) => invalid(format!("working directory `{}` cannot be used: {error}", self.cwd)),
            (Stage::Identity, _) => invalid(format!(
                "user `{}` is not among the ids of this sandbox ({error}): they go to 65535, and to root alone where the runner maps no range of uids, see `dispense doctor`",
                self.user.name
            )),
            (Stage::Setup, libc::EAGAIN) => Error::new(
                Code::ResourceExhausted,
                "pids_exhausted",
                "the sandbox has reached its limit of processes: end some, or create it with a higher `pids`",
            ),
            (Stage::Setup, _) => {
                Error::new(Code::ResourceExhausted, "process_failed", format!("failed to start `{command}`: {error}"))
            }
        }
    }
}

fn c_strings(field: &str, texts: impl IntoIterator<Item = String>) -> Result<Vec<CString>, Error> {
    texts.into_iter().map(|text| CString::new(text).map_err(|_| invalid(format!("`{field}` has a NUL byte")))).collect()
}

/// Both ends of every descriptor.
struct Ends {
    child: [OwnedFd; 3],
    stdin: Option<OwnedFd>,
    outputs: Vec<(v1::OutputStream, OwnedFd)>,
    terminal: Option<OwnedFd>,
}

/// A pipe holds this much, so that a burst of output costs few wake-ups. An ordinary user may ask for as much.
const PIPE_BYTES: usize = 1 << 20;

impl Ends {
    fn open(plan: &Plan) -> std::io::Result<Self> {
        if let Some(pty) = &plan.pty {
            return Self::terminal(pty, plan.user.uid);
        }
        let (stdin_child, stdin) = if plan.stdin {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            (reader, Some(writer))
        } else {
            (rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, None)
        };
        let mut outputs = Vec::new();
        let mut output = |kind| -> std::io::Result<OwnedFd> {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            // A smaller pipe works as well, where the user's quota of pipe pages is used up.
            let _ = rustix::pipe::fcntl_setpipe_size(&reader, PIPE_BYTES);
            outputs.push((kind, reader));
            Ok(writer)
        };
        let child = [stdin_child, output(v1::OutputStream::Stdout)?, output(v1::OutputStream::Stderr)?];
        Ok(Self { child, stdin, outputs, terminal: None })
    }

    fn terminal(pty: &v1::Pty, uid: u32) -> std::io::Result<Self> {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let control = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&control)?;
        unlockpt(&control)?;
        let name = ptsname(&control, Vec::new())?;
        let user = rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        // So that the user's programs may open it again; one uid only, and this fails harmlessly.
        let _ = rustix::fs::fchown(&user, Some(rustix::fs::Uid::from_raw(uid)), None);
        super::output::set_size(&control, pty.cols, pty.rows)?;
        let child = [user.try_clone()?, user.try_clone()?, user];
        let reader = control.try_clone()?;
        Ok(Self { child, stdin: None, outputs: vec![(v1::OutputStream::Pty, reader)], terminal: Some(control) })
    }
}
