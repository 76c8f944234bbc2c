//! What each call of the service means.

use std::sync::Arc;
use std::time::Duration;

use dispense_api::error::{Code, Error};
use dispense_api::service::*;
use dispense_api::v1;

use super::config;
use super::info::info;
use crate::auth::{Principal, Role};
use crate::door::Parts;
use crate::door::request::{Page, wait_timeout};
use crate::provider::Verdict;
use crate::sandbox::Sandbox;
use crate::sandbox::create::NewSandbox;
use crate::sandbox::lifecycle::{Desired, State};
use crate::sandbox::spec::{clip, invalid, renamed};
use crate::store::sandboxes::Filter;

const GIB: u64 = 1 << 30;
const MILLIS_PER_CORE: u32 = 1000;
/// With `force`: how long the sandbox that has the name may take to go.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(60);
/// A delete answers when it is done, or after this time.
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);
/// Sandboxes of a group that are waited for.
const GROUP_MAX: usize = 1000;
/// Sandboxes of a group, or of all, that are deleted one after the other before the next are read.
const DELETE_PAGE: usize = 1000;

/// The calls.
pub(crate) struct Calls {
    pub(super) parts: Arc<Parts>,
}

impl Calls {
    pub(super) async fn create(
        &self,
        caller: &Principal,
        request: CreateSandboxRequest,
    ) -> Result<CreateSandboxResponse, Error> {
        if !request.task.is_empty() || request.task_data.is_some() {
            return Err(no_tasks());
        }
        let (force, name) = (request.force, request.name.clone());
        let new = parse_create(request).map_err(in_our_words)?;
        let visible = self.parts.sandboxes.seen_by(caller);
        if force && !name.is_empty() {
            visible.could_create(&new).map_err(in_our_words)?;
            self.replace(caller, &name).await?;
        }
        let sandbox = visible.create(new).await.map_err(in_our_words)?;
        Ok(CreateSandboxResponse { sandbox: Some(self.info(&sandbox, true)), error: None })
    }

    /// Deletes the sandbox that has the name, if there is one, and waits until the name is free.
    async fn replace(&self, caller: &Principal, name: &str) -> Result<(), Error> {
        let visible = self.parts.sandboxes.seen_by(caller);
        match visible.get(name).await {
            Ok(old) => {
                let old = visible.delete(old.id.as_str(), true).await?;
                self.parts.sandboxes.settled(old, Desired::Deleted, Some(REPLACE_TIMEOUT)).await.map(drop)
            }
            Err(error) if error.code == Code::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn list(
        &self,
        caller: &Principal,
        request: ListSandboxesRequest,
    ) -> Result<ListSandboxesResponse, Error> {
        let page = Page::parse(unsigned("page_size", request.page_size)?, &request.page_token)?;
        let state = |text: &String| {
            State::parse(text).ok_or_else(|| invalid("states", format_args!("`{}` is no state", clip(text))))
        };
        let one_kind = request.show_local != request.show_remote;
        let filter = Filter {
            group: (!request.group.is_empty()).then_some(request.group),
            states: request.states.iter().map(state).collect::<Result<_, _>>()?,
            runners: one_kind.then(|| (request.show_local, self.parts.sandboxes.fleet.local_runners())),
            limit: page.limit,
            before: page.before.clone(),
            ..Filter::default()
        };
        let rows = self.parts.sandboxes.seen_by(caller).list(filter).await?;
        let next_page_token = page.next_token(&rows, |row| (row.created_at, row.id.as_str()));
        let sandboxes = rows.iter().map(|row| self.info(row, request.verbose)).collect();
        Ok(ListSandboxesResponse { sandboxes, error: None, next_page_token })
    }

    pub(super) async fn get(
        &self,
        caller: &Principal,
        request: GetSandboxRequest,
    ) -> Result<GetSandboxResponse, Error> {
        let identifier = present("identifier", &request.identifier)?;
        let row = self.parts.sandboxes.seen_by(caller).get(identifier).await?;
        Ok(GetSandboxResponse { sandbox: Some(self.info(&row, true)), error: None })
    }

    pub(super) async fn delete(
        &self,
        caller: &Principal,
        request: DeleteSandboxRequest,
    ) -> Result<DeleteSandboxResponse, Error> {
        let visible = self.parts.sandboxes.seen_by(caller);
        let told = |message: String| Ok(DeleteSandboxResponse { success: true, message, error: None });
        match (request.identifier.as_str(), request.group.as_str(), request.delete_all) {
            ("", "", false) => Err(invalid("identifier", "it is missing: give an id, a name, a group or `delete_all`")),
            (identifier, "", false) => {
                let row = visible.delete(identifier, request.force).await?;
                let gone = self.parts.sandboxes.settled(row.clone(), Desired::Deleted, Some(DELETE_TIMEOUT)).await;
                // Its runner may be away, and does it when it is back.
                let how = if gone.is_ok() { "is deleted" } else { "is being deleted" };
                told(format!("sandbox `{}` {how}", row.name))
            }
            ("", group, all) if all == group.is_empty() => {
                let count = self.delete_all(caller, group, request.force).await?;
                told(format!("{count} sandboxes are being deleted"))
            }
            _ => Err(invalid("identifier", "give only one of `identifier`, `group` and `delete_all`")),
        }
    }

    /// All of a group, or all: those that the caller may delete.
    async fn delete_all(&self, caller: &Principal, group: &str, force: bool) -> Result<usize, Error> {
        let visible = self.parts.sandboxes.seen_by(caller);
        let mut count = 0;
        let mut before = None;
        loop {
            let group = (!group.is_empty()).then(|| group.to_owned());
            let rows = visible.list(Filter { group, limit: DELETE_PAGE, before, ..Filter::default() }).await?;
            for row in &rows {
                match visible.delete(row.id.as_str(), force).await {
                    Ok(_) => count += 1,
                    // Others' are left alone, and one may have gone by itself.
                    Err(error) if matches!(error.code, Code::PermissionDenied | Code::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            match rows.last() {
                Some(last) if rows.len() == DELETE_PAGE => before = Some((last.created_at, last.id.to_string())),
                _ => return Ok(count),
            }
        }
    }

    pub(super) async fn wait(
        &self,
        caller: &Principal,
        request: WaitForSandboxRequest,
    ) -> Result<WaitForSandboxResponse, Error> {
        let timeout = wait_timeout(unsigned("timeout_seconds", request.timeout_seconds)?).map_err(in_our_words)?;
        let deadline = tokio::time::Instant::now() + timeout;
        let visible = self.parts.sandboxes.seen_by(caller);
        let ids = match (request.identifier.as_str(), request.group.as_str()) {
            ("", "") => return Err(invalid("identifier", "it is missing: give an id, a name or a group")),
            ("", group) => {
                let filter = Filter { group: Some(group.to_owned()), limit: GROUP_MAX + 1, ..Filter::default() };
                let rows = visible.list(filter).await?;
                if rows.is_empty() {
                    let message = format!("the group `{}` has no sandbox", clip(group));
                    return Err(Error::new(Code::NotFound, "group_unknown", message));
                }
                if rows.len() > GROUP_MAX {
                    let message =
                        format!("the group `{}` has more than {GROUP_MAX} sandboxes: wait for each", clip(group));
                    return Err(Error::new(Code::FailedPrecondition, "group_too_large", message));
                }
                rows.into_iter().map(|row| row.id).collect()
            }
            (identifier, _) => vec![visible.get(identifier).await?.id],
        };
        let mut failed = Vec::new();
        for id in &ids {
            let settled = |row: &Sandbox| {
                row.life.generation.0 >= request.generation && row.life.observed.settles(Desired::Running)
            };
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let row = visible.wait(id.as_str(), left, settled).await?;
            if row.life.observed != State::Running {
                let why = if row.reason.is_empty() { String::new() } else { format!(": {}", row.reason) };
                failed.push(format!("sandbox `{}` is {}{why}", row.name, row.life.observed.as_str()));
            }
        }
        let message = match (failed.is_empty(), ids.len()) {
            (true, 1) => "the sandbox runs".to_owned(),
            (true, count) => format!("{count} sandboxes run"),
            (false, _) => failed.join("; "),
        };
        Ok(WaitForSandboxResponse { success: failed.is_empty(), message, error: None })
    }

    /// The task engine comes later: a task will be a process of the sandbox with a row of its own.
    pub(super) async fn run_task(
        &self,
        caller: &Principal,
        request: RunClaudeTaskRequest,
    ) -> Result<std::convert::Infallible, Error> {
        let sandbox = present("sandbox_identifier", &request.sandbox_identifier)?;
        present("task_description", &request.task_description)?;
        self.parts.sandboxes.seen_by(caller).get(sandbox).await?;
        Err(no_tasks())
    }

    pub(super) async fn task_status(
        &self,
        caller: &Principal,
        request: GetClaudeStatusRequest,
    ) -> Result<GetClaudeStatusResponse, Error> {
        let sandbox = present("sandbox_identifier", &request.sandbox_identifier)?;
        self.parts.sandboxes.seen_by(caller).get(sandbox).await?;
        Err(no_tasks())
    }

    pub(super) async fn task_logs(
        &self,
        caller: &Principal,
        request: GetClaudeLogsRequest,
    ) -> Result<GetClaudeLogsResponse, Error> {
        let sandbox = present("sandbox_identifier", &request.sandbox_identifier)?;
        self.parts.sandboxes.seen_by(caller).get(sandbox).await?;
        Err(no_tasks())
    }

    pub(super) async fn get_key(&self, caller: &Principal) -> Result<GetApiKeyResponse, Error> {
        let missing = || {
            let message = "no key of a model provider is kept: set one with SetAPIKey";
            Error::new(Code::NotFound, "api_key_unset", message)
        };
        let key = self.parts.vault.get(config::PROVIDER_KEY).await?.ok_or_else(missing)?;
        let api_key = if caller.role == Role::Admin {
            self.parts.sandboxes.audit.taken(caller, "provider_key.get", &config::masked(&key)).await?;
            key
        } else {
            config::masked(&key)
        };
        Ok(GetApiKeyResponse { api_key, error: None })
    }

    pub(super) async fn set_key(
        &self,
        caller: &Principal,
        request: SetApiKeyRequest,
    ) -> Result<SetApiKeyResponse, Error> {
        config::check(&request.api_key)?;
        self.parts.sandboxes.audit.taken(caller, "provider_key.set", &config::masked(&request.api_key)).await?;
        self.parts.vault.put(config::PROVIDER_KEY, &request.api_key).await?;
        let message = format!("the key {} is kept", config::masked(&request.api_key));
        Ok(SetApiKeyResponse { success: true, message, error: None })
    }

    pub(super) async fn validate_key(&self, request: &ValidateApiKeyRequest) -> ValidateApiKeyResponse {
        let (valid, message) = match config::flaw(&request.api_key) {
            Some(flaw) => (false, format!("the form is not that of a key, and the provider was not asked: {flaw}")),
            None => match self.parts.provider.ask(&request.api_key).await {
                Verdict::Accepted => (true, "the provider accepts the key".to_owned()),
                Verdict::Refused => (false, "the form is that of a key, but the provider refuses it".to_owned()),
                Verdict::Unknown(why) => (
                    true,
                    format!("only the form was checked, which is that of a key: the provider said nothing: {why}"),
                ),
            },
        };
        ValidateApiKeyResponse { valid, message, error: None }
    }

    fn info(&self, row: &Sandbox, verbose: bool) -> SandboxInfo {
        info(&self.parts.sandboxes, row, verbose)
    }
}

fn parse_create(request: CreateSandboxRequest) -> Result<NewSandbox, Error> {
    let content = content(&request)?;
    let resources = request.resources.unwrap_or_default();
    let cores = unsigned("resources.cpu", resources.cpu)?;
    let gib = |field, value| Ok::<_, Error>(u64::from(unsigned(field, value)?) * GIB);
    let spec = v1::SandboxSpec {
        content,
        template: resources.snapshot,
        target: resources.target,
        resources: Some(v1::Resources {
            cpu_millis: cores
                .checked_mul(MILLIS_PER_CORE)
                .ok_or_else(|| invalid("resources.cpu", format_args!("{cores} cores are more than any runner has")))?,
            memory_bytes: gib("resources.memory", resources.memory)?,
            disk_bytes: gib("resources.disk", resources.disk)?,
            pids: 0,
        }),
        auto_stop_mins: unsigned("resources.auto_stop", resources.auto_stop)?,
        skip_services: request.skip_daemon,
        locality: if request.is_remote { v1::Locality::Remote } else { v1::Locality::Local }.into(),
        ..Default::default()
    };
    NewSandbox::parse(request.name, spec, Default::default(), request.group)
}

/// What the workspace is filled with: a directory of this machine, which its own runner reads.
fn content(request: &CreateSandboxRequest) -> Result<Option<v1::Content>, Error> {
    if request.source_directory.is_empty() {
        let lonely = !request.branch_name.is_empty() && !request.skip_copy;
        return if lonely { Err(invalid("branch_name", "it needs a `source_directory`")) } else { Ok(None) };
    }
    if request.is_remote {
        let message = "a remote sandbox is not filled from a directory of the server's machine: leave `source_directory` \
                       out and upload the files, as `dispense create --source DIR` does";
        return Err(Error::new(Code::FailedPrecondition, "source_directory", message));
    }
    Ok((!request.skip_copy).then(|| v1::Content {
        directory: request.source_directory.clone(),
        branch: request.branch_name.clone(),
        reset_branch: request.force,
    }))
}

/// What the domain calls a field has another name in this service's messages.
fn in_our_words(error: Error) -> Error {
    const NAMES: [(&str, &str); 9] = [
        ("spec.template", "resources.snapshot"),
        ("spec.target", "resources.target"),
        ("spec.resources.cpu_millis", "resources.cpu"),
        ("spec.resources.memory_bytes", "resources.memory"),
        ("spec.resources.disk_bytes", "resources.disk"),
        ("spec.auto_stop_mins", "resources.auto_stop"),
        ("spec.content.directory", "source_directory"),
        ("spec.content.branch", "branch_name"),
        ("timeout_secs", "timeout_seconds"),
    ];
    renamed(error, |field| {
        let ours = NAMES.iter().find(|(theirs, _)| *theirs == field);
        ours.map_or(field, |(_, ours)| ours).to_owned()
    })
}

fn unsigned(field: &str, value: i32) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| invalid(field, format_args!("{value} is below 0")))
}

fn present<'a>(field: &str, value: &'a str) -> Result<&'a str, Error> {
    if value.is_empty() { Err(invalid(field, "it is missing")) } else { Ok(value) }
}

fn no_tasks() -> Error {
    let message = "this server runs no coding-agent tasks yet: run the agent as a process with `dispense exec`";
    Error::new(Code::FailedPrecondition, "tasks_unavailable", message)
}
