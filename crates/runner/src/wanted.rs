//! From the server's `Desired` to an order for the owner of the box. What the server sends is parsed here;
//! behind this file it is valid.

use std::collections::BTreeMap;

use dispense_api::id::{Generation, SandboxId};
use dispense_api::runner::{Desired, DesiredState};
use dispense_api::source::Source;
use dispense_api::v1;
use dispense_backend::{BoxSpec, Limits, Network};

use crate::content::Content;
use crate::owner::Order;
use crate::plan::Wanted;

/// Before the names of the agent's own variables.
const AGENT_PREFIX: &str = "AGENT_";

/// A `Desired` that no honest server sends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server sent a `Desired` with {0}")]
pub(crate) struct Malformed(&'static str);

/// Parses what is wanted of one sandbox.
pub(crate) fn parse(desired: Desired) -> Result<(SandboxId, Order), Malformed> {
    let sandbox: SandboxId = desired.sandbox_id.parse().map_err(|_| Malformed("no sandbox id"))?;
    let generation = Generation(desired.generation);
    let (log_tail_bytes, trace) = (desired.log_tail_bytes, desired.traceparent.clone());
    let (wanted, spec, content) = match desired.state() {
        DesiredState::Running => {
            let (spec, content) = spec(&sandbox, generation, desired)?;
            (Wanted::Running, Some(spec), content)
        }
        DesiredState::Stopped => (Wanted::Stopped, None, None),
        DesiredState::Absent => (Wanted::Absent, None, None),
        DesiredState::Unspecified => return Err(Malformed("no state")),
    };
    Ok((sandbox, Order { wanted, generation, spec, content, log_tail_bytes, trace }))
}

/// Whether whoever creates a sandbox may set a variable.
fn may_set(key: &str) -> bool {
    const CHOSEN: [&str; 3] = ["AGENT_SSH_PORT", "AGENT_MAX_SESSIONS", "AGENT_IDLE_TIMEOUT"];
    !key.starts_with(AGENT_PREFIX) || CHOSEN.contains(&key)
}

fn spec(
    sandbox: &SandboxId,
    generation: Generation,
    desired: Desired,
) -> Result<(BoxSpec, Option<Content>), Malformed> {
    let spec = desired.spec.ok_or(Malformed("no spec"))?;
    let content = spec.content.map(content).transpose()?;
    let resources = spec.resources.ok_or(Malformed("no resources"))?;
    let network = match v1::Network::try_from(spec.network) {
        Ok(v1::Network::None) => Network::None,
        Ok(v1::Network::Nat) => Network::Nat,
        Ok(v1::Network::Unspecified) | Err(_) => return Err(Malformed("no network")),
    };
    let limits = Limits {
        cpu_millis: resources.cpu_millis,
        memory_bytes: resources.memory_bytes,
        disk_bytes: resources.disk_bytes,
        pids: resources.pids,
    };
    // A sandbox's own variables set only those of the agent that are its creator's to choose.
    let mut env: BTreeMap<String, String> = spec.env.into_iter().filter(|(key, _)| may_set(key)).collect();
    let mut set = |key: &str, value: String| {
        if !value.is_empty() {
            env.insert(key.to_owned(), value);
        }
    };
    set("AGENT_SANDBOX_ID", sandbox.to_string());
    set("AGENT_TOKEN", desired.sandbox_token);
    set("AGENT_REPORT_INTERVAL", format!("{}s", desired.report_interval_secs.max(1)));
    set("AGENT_WORKDIR", spec.workdir);
    set("AGENT_USER", spec.user);
    if spec.skip_services {
        set("AGENT_WORKSPACE_PORT", "0".to_owned());
        set("AGENT_SSH_PORT", "0".to_owned());
    }
    let hostname = if desired.name.is_empty() { sandbox.to_string() } else { desired.name };
    let require_limits = spec.require_limits;
    let spec = BoxSpec {
        sandbox: sandbox.clone(),
        generation,
        template: spec.template,
        limits,
        require_limits,
        network,
        hostname,
        env,
    };
    Ok((spec, content))
}

/// What the sandbox's processes inherit, of all that its agent is started with.
pub(crate) fn environment(spec: &BoxSpec) -> BTreeMap<String, String> {
    let own = spec.env.iter().filter(|(key, _)| !key.starts_with(AGENT_PREFIX));
    own.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn content(content: v1::Content) -> Result<Content, Malformed> {
    let v1::Content { directory, branch, reset_branch } = content;
    if directory.contains("://") {
        let location = directory.parse().map_err(|_| Malformed("no content"))?;
        return Ok(Content::Elsewhere(location));
    }
    // It goes to git as an argument.
    if !directory.starts_with('/') || branch.is_empty() || branch.starts_with('-') {
        return Err(Malformed("no content"));
    }
    Ok(Content::Directory(Source { directory: directory.into(), branch, reset: reset_branch }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired() -> Desired {
        Desired {
            sandbox_id: SandboxId::random().to_string(),
            generation: 3,
            state: DesiredState::Running.into(),
            spec: Some(v1::SandboxSpec {
                template: "host".into(),
                resources: Some(v1::Resources { cpu_millis: 1000, memory_bytes: 1 << 28, disk_bytes: 0, pids: 100 }),
                network: v1::Network::None.into(),
                env: [("A".to_owned(), "1".to_owned()), ("AGENT_TOKEN".to_owned(), "stolen".to_owned())].into(),
                ..v1::SandboxSpec::default()
            }),
            name: "web".into(),
            sandbox_token: "dst_1".into(),
            report_interval_secs: 30,
            log_tail_bytes: 1024,
            traceparent: String::new(),
        }
    }

    #[test]
    fn the_agent_is_configured_by_the_server_and_not_by_the_sandbox() {
        let (_, order) = parse(desired()).expect("valid");
        let spec = order.spec.expect("running");
        assert_eq!(spec.env["AGENT_TOKEN"], "dst_1");
        assert_eq!(spec.env["AGENT_REPORT_INTERVAL"], "30s");
        assert_eq!(spec.env["A"], "1");
        assert_eq!(spec.hostname, "web");
        assert_eq!(environment(&spec), BTreeMap::from([("A".to_owned(), "1".to_owned())]));
    }

    #[test]
    fn what_no_honest_server_sends_is_refused() {
        let broken: [fn(&mut Desired); 5] = [
            |d| d.sandbox_id = "../x".into(),
            |d| d.state = 9,
            |d| d.spec = None,
            |d| d.spec.as_mut().expect("set").network = 7,
            |d| {
                let content = v1::Content { directory: "/srv".into(), branch: "-f".into(), reset_branch: false };
                d.spec.as_mut().expect("set").content = Some(content);
            },
        ];
        for damage in broken {
            let mut desired = desired();
            damage(&mut desired);
            assert!(parse(desired).is_err());
        }
    }
}
