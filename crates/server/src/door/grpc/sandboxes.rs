//! `dispense.v1.SandboxService`.

use std::sync::Arc;

use dispense_api::error::Error;
use dispense_api::v1;
use dispense_api::v1::sandbox_service_server::SandboxService;
use tonic::{Request, Response, Status};

use crate::auth::Principal;
use crate::door::request::{Page, caller, wait_bound, wait_timeout};
use crate::sandbox::Sandbox;
use crate::sandbox::create::NewSandbox;
use crate::sandbox::environment::Change;
use crate::sandbox::lifecycle::{Desired, State};
use crate::sandbox::service::Sandboxes;
use crate::sandbox::spec::{self, invalid};
use crate::sandbox::view::parse_state;
use crate::store::sandboxes::Filter;

pub(super) struct SandboxDoor(pub(super) Arc<Sandboxes>);

type Answer<T> = Result<Response<T>, Status>;

impl SandboxDoor {
    fn answer(&self, sandbox: &Sandbox) -> Answer<v1::Sandbox> {
        Ok(Response::new(self.0.view(sandbox)))
    }
}

/// Creates a sandbox, and waits for it where the request asks for that.
pub(super) async fn create(
    sandboxes: &Sandboxes,
    caller: &Principal,
    request: v1::CreateSandboxRequest,
) -> Result<v1::Sandbox, Error> {
    let timeout = wait_bound(request.wait, request.timeout_secs)?;
    let labels = request.labels.into_iter().collect();
    let new = NewSandbox::parse(request.name, request.spec.unwrap_or_default(), labels, request.group)?;
    let sandbox = sandboxes.seen_by(caller).create(new).await?;
    Ok(sandboxes.view(&sandboxes.settled(sandbox, Desired::Running, timeout).await?))
}

fn environment(sandbox: Sandbox) -> Response<v1::Environment> {
    Response::new(v1::Environment { variables: sandbox.spec.env.into_iter().collect() })
}

#[tonic::async_trait]
impl SandboxService for SandboxDoor {
    async fn create_sandbox(&self, request: Request<v1::CreateSandboxRequest>) -> Answer<v1::Sandbox> {
        let caller = caller(&request)?;
        Ok(Response::new(create(&self.0, &caller, request.into_inner()).await?))
    }

    async fn get_sandbox(&self, request: Request<v1::GetSandboxRequest>) -> Answer<v1::Sandbox> {
        let caller = caller(&request)?;
        self.answer(&self.0.seen_by(&caller).get(&request.into_inner().sandbox).await?)
    }

    async fn list_sandboxes(&self, request: Request<v1::ListSandboxesRequest>) -> Answer<v1::ListSandboxesResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let visible = self.0.seen_by(&caller);
        let page = Page::parse(request.page_size, &request.page_token)?;
        let state =
            |value: &i32| parse_state(*value).ok_or_else(|| invalid("states", format_args!("{value} is no state")));
        let filter = Filter {
            group: (!request.group.is_empty()).then_some(request.group),
            labels: spec::labels(request.labels.into_iter().collect())?,
            states: request.states.iter().map(state).collect::<Result<_, _>>()?,
            limit: page.limit,
            before: page.before.clone(),
            ..Filter::default()
        };
        let rows = visible.list(filter).await?;
        let next_page_token = page.next_token(&rows, |row| (row.created_at, row.id.as_str()));
        let sandboxes = rows.iter().map(|row| self.0.view(row)).collect();
        Ok(Response::new(v1::ListSandboxesResponse { sandboxes, next_page_token }))
    }

    async fn start_sandbox(&self, request: Request<v1::StartSandboxRequest>) -> Answer<v1::Sandbox> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let visible = self.0.seen_by(&caller);
        let timeout = wait_bound(request.wait, request.timeout_secs)?;
        let sandbox = visible.start(&request.sandbox).await?;
        self.answer(&self.0.settled(sandbox, Desired::Running, timeout).await?)
    }

    async fn stop_sandbox(&self, request: Request<v1::StopSandboxRequest>) -> Answer<v1::Sandbox> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let visible = self.0.seen_by(&caller);
        let timeout = wait_bound(request.wait, request.timeout_secs)?;
        let sandbox = visible.stop(&request.sandbox).await?;
        self.answer(&self.0.settled(sandbox, Desired::Stopped, timeout).await?)
    }

    async fn delete_sandbox(&self, request: Request<v1::DeleteSandboxRequest>) -> Answer<v1::Sandbox> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let visible = self.0.seen_by(&caller);
        let timeout = wait_bound(request.wait, request.timeout_secs)?;
        let sandbox = visible.delete(&request.sandbox, request.force).await?;
        self.answer(&self.0.settled(sandbox, Desired::Deleted, timeout).await?)
    }

    async fn wait_sandbox(&self, request: Request<v1::WaitSandboxRequest>) -> Answer<v1::Sandbox> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let visible = self.0.seen_by(&caller);
        let timeout = wait_timeout(request.timeout_secs)?;
        let state =
            |value: &i32| parse_state(*value).ok_or_else(|| invalid("states", format_args!("{value} is no state")));
        let mut states: Vec<State> = request.states.iter().map(state).collect::<Result<_, Error>>()?;
        if states.is_empty() {
            states.push(State::Running);
        }
        let done = |row: &Sandbox| states.contains(&row.life.observed) && row.revision >= request.revision;
        self.answer(&visible.wait(&request.sandbox, timeout, done).await?)
    }

    async fn get_environment(&self, request: Request<v1::GetEnvironmentRequest>) -> Answer<v1::Environment> {
        let caller = caller(&request)?;
        Ok(environment(self.0.seen_by(&caller).get(&request.into_inner().sandbox).await?))
    }

    async fn change_environment(&self, request: Request<v1::ChangeEnvironmentRequest>) -> Answer<v1::Environment> {
        let caller = caller(&request)?;
        let v1::ChangeEnvironmentRequest { sandbox, set, unset } = request.into_inner();
        let change = Change::parse(set.into_iter().collect(), unset)?;
        Ok(environment(self.0.seen_by(&caller).change_environment(&sandbox, change).await?))
    }

    async fn renew_sandbox(&self, request: Request<v1::RenewSandboxRequest>) -> Answer<v1::Sandbox> {
        let caller = caller(&request)?;
        self.answer(&self.0.seen_by(&caller).renew(&request.into_inner().sandbox).await?)
    }
}
