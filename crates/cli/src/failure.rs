//! How a failure is told: a sentence on stderr (JSON when asked for), and an exit code that says whose it is.

use std::process::ExitCode;

use dispense_client::{Code, Error};
use serde::Serialize;

use crate::args::Output;

/// The caller can mend it.
const THEIRS: u8 = 1;
/// The system failed.
pub(crate) const OURS: u8 = 3;
/// `run`, `exec` and `shell` failed themselves; every other code is the command's.
pub(crate) const RUN_FAILED: u8 = 125;
/// The command is not executable.
const NOT_EXECUTABLE: u8 = 126;
/// The command does not exist.
const NOT_FOUND: u8 = 127;

#[derive(Serialize)]
struct ErrorJson<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    code: &'a str,
    reason: &'a str,
    message: &'a str,
    details: &'a std::collections::BTreeMap<String, String>,
}

/// Tells the failure and gives the exit code.
pub(crate) fn report(error: &Error, output: Output, runs_commands: bool) -> ExitCode {
    match output {
        Output::Table => eprintln!("dispense: {}", error.message),
        Output::Json => {
            let body = Body {
                code: error.code.as_str(),
                reason: &error.reason,
                message: &error.message,
                details: &error.details,
            };
            eprintln!("{}", serde_json::to_string(&ErrorJson { error: body }).unwrap_or_default());
        }
    }
    ExitCode::from(exit_code(error, runs_commands))
}

fn exit_code(error: &Error, runs_commands: bool) -> u8 {
    use dispense_api::error::reason;
    if runs_commands {
        return match error.reason.as_str() {
            reason::COMMAND_NOT_FOUND => NOT_FOUND,
            reason::COMMAND_NOT_EXECUTABLE => NOT_EXECUTABLE,
            _ => RUN_FAILED,
        };
    }
    match error.code {
        Code::Internal | Code::Unavailable => OURS,
        Code::InvalidArgument
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unimplemented => THEIRS,
    }
}

/// A failure on this machine.
pub(crate) fn local(action: impl std::fmt::Display, source: &dyn std::error::Error) -> Error {
    let mut message = format!("failed to {action}: {source}");
    let mut inner = source.source();
    while let Some(cause) = inner {
        message = format!("{message}: {cause}");
        inner = cause.source();
    }
    Error::new(Code::FailedPrecondition, "local", message)
}

/// Something that the caller wrote cannot be.
pub(crate) fn usage(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidArgument, "usage", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_say_whose_failure_it_is() {
        let error = |code, reason: &str| Error::new(code, reason, "x");
        assert_eq!(exit_code(&error(Code::NotFound, "command_not_found"), true), 127);
        assert_eq!(exit_code(&error(Code::PermissionDenied, "command_not_executable"), true), 126);
        assert_eq!(exit_code(&error(Code::NotFound, "sandbox_unknown"), true), 125);
        assert_eq!(exit_code(&error(Code::NotFound, "sandbox_unknown"), false), 1);
        assert_eq!(exit_code(&error(Code::Unavailable, "connection"), false), 3);
    }
}
