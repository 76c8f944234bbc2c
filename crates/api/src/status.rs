//! Errors over gRPC: a status whose details carry `google.rpc.ErrorInfo`, so that a client gets the same
//! [`Error`] that the server made. The two messages are those of `google/rpc/{status,error_details}.proto`.

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use tonic::Status;

use crate::error::{Code, ERROR_DOMAIN, Error};

/// Type of the one detail.
const ERROR_INFO_TYPE: &str = "type.googleapis.com/google.rpc.ErrorInfo";

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: HashMap<String, String>,
}

/// The value of `grpc-status-details-bin`, before base64.
pub fn details(error: &Error) -> Vec<u8> {
    let info = ErrorInfo {
        reason: error.reason.clone(),
        domain: ERROR_DOMAIN.to_owned(),
        metadata: error.details.clone().into_iter().collect(),
    };
    let detail = prost_types::Any { type_url: ERROR_INFO_TYPE.to_owned(), value: info.encode_to_vec() };
    RpcStatus { code: error.code.grpc(), message: error.message.clone(), details: vec![detail] }.encode_to_vec()
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let details = details(&error);
        Self::with_details(tonic::Code::from_i32(error.code.grpc()), error.message, details.into())
    }
}

impl From<&Status> for Error {
    /// Also of a status that no Dispense server made: then the reason is empty.
    fn from(status: &Status) -> Self {
        let mut error = Self::new(Code::from_grpc(status.code().into()), "", status.message());
        let rpc = RpcStatus::decode(status.details()).unwrap_or_default();
        let detail = rpc.details.into_iter().find(|detail| detail.type_url == ERROR_INFO_TYPE);
        let info = detail.and_then(|detail| ErrorInfo::decode(&*detail.value).ok());
        if let Some(info) = info.filter(|info| info.domain == ERROR_DOMAIN) {
            error.reason = info.reason;
            error.details = info.metadata.into_iter().collect::<BTreeMap<_, _>>();
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_passes_through_a_status_whole() {
        let error = Error::new(Code::NotFound, "sandbox_unknown", "sandbox `x` does not exist").with("sandbox", "x");
        assert_eq!(Error::from(&Status::from(error.clone())), error);
    }

    #[test]
    fn a_foreign_status_keeps_code_and_message() {
        let error = Error::from(&Status::unavailable("proxy says no"));
        assert_eq!(
            (error.code, error.reason.as_str(), error.message.as_str()),
            (Code::Unavailable, "", "proxy says no")
        );
    }
}
