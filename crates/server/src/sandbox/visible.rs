//! What one caller sees and may change. The doors ask here and nowhere else: no row leaves for a caller who may
//! not see it, and none is changed for one who may not.
//!
//! A sandbox outside the scope of the caller's key does not exist for it. Within it everybody reads; changing and
//! using a sandbox is for the account that created it, for members whose key names it, and for administrators.

use std::time::Duration;

use dispense_api::error::{Code, Error, reason};
use dispense_api::id::SandboxId;
use dispense_api::method::{Access, Method};
use dispense_api::v1::ProcessLog;

use super::Sandbox;
use super::create::NewSandbox;
use super::environment::Change;
use super::lifecycle::Desired;
use super::service::Sandboxes;
use super::spec::invalid;
use super::usage::{Sample, Tier};
use crate::auth::{Principal, Role, Scope};
use crate::events::{Follower, From};
use crate::job::{Job, JobStatus};
use crate::refusal::{unknown_job, unknown_sandbox};
use crate::relay::Route;
use crate::store::{jobs, sandboxes};

/// An hour of usage, when nothing else is asked for.
const USAGE_DEFAULT_MICROS: i64 = 3_600_000_000;

/// The sandboxes, through the eyes of one caller.
pub(crate) struct Visible<'a> {
    sandboxes: &'a Sandboxes,
    caller: &'a Principal,
}

impl Sandboxes {
    /// As this caller sees them.
    pub(crate) fn seen_by<'a>(&'a self, caller: &'a Principal) -> Visible<'a> {
        Visible { sandboxes: self, caller }
    }
}

impl Visible<'_> {
    fn sees(&self, sandbox: &Sandbox) -> bool {
        self.caller.scope.contains(&sandbox.id, &sandbox.group)
    }

    /// Of a sandbox that the caller sees.
    fn may_change(&self, name: &str, owner: &str) -> Result<(), Error> {
        let names_it = matches!(self.caller.scope, Scope::Sandboxes(_));
        if self.caller.role == Role::Admin || owner == self.caller.account || names_it {
            return Ok(());
        }
        let shown = super::spec::clip(name);
        let message =
            format!("sandbox `{shown}` was created by another account, and this API key is no administrator's");
        Err(Error::new(Code::PermissionDenied, "not_owner", message).with("sandbox", shown))
    }

    /// The sandbox of an id or name.
    pub(crate) async fn get(&self, id_or_name: &str) -> Result<Sandbox, Error> {
        let sandbox = self.sandboxes.get(named(id_or_name)?).await?;
        if self.sees(&sandbox) { Ok(sandbox) } else { Err(unknown_sandbox(id_or_name)) }
    }

    /// One that this caller may change, which is noted.
    async fn own(&self, action: &str, id_or_name: &str) -> Result<Sandbox, Error> {
        let sandbox = self.get(id_or_name).await;
        self.noted(action, id_or_name, sandbox.and_then(|row| self.may_change(id_or_name, &row.owner).map(|()| row)))
            .await
    }

    /// Notes what was asked for, and whether it was refused.
    async fn noted<T>(&self, action: &str, target: &str, allowed: Result<T, Error>) -> Result<T, Error> {
        let audit = &self.sandboxes.audit;
        match allowed {
            Ok(allowed) => audit.taken(self.caller, action, target).await.map(|()| allowed),
            Err(error) => Err(audit.refused(self.caller, action, target, error).await),
        }
    }

    /// A page, newest first.
    pub(crate) async fn list(&self, filter: sandboxes::Filter) -> Result<Vec<Sandbox>, Error> {
        let filter = sandboxes::Filter { scope: self.caller.scope.clone(), ..filter };
        Ok(sandboxes::list(self.sandboxes.store.readers(), &filter).await?)
    }

    /// One that this caller may use, which is noted.
    pub(crate) async fn used(&self, action: &str, id_or_name: &str) -> Result<Sandbox, Error> {
        self.own(action, id_or_name).await
    }

    /// Accepts a new sandbox, which belongs to the caller.
    pub(crate) async fn create(&self, mut new: NewSandbox) -> Result<Sandbox, Error> {
        let allowed = self.may_create(&mut new);
        let name = new.name.as_ref().map_or("", |name| name.as_str());
        self.noted("sandbox.create", name, allowed).await?;
        new.owner.clone_from(&self.caller.account);
        new.trace.clone_from(&self.caller.origin.trace);
        self.sandboxes.create(new).await
    }

    /// Refuses what [`Visible::create`] would refuse, before anything is given up for it.
    pub(crate) fn could_create(&self, new: &NewSandbox) -> Result<(), Error> {
        self.may_create(&mut new.clone())?;
        self.sandboxes.check(new)
    }

    fn may_create(&self, new: &mut NewSandbox) -> Result<(), Error> {
        let refused = |message: String| Err(Error::new(Code::PermissionDenied, "scope", message));
        match &self.caller.scope {
            Scope::All => Ok(()),
            Scope::Group(group) if new.group.is_empty() || new.group == *group => {
                new.group.clone_from(group);
                Ok(())
            }
            Scope::Group(group) => refused(format!("this API key creates sandboxes only in the group `{group}`")),
            Scope::Sandboxes(_) => refused("this API key is for sandboxes that exist and creates none".into()),
        }
    }

    /// Follows what happens.
    pub(crate) async fn events(&self, from: From, follow: bool) -> Result<Follower, Error> {
        let (store, scope) = (self.sandboxes.store.clone(), self.caller.scope.clone());
        Follower::open(store, &self.sandboxes.ticker, scope, from, follow).await
    }

    /// Wants it running.
    pub(crate) async fn start(&self, id_or_name: &str) -> Result<Sandbox, Error> {
        self.sandboxes.start(self.own("sandbox.start", id_or_name).await?.id.as_str()).await
    }

    /// Starts one that was stopped, by whomever, for a caller who comes to work in it.
    pub(crate) async fn wake(&self, id_or_name: &str, timeout: Duration) -> Result<(), Error> {
        if self.get(id_or_name).await?.life.desired != Desired::Stopped {
            return Ok(());
        }
        let sandbox = self.own("sandbox.start", id_or_name).await?;
        self.sandboxes.wake(&sandbox, timeout).await.map(drop)
    }

    /// Wants its processes ended and its files kept.
    pub(crate) async fn stop(&self, id_or_name: &str) -> Result<Sandbox, Error> {
        self.sandboxes.stop(self.own("sandbox.stop", id_or_name).await?.id.as_str()).await
    }

    /// Sets and removes variables of its processes. What they are is not noted.
    pub(crate) async fn change_environment(&self, id_or_name: &str, change: Change) -> Result<Sandbox, Error> {
        let id = self.own("sandbox.environment", id_or_name).await?.id;
        self.sandboxes.change_environment(&id, change).await
    }

    /// Extends the lease.
    pub(crate) async fn renew(&self, id_or_name: &str) -> Result<Sandbox, Error> {
        // What a client does every few seconds is not noted.
        let sandbox = self.get(id_or_name).await?;
        self.may_change(id_or_name, &sandbox.owner)?;
        self.sandboxes.renew(sandbox.id.as_str()).await
    }

    /// Wants it gone; a repeated delete finds the one that had the name last.
    pub(crate) async fn delete(&self, id_or_name: &str, force: bool) -> Result<Sandbox, Error> {
        let found = sandboxes::find_any(self.sandboxes.store.readers(), named(id_or_name)?).await?;
        let sandbox = found.filter(|row| self.sees(row)).ok_or_else(|| unknown_sandbox(id_or_name));
        let allowed = sandbox.and_then(|row| self.may_change(id_or_name, &row.owner).map(|()| row));
        let sandbox = self.noted("sandbox.delete", id_or_name, allowed).await?;
        self.sandboxes.delete(sandbox.id.as_str(), force).await
    }

    /// Waits until the row satisfies `done`.
    pub(crate) async fn wait(
        &self,
        id_or_name: &str,
        timeout: Duration,
        done: impl Fn(&Sandbox) -> bool,
    ) -> Result<Sandbox, Error> {
        let id = self.get(id_or_name).await?.id;
        self.sandboxes.wait(&id, timeout, done).await
    }

    /// What is kept of a sandbox's processes, also of a deleted one.
    pub(crate) async fn logs(&self, id_or_name: &str) -> Result<(Vec<ProcessLog>, Vec<Job>), Error> {
        let (sandbox, logs, jobs) = self.sandboxes.logs(id_or_name).await?;
        if self.sees(&sandbox) { Ok((logs, jobs)) } else { Err(unknown_sandbox(id_or_name)) }
    }

    /// What a sandbox used between two times in microseconds, also a deleted one; an hour when `from` is absent.
    pub(crate) async fn usage(
        &self,
        id_or_name: &str,
        from: Option<i64>,
        to: Option<i64>,
    ) -> Result<(Tier, Vec<Sample>), Error> {
        let to = to.unwrap_or_else(|| self.sandboxes.clock.now());
        let from = from.unwrap_or_else(|| to.saturating_sub(USAGE_DEFAULT_MICROS));
        let (sandbox, tier, samples) = self.sandboxes.usage(id_or_name, from, to).await?;
        if self.sees(&sandbox) { Ok((tier, samples)) } else { Err(unknown_sandbox(id_or_name)) }
    }

    /// A job of a sandbox that the caller sees.
    pub(crate) async fn job(&self, id: &str) -> Result<Job, Error> {
        let job = self.sandboxes.job(id).await?;
        if self.caller.scope == Scope::All {
            return Ok(job);
        }
        match self.sandboxes.find(job.sandbox.as_str()).await? {
            Some(sandbox) if self.sees(&sandbox) => Ok(job),
            _ => Err(unknown_job(id)),
        }
    }

    /// A page of jobs, newest first. Jobs outlive the sandbox's name: an id is taken as it is.
    pub(crate) async fn jobs(
        &self,
        sandbox: &str,
        status: Option<JobStatus>,
        before: Option<(i64, String)>,
        limit: usize,
    ) -> Result<Vec<Job>, Error> {
        let sandbox: Option<SandboxId> = match sandbox {
            "" => None,
            text => Some(match text.parse() {
                Ok(id) => id,
                Err(_) => self.get(text).await?.id,
            }),
        };
        let (readers, scope) = (self.sandboxes.store.readers(), &self.caller.scope);
        Ok(jobs::list(readers, scope, sandbox.as_ref(), status, before, limit).await?)
    }

    /// Where the agent of a sandbox is, for a call of a method that reads or changes it.
    pub(crate) async fn route(&self, id_or_name: &str, method: Method, timeout: Duration) -> Result<Route, Error> {
        // Before it is woken or waited for.
        let allowed = self.may_call(id_or_name, method.access()).await;
        let wakes = match method.access() {
            Access::Read => {
                allowed?;
                // Who may not start it does not wake it by looking.
                self.caller.role >= Role::Member && self.may_call(id_or_name, Access::Write).await.is_ok()
            }
            Access::Write | Access::Runner => {
                self.noted(method.path(), id_or_name, allowed).await?;
                true
            }
        };
        self.sandboxes.route(id_or_name, wakes, timeout).await
    }

    async fn may_call(&self, id_or_name: &str, access: Access) -> Result<(), Error> {
        if access == Access::Runner {
            let message = "only the sandbox's own runner speaks to its agent so";
            return Err(Error::new(Code::PermissionDenied, reason::PROTOCOL, message));
        }
        if self.caller.role == Role::Admin && self.caller.scope == Scope::All {
            return Ok(());
        }
        let (id, group, owner) = match self.sandboxes.live.route(id_or_name) {
            Some(route) => (route.sandbox, route.group, route.owner),
            None => {
                let sandbox = self.sandboxes.get(id_or_name).await?;
                (sandbox.id, sandbox.group, sandbox.owner)
            }
        };
        if !self.caller.scope.contains(&id, &group) {
            return Err(unknown_sandbox(id_or_name));
        }
        if access == Access::Write { self.may_change(id_or_name, &owner) } else { Ok(()) }
    }
}

/// An id or a name, and not nothing.
fn named(id_or_name: &str) -> Result<&str, Error> {
    if id_or_name.is_empty() { Err(invalid("sandbox", "it is missing: give an id or a name")) } else { Ok(id_or_name) }
}
