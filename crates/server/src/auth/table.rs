//! The one authorisation table: a row for each route of each door. What has no row is refused.

use dispense_api::method::{Access, Method};

use super::Role;

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing: it tells nothing.
    Open,
    /// An API key with at least this role.
    Role(Role),
    /// The token of the sandbox that the path names; the handler checks it.
    SandboxToken,
}

/// Routes of gRPC services that the server answers itself, as in the request's path.
pub(crate) const GRPC: &[(&str, Need)] = &[
    ("/dispense.DispenseService/CreateSandbox", Need::Role(Role::Member)),
    ("/dispense.DispenseService/ListSandboxes", Need::Role(Role::Viewer)),
    ("/dispense.DispenseService/DeleteSandbox", Need::Role(Role::Member)),
    ("/dispense.DispenseService/GetSandbox", Need::Role(Role::Viewer)),
    ("/dispense.DispenseService/WaitForSandbox", Need::Role(Role::Viewer)),
    ("/dispense.DispenseService/RunClaudeTask", Need::Role(Role::Member)),
    ("/dispense.DispenseService/GetClaudeStatus", Need::Role(Role::Viewer)),
    ("/dispense.DispenseService/GetClaudeLogs", Need::Role(Role::Viewer)),
    ("/dispense.DispenseService/GetAPIKey", Need::Role(Role::Viewer)),
    ("/dispense.DispenseService/SetAPIKey", Need::Role(Role::Admin)),
    ("/dispense.DispenseService/ValidateAPIKey", Need::Role(Role::Member)),
    ("/grpc.health.v1.Health/Check", Need::Open),
    ("/grpc.health.v1.Health/List", Need::Open),
    ("/grpc.health.v1.Health/Watch", Need::Open),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Need::Role(Role::Viewer)),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Need::Role(Role::Viewer)),
    ("/dispense.v1.SandboxService/CreateSandbox", Need::Role(Role::Member)),
    ("/dispense.v1.SandboxService/GetSandbox", Need::Role(Role::Viewer)),
    ("/dispense.v1.SandboxService/ListSandboxes", Need::Role(Role::Viewer)),
    ("/dispense.v1.SandboxService/StartSandbox", Need::Role(Role::Member)),
    ("/dispense.v1.SandboxService/StopSandbox", Need::Role(Role::Member)),
    ("/dispense.v1.SandboxService/DeleteSandbox", Need::Role(Role::Member)),
    ("/dispense.v1.SandboxService/WaitSandbox", Need::Role(Role::Viewer)),
    ("/dispense.v1.SandboxService/RenewSandbox", Need::Role(Role::Member)),
    ("/dispense.v1.SandboxService/GetEnvironment", Need::Role(Role::Viewer)),
    ("/dispense.v1.SandboxService/ChangeEnvironment", Need::Role(Role::Member)),
    ("/dispense.v1.RunnerService/ListRunners", Need::Role(Role::Viewer)),
    ("/dispense.v1.RunnerService/GetRunner", Need::Role(Role::Viewer)),
    ("/dispense.v1.RunnerService/CordonRunner", Need::Role(Role::Admin)),
    ("/dispense.v1.RunnerService/UncordonRunner", Need::Role(Role::Admin)),
    ("/dispense.v1.RunnerService/DrainRunner", Need::Role(Role::Admin)),
    ("/dispense.v1.LogService/GetLogs", Need::Role(Role::Viewer)),
    ("/dispense.v1.UsageService/GetUsage", Need::Role(Role::Viewer)),
    ("/dispense.v1.KeyService/CreateKey", Need::Role(Role::Admin)),
    ("/dispense.v1.KeyService/ListKeys", Need::Role(Role::Admin)),
    ("/dispense.v1.KeyService/RotateKey", Need::Role(Role::Admin)),
    ("/dispense.v1.KeyService/RevokeKey", Need::Role(Role::Admin)),
    ("/dispense.v1.BatchService/BatchCreateSandboxes", Need::Role(Role::Member)),
    ("/dispense.v1.BatchService/BatchDeleteSandboxes", Need::Role(Role::Member)),
    ("/dispense.v1.BatchService/BatchExec", Need::Role(Role::Member)),
    ("/dispense.v1.PreviewService/OpenPreview", Need::Role(Role::Member)),
    ("/dispense.v1.PreviewService/ClosePreview", Need::Role(Role::Member)),
    ("/dispense.v1.SshService/ConnectSsh", Need::Role(Role::Member)),
    ("/dispense.v1.SshService/AddSshKey", Need::Role(Role::Member)),
    ("/dispense.v1.SshService/ListSshKeys", Need::Role(Role::Member)),
    ("/dispense.v1.SshService/RemoveSshKey", Need::Role(Role::Member)),
    ("/dispense.v1.AuditService/ListAudit", Need::Role(Role::Admin)),
    ("/dispense.v1.AuditService/VerifyAudit", Need::Role(Role::Admin)),
    ("/dispense.v1.EventService/WatchEvents", Need::Role(Role::Viewer)),
    ("/dispense.v1.JobService/ListJobs", Need::Role(Role::Viewer)),
    ("/dispense.v1.JobService/GetJob", Need::Role(Role::Viewer)),
];

/// REST routes: verb and pattern, as the router has them.
pub(crate) const REST: &[(&str, &str, Need)] = &[
    ("GET", "/healthz", Need::Open),
    ("GET", "/readyz", Need::Open),
    ("GET", "/openapi.json", Need::Open),
    ("GET", "/docs", Need::Open),
    ("GET", "/metrics", Need::Role(Role::Viewer)),
    ("POST", "/v1/sandboxes", Need::Role(Role::Member)),
    ("GET", "/v1/sandboxes", Need::Role(Role::Viewer)),
    ("GET", "/v1/sandboxes/{identifier}", Need::Role(Role::Viewer)),
    ("DELETE", "/v1/sandboxes/{identifier}", Need::Role(Role::Member)),
    ("DELETE", "/v1/sandboxes", Need::Role(Role::Member)),
    ("POST", "/v1/sandboxes/{identifier}/wait", Need::Role(Role::Viewer)),
    ("POST", "/v1/claude/tasks", Need::Role(Role::Member)),
    ("GET", "/v1/claude/{sandbox_identifier}/status", Need::Role(Role::Viewer)),
    ("GET", "/v1/claude/{sandbox_identifier}/logs", Need::Role(Role::Viewer)),
    ("GET", "/v1/config/api-key", Need::Role(Role::Viewer)),
    ("POST", "/v1/config/api-key", Need::Role(Role::Admin)),
    ("POST", "/v1/config/api-key/validate", Need::Role(Role::Member)),
    ("GET", "/api/v1/sandboxes", Need::Role(Role::Viewer)),
    ("POST", "/api/v1/sandboxes", Need::Role(Role::Member)),
    ("GET", "/api/v1/sandboxes/{id}", Need::Role(Role::Viewer)),
    ("DELETE", "/api/v1/sandboxes/{id}", Need::Role(Role::Member)),
    ("POST", "/api/v1/sandboxes/{id}/start", Need::Role(Role::Member)),
    ("POST", "/api/v1/sandboxes/{id}/stop", Need::Role(Role::Member)),
    ("POST", "/api/v1/sandboxes/{id}/status", Need::SandboxToken),
    ("GET", "/api/v1/sandboxes/{id}/connection", Need::Role(Role::Member)),
    ("GET", "/api/v1/sandboxes/{id}/usage", Need::Role(Role::Viewer)),
    ("GET", "/api/v1/sandboxes/{id}/environment", Need::Role(Role::Viewer)),
    ("PATCH", "/api/v1/sandboxes/{id}/environment", Need::Role(Role::Member)),
    ("GET", "/api/v1/sandboxes/{id}/files", Need::Role(Role::Viewer)),
    ("PUT", "/api/v1/sandboxes/{id}/files", Need::Role(Role::Member)),
    ("DELETE", "/api/v1/sandboxes/{id}/files", Need::Role(Role::Member)),
    ("GET", "/api/v1/sandboxes/{id}/files/stat", Need::Role(Role::Viewer)),
    ("GET", "/api/v1/sandboxes/{id}/files/list", Need::Role(Role::Viewer)),
    ("POST", "/api/v1/sandboxes/{id}/files/directory", Need::Role(Role::Member)),
    ("POST", "/api/v1/sandboxes/{id}/files/move", Need::Role(Role::Member)),
    ("POST", "/api/v1/batch/create", Need::Role(Role::Member)),
    ("POST", "/api/v1/batch/delete", Need::Role(Role::Member)),
    ("POST", "/api/v1/batch/exec", Need::Role(Role::Member)),
    ("GET", "/api/v1/keys", Need::Role(Role::Admin)),
    ("POST", "/api/v1/keys", Need::Role(Role::Admin)),
    ("DELETE", "/api/v1/keys/{key}", Need::Role(Role::Admin)),
    ("POST", "/api/v1/keys/{key}/rotate", Need::Role(Role::Admin)),
    ("GET", "/api/v1/audit", Need::Role(Role::Admin)),
    ("GET", "/api/v1/audit/verify", Need::Role(Role::Admin)),
    ("GET", "/api/v1/events", Need::Role(Role::Viewer)),
    ("GET", "/api/v1/jobs", Need::Role(Role::Viewer)),
    ("GET", "/api/v1/jobs/{id}", Need::Role(Role::Viewer)),
    ("GET", "/api/v1/runners", Need::Role(Role::Viewer)),
    ("GET", "/api/v1/runners/{id}", Need::Role(Role::Viewer)),
];

/// What a gRPC path asks for; `None` for one that does not exist.
pub(crate) fn grpc(path: &str) -> Option<Need> {
    if let Some(method) = path.strip_prefix('/').and_then(Method::parse) {
        return match method.access() {
            Access::Read => Some(Need::Role(Role::Viewer)),
            Access::Write => Some(Need::Role(Role::Member)),
            // Only its runner speaks to an agent so.
            Access::Runner => None,
        };
    }
    GRPC.iter().find(|(row, _)| *row == path).map(|(_, need)| *need)
}

/// What a REST route asks for; `None` for one that does not exist.
pub(crate) fn rest(verb: &str, pattern: &str) -> Option<Need> {
    // The router answers HEAD as GET without the body.
    let verb = if verb == "HEAD" { "GET" } else { verb };
    REST.iter().find(|(method, row, _)| *method == verb && *row == pattern).map(|(_, _, need)| *need)
}

/// The HTTP methods of a REST path.
pub(crate) fn verbs(pattern: &str) -> Vec<&'static str> {
    REST.iter().filter(|(_, row, _)| *row == pattern).map(|(verb, ..)| *verb).collect()
}

/// A row as those outside see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The HTTP method; that of gRPC is always POST.
    pub verb: &'static str,
    /// The path, with `{…}` for what varies.
    pub path: String,
    /// Over gRPC, and not as REST.
    pub grpc: bool,
    /// The least role; `None` where no API key is asked for.
    pub role: Option<&'static str>,
}

/// The whole table.
pub fn rows() -> Vec<Row> {
    let data = Method::ALL.iter().map(|method| format!("/{}", method.path()));
    let services = data.chain(GRPC.iter().map(|(path, _)| (*path).to_owned()));
    let services = services.filter_map(|path| Some((true, "POST", grpc(&path)?, path)));
    let rest = REST.iter().map(|(verb, path, need)| (false, *verb, *need, (*path).to_owned()));
    let row = |(grpc, verb, need, path)| {
        let role = match need {
            Need::Role(role) => Some(role.as_str()),
            Need::Open | Need::SandboxToken => None,
        };
        Row { verb, path, grpc, role }
    };
    services.chain(rest).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_every_service_has_a_row() {
        use prost::Message;
        let set = prost_types::FileDescriptorSet::decode(dispense_api::FILE_DESCRIPTOR_SET).expect("ours");
        let mut methods = 0;
        for file in set.file.iter().filter(|file| ["dispense", "dispense.v1"].contains(&file.package())) {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    assert!(matches!(grpc(&path), Some(Need::Role(_))), "{path} has no row");
                    methods += 1;
                }
            }
        }
        assert!(methods > 36, "the descriptors were read");
    }

    #[test]
    fn what_has_no_row_is_refused() {
        for path in ["", "/", "/dispense.v1.SandboxService/", "/dispense.agent.v1.AgentService/Shutdown", "/x/y"] {
            assert_eq!(grpc(path), None, "{path}");
        }
        assert_eq!(rest("PATCH", "/api/v1/sandboxes"), None);
    }
}
