//! Errors as clients see them: a stable code, a finer stable reason, a sentence that names the thing and the
//! next step, and details by name. Never a bare string, never the source of an inner error.

use std::collections::BTreeMap;
use std::fmt;

use crate::agent;

/// The stable codes of `CONTRACTS`; they match the gRPC status codes of the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request is wrong whatever the state of the system.
    InvalidArgument,
    /// No valid credential.
    Unauthenticated,
    /// A valid credential that may not do this.
    PermissionDenied,
    /// The thing does not exist.
    NotFound,
    /// The thing exists already.
    AlreadyExists,
    /// The system is not in the state that the request needs.
    FailedPrecondition,
    /// A limit or quota is reached.
    ResourceExhausted,
    /// Try again later.
    Unavailable,
    /// The deadline passed first.
    DeadlineExceeded,
    /// The caller ended the request.
    Cancelled,
    /// Not there.
    Unimplemented,
    /// A fault of ours.
    Internal,
}

impl Code {
    /// The text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::FailedPrecondition => "failed_precondition",
            Self::ResourceExhausted => "resource_exhausted",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
        }
    }

    /// The code of a text form; an unknown one is [`Code::Internal`], since only a faulty peer sends it.
    pub fn parse(text: &str) -> Self {
        const ALL: [Code; 12] = [
            Code::InvalidArgument,
            Code::Unauthenticated,
            Code::PermissionDenied,
            Code::NotFound,
            Code::AlreadyExists,
            Code::FailedPrecondition,
            Code::ResourceExhausted,
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Cancelled,
            Code::Unimplemented,
            Code::Internal,
        ];
        ALL.into_iter().find(|code| code.as_str() == text).unwrap_or(Self::Internal)
    }

    /// The number of the gRPC status code of the same name.
    pub fn grpc(self) -> i32 {
        match self {
            Self::Cancelled => 1,
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::NotFound => 5,
            Self::AlreadyExists => 6,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::FailedPrecondition => 9,
            Self::Unimplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::Unauthenticated => 16,
        }
    }

    /// The code of a gRPC status number.
    pub fn from_grpc(number: i32) -> Self {
        match number {
            1 => Self::Cancelled,
            3 | 11 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 | 10 => Self::FailedPrecondition,
            12 => Self::Unimplemented,
            14 => Self::Unavailable,
            16 => Self::Unauthenticated,
            _ => Self::Internal,
        }
    }

    /// The HTTP status that carries this code.
    pub fn http(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::FailedPrecondition => 409,
            Self::ResourceExhausted => 429,
            Self::Cancelled => 499,
            Self::Internal => 500,
            Self::Unimplemented => 501,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// Whether the same request may succeed later.
    pub fn retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::ResourceExhausted)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The stable code.
    pub code: Code,
    /// A finer stable reason in `snake_case`, e.g. one of [`reason`].
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// Values by name, for programs.
    pub details: BTreeMap<String, String>,
}

impl Error {
    /// Makes an error without details.
    pub fn new(code: Code, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), details: BTreeMap::new() }
    }

    /// Adds a value for programs.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.details.insert(key.into(), value.into());
        self
    }

    /// Whether the way to a process was cut, which may be reached again later: nothing of the kind is told of one that
    /// is not there.
    pub fn cuts_the_way(&self) -> bool {
        self.code == Code::Unavailable
            || (self.code == Code::DeadlineExceeded && self.reason == reason::AGENT_UNREACHABLE)
    }

    /// A process has ended, and its pid is another's.
    pub fn process_replaced(pid: u32) -> Self {
        let message = format!("process {pid} has ended and its pid is another's: see `dispense logs`");
        Self::new(Code::NotFound, reason::PROCESS_UNKNOWN, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for agent::Status {
    fn from(error: Error) -> Self {
        Self {
            code: error.code.as_str().to_owned(),
            reason: error.reason,
            message: error.message,
            details: error.details,
            elapsed_us: 0,
            kept: false,
        }
    }
}

impl TryFrom<agent::Status> for Error {
    /// The call succeeded.
    type Error = ();

    fn try_from(status: agent::Status) -> Result<Self, ()> {
        if status.code.is_empty() {
            return Err(());
        }
        Ok(Self {
            code: Code::parse(&status.code),
            reason: status.reason,
            message: status.message,
            details: status.details,
        })
    }
}

/// The domain of `google.rpc.ErrorInfo` in the details of a gRPC status.
pub const ERROR_DOMAIN: &str = "dispense";

/// Stable reasons that programs act on.
pub mod reason {
    /// The command does not exist in the sandbox: exit code 127.
    pub const COMMAND_NOT_FOUND: &str = "command_not_found";
    /// The command is not executable: exit code 126.
    pub const COMMAND_NOT_EXECUTABLE: &str = "command_not_executable";
    /// No such process.
    pub const PROCESS_UNKNOWN: &str = "process_unknown";
    /// No such sandbox.
    pub const SANDBOX_UNKNOWN: &str = "sandbox_unknown";
    /// The sandbox is not running.
    pub const SANDBOX_NOT_RUNNING: &str = "sandbox_not_running";
    /// A sandbox of that name exists.
    pub const NAME_TAKEN: &str = "name_taken";
    /// No runner has that template.
    pub const TEMPLATE_UNKNOWN: &str = "template_unknown";
    /// The template was there and is not any more.
    pub const TEMPLATE_VANISHED: &str = "template_vanished";
    /// No runner fits.
    pub const NO_RUNNER_FITS: &str = "no_runner_fits";
    /// A limit cannot be enforced and `require_limits` was set.
    pub const LIMITS_UNENFORCED: &str = "limits_unenforced";
    /// The kernel does not let this user make namespaces.
    pub const USER_NAMESPACES_OFF: &str = "user_namespaces_off";
    /// The disk of the server, runner or sandbox is full.
    pub const DISK_FULL: &str = "disk_full";
    /// What the sandbox is filled with cannot be read or does not fit.
    pub const CONTENT: &str = "content";
    /// The agent in the sandbox does not answer.
    pub const AGENT_UNREACHABLE: &str = "agent_unreachable";
    /// The runner of the sandbox is offline.
    pub const RUNNER_OFFLINE: &str = "runner_offline";
    /// A peer broke the protocol.
    pub const PROTOCOL: &str = "protocol";
}
