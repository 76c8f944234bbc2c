//! How a failure is told: a sentence on stderr (JSON when asked for), and an exit code that says whose it is.

use std::process::ExitCode;

use clap::CommandFactory;
use dispense_client::{Code, Error};
use serde::Serialize;

use crate::args::Output;

/// The caller can mend it.
const THEIRS: u8 = 1;
/// The system failed.
pub(crate) const OURS: u8 = 3;
/// `run`, `exec` and `shell` failed themselves; every other code is the command's.
pub(crate) const RUN_FAILED: u8 = 125;
/// The flags cannot be understood, as everywhere.
const MISUSED: u8 = 2;
/// The commands whose exit code is another's.
const RUNNERS: [&str; 4] = ["run", "exec", "shell", "attach"];
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

/// Tells what cannot be understood, or the help that was asked for. What the flags say is not known then, so this looks
/// for itself whether a command was to run, and who reads the answer.
pub(crate) fn misused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Of a help that nobody reads there is nothing to say.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let ours = &words[..words.iter().position(|word| word == "--").unwrap_or(words.len())];
    let is_json = ours.iter().any(|word| word == "--output=json")
        || ours.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
    let commands = crate::args::Cli::command();
    let command = ours.iter().skip(1).find(|word| commands.find_subcommand(word).is_some());
    let runs_commands = command.is_some_and(|word| RUNNERS.contains(&word.as_str()));
    if is_json {
        let text = error.render().to_string();
        let sentence = text.split("\n\n").next().unwrap_or_default();
        let told = usage(sentence.trim_start_matches("error: "));
        report(&told, Output::Json, runs_commands);
    } else {
        let _ = error.print();
    }
    ExitCode::from(if runs_commands { RUN_FAILED } else { MISUSED })
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
