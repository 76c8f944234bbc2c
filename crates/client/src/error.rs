//! From gRPC statuses and broken connections to [`Error`].

use dispense_api::error::{Code, Error};
use tonic::Status;

/// A server that cannot be reached.
pub(crate) fn unreachable(url: &str, error: &tonic::transport::Error) -> Error {
    let cause = chain(error);
    let message = format!("the server at {url} cannot be reached ({cause}): is it running, and is the address right?");
    Error::new(Code::Unavailable, "unreachable", message)
}

/// What a call failed with.
pub(crate) fn of(status: Status) -> Error {
    let mut error = Error::from(&status);
    // Made by the transport, not by a server: then the chain of causes has the facts.
    if error.reason.is_empty()
        && let Some(source) = std::error::Error::source(&status)
    {
        error.reason = "connection".to_owned();
        error.code = Code::Unavailable;
        error.message = format!("the connection to the server was lost ({})", chain(source));
    }
    error
}

/// The innermost cause tells most; the layers above repeat it.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
