//! What a caller may ask for, parsed: behind this file every value is valid and every default filled in.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::time::Duration;

use dispense_api::error::{Code, Error};
use dispense_api::limits::{self, ports, reports};
use dispense_api::location::Location;
use dispense_api::v1;
use serde::{Deserialize, Serialize};

use crate::placement::Target;

/// The template of a caller who does not say.
const DEFAULT_TEMPLATE: &str = "host";
/// As Docker's image names go, and more than anybody types.
const TEMPLATE_MAX_BYTES: usize = 128;
const USER_MAX_BYTES: usize = 64;
/// Of one sandbox: what the kernel takes for all arguments and variables together.
const ENV_MAX_BYTES: usize = 1 << 20;
const GROUP_MAX_BYTES: usize = 128;
/// A file's name holds no more, and git makes one of it.
const BRANCH_MAX_BYTES: usize = 200;
/// A lease shorter than a slow network's round trips would end sandboxes in use.
const LEASE_MIN_SECS: u32 = 5;
const LEASE_MAX_SECS: u32 = 86_400;
/// A year.
const AUTO_STOP_MAX_MINS: u64 = 525_600;

/// A valid specification. What is stored and what is sent have the same names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) template: String,
    pub(crate) cpu_millis: u32,
    pub(crate) memory_bytes: u64,
    /// 0: the runner's own bound.
    pub(crate) disk_bytes: u64,
    pub(crate) pids: u32,
    pub(crate) network: Network,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) workdir: String,
    pub(crate) user: String,
    pub(crate) ttl_secs: u32,
    pub(crate) lease_secs: u32,
    pub(crate) require_limits: bool,
    /// Neither SSH nor the workspace.
    #[serde(default)]
    pub(crate) skip_services: bool,
    pub(crate) target: String,
    /// 0: never.
    pub(crate) auto_stop_mins: u32,
    #[serde(default)]
    pub(crate) locality: Locality,
    #[serde(default)]
    pub(crate) content: Option<Content>,
}

/// What is in the workspace before anything runs: a directory of the runner's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    /// Absolute, with neither `.` nor `..` in it, or a URL.
    pub(crate) directory: String,
    /// Of a git repository; empty: the sandbox's name.
    pub(crate) branch: String,
    pub(crate) reset_branch: bool,
}

impl Content {
    fn parse(content: v1::Content) -> Result<Self, Error> {
        let v1::Content { directory, branch, reset_branch } = content;
        if directory.contains("://") {
            let location = directory.parse::<Location>();
            let location = location.map_err(|why| invalid("spec.content.directory", why))?;
            return Ok(Self { directory: location.to_string(), branch: String::new(), reset_branch: false });
        }
        let path = Path::new(&directory);
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !path.is_absolute() || !plain || directory.contains('\0') || directory.len() > limits::PATH_MAX_BYTES {
            let why = format!("`{}` is not an absolute path without `..`", clip(&directory));
            return Err(invalid("spec.content.directory", why));
        }
        if !branch.is_empty() {
            check_branch(&branch).map_err(|why| {
                invalid("spec.content.branch", format_args!("`{}` is no name of a branch: {why}", clip(&branch)))
            })?;
        }
        Ok(Self { directory, branch, reset_branch })
    }

    /// As runners see it. `name` is the sandbox's.
    pub(crate) fn wire(&self, name: &str) -> v1::Content {
        let branch = if self.branch.is_empty() { name } else { &self.branch };
        v1::Content { directory: self.directory.clone(), branch: branch.to_owned(), reset_branch: self.reset_branch }
    }
}

/// The rules of `git check-ref-format --branch`.
fn check_branch(name: &str) -> Result<(), &'static str> {
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    let bad_part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
    if name.len() > BRANCH_MAX_BYTES {
        Err("it is too long")
    } else if name.chars().any(forbidden) || name.contains("..") || name.contains("@{") {
        Err("it has characters that git forbids")
    } else if name.starts_with('-') || name == "@" || name.ends_with('.') || name.split('/').any(bad_part) {
        Err("git forbids its form")
    } else {
        Ok(())
    }
}

/// On whose machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Locality {
    #[default]
    Any,
    /// The server's own.
    Local,
    /// Not the server's own.
    Remote,
}

impl Locality {
    /// As clients write it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }

    fn wire(self) -> v1::Locality {
        match self {
            Self::Any => v1::Locality::Unspecified,
            Self::Local => v1::Locality::Local,
            Self::Remote => v1::Locality::Remote,
        }
    }
}

/// Of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Network {
    None,
    Nat,
}

impl Network {
    /// As clients write it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Nat => "nat",
        }
    }

    pub(crate) fn wire(self) -> v1::Network {
        match self {
            Self::None => v1::Network::None,
            Self::Nat => v1::Network::Nat,
        }
    }
}

/// A field that is not valid: the path stands in the message and in the details.
pub(crate) fn invalid(field: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Code::InvalidArgument, "invalid_field", format!("{field}: {why}")).with("field", field)
}

/// The same error with its field by the name that it has at another door.
pub(crate) fn renamed(mut error: Error, name: impl FnOnce(&str) -> String) -> Error {
    let Some(field) = error.details.get("field").cloned() else { return error };
    let name = name(&field);
    if let Some(why) = error.message.strip_prefix(&field) {
        error.message = format!("{name}{why}");
    }
    error.with("field", name)
}

impl Spec {
    /// Parses what came from outside.
    pub(crate) fn parse(spec: v1::SandboxSpec) -> Result<Self, Error> {
        let resources = spec.resources.unwrap_or_default();
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let parsed = Self {
            template: template(spec.template)?,
            cpu_millis: or(resources.cpu_millis, limits::default::CPU_MILLIS),
            memory_bytes: if resources.memory_bytes == 0 {
                limits::default::MEMORY_BYTES
            } else {
                resources.memory_bytes
            },
            disk_bytes: resources.disk_bytes,
            pids: or(resources.pids, limits::default::PIDS),
            network: match v1::Network::try_from(spec.network) {
                Ok(v1::Network::Unspecified | v1::Network::None) => Network::None,
                Ok(v1::Network::Nat) => Network::Nat,
                Err(_) => return Err(invalid("spec.network", "use `none` or `nat`")),
            },
            env: variables("spec.env", spec.env.into_iter().collect())?,
            workdir: workdir(spec.workdir)?,
            user: user(spec.user)?,
            ttl_secs: spec.ttl_secs,
            lease_secs: spec.lease_secs,
            require_limits: spec.require_limits,
            skip_services: spec.skip_services,
            target: spec.target,
            auto_stop_mins: spec.auto_stop_mins,
            locality: match v1::Locality::try_from(spec.locality) {
                Ok(v1::Locality::Unspecified) => Locality::Any,
                Ok(v1::Locality::Local) => Locality::Local,
                Ok(v1::Locality::Remote) => Locality::Remote,
                Err(_) => return Err(invalid("spec.locality", "use `local` or `remote`")),
            },
            content: spec.content.map(Content::parse).transpose()?,
        };
        parsed.in_range()?;
        Ok(parsed)
    }

    fn in_range(&self) -> Result<(), Error> {
        let range = |field: &str, value: u64, range: std::ops::RangeInclusive<u64>, unit: &str| {
            if range.contains(&value) {
                return Ok(());
            }
            Err(invalid(field, format_args!("{value} is not within {} to {} {unit}", range.start(), range.end())))
        };
        let wide = |bounds: std::ops::RangeInclusive<u32>| u64::from(*bounds.start())..=u64::from(*bounds.end());
        range("spec.resources.cpu_millis", self.cpu_millis.into(), wide(limits::CPU_MILLIS), "thousandths of a core")?;
        range("spec.resources.memory_bytes", self.memory_bytes, limits::MEMORY_BYTES, "bytes")?;
        range("spec.resources.pids", self.pids.into(), wide(limits::PIDS), "processes")?;
        if self.disk_bytes != 0 {
            range("spec.resources.disk_bytes", self.disk_bytes, limits::DISK_BYTES, "bytes")?;
        }
        range("spec.ttl_secs", self.ttl_secs.into(), 0..=u64::from(limits::TTL_MAX_SECS), "seconds")?;
        range("spec.auto_stop_mins", self.auto_stop_mins.into(), 0..=AUTO_STOP_MAX_MINS, "minutes")?;
        if self.lease_secs != 0 {
            range("spec.lease_secs", self.lease_secs.into(), wide(LEASE_MIN_SECS..=LEASE_MAX_SECS), "seconds")?;
        }
        Target::parse(&self.target).map_err(|why| invalid("spec.target", why))?;
        Ok(())
    }

    /// Between two reports of its agent.
    pub(crate) fn report_interval(&self) -> Duration {
        self.env.get(reports::VARIABLE).and_then(|text| reports::chosen(text)).unwrap_or(reports::INTERVAL)
    }

    /// Refuses SSH and the workspace where the creator has.
    pub(crate) fn offers_services(&self) -> Result<(), Error> {
        if !self.skip_services {
            return Ok(());
        }
        let message = "this sandbox was created without SSH and the workspace (`skip_daemon`, `--skip-services`): use \
                       `dispense exec` and `dispense cp`";
        Err(Error::new(Code::FailedPrecondition, "services_skipped", message))
    }

    /// Where the agent listens inside, for the workspace and SSH.
    pub(crate) fn agent_ports(&self) -> [Option<u16>; 2] {
        if self.skip_services {
            return [None; 2];
        }
        let ssh = self.env.get(ports::SSH_VARIABLE).map(String::as_str);
        [Some(ports::WORKSPACE), ports::chosen(ssh, ports::SSH)]
    }

    /// As clients and runners see it.
    pub(crate) fn wire(&self) -> v1::SandboxSpec {
        v1::SandboxSpec {
            template: self.template.clone(),
            resources: Some(v1::Resources {
                cpu_millis: self.cpu_millis,
                memory_bytes: self.memory_bytes,
                disk_bytes: self.disk_bytes,
                pids: self.pids,
            }),
            network: self.network.wire().into(),
            env: self.env.clone().into_iter().collect(),
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            ttl_secs: self.ttl_secs,
            lease_secs: self.lease_secs,
            require_limits: self.require_limits,
            skip_services: self.skip_services,
            target: self.target.clone(),
            auto_stop_mins: self.auto_stop_mins,
            locality: self.locality.wire().into(),
            content: self.content.as_ref().map(|content| content.wire("")),
        }
    }
}

fn template(text: String) -> Result<String, Error> {
    if text.is_empty() {
        return Ok(DEFAULT_TEMPLATE.to_owned());
    }
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@".contains(&byte);
    if text.len() > TEMPLATE_MAX_BYTES || !text.bytes().all(valid) || text.contains("..") {
        return Err(invalid(
            "spec.template",
            format_args!("`{}` is not the name of a template: use letters, digits and `-_.:/@`", clip(&text)),
        ));
    }
    Ok(text)
}

fn workdir(text: String) -> Result<String, Error> {
    let bad = text.contains('\0') || text.len() > limits::PATH_MAX_BYTES || !(text.is_empty() || text.starts_with('/'));
    if bad {
        return Err(invalid("spec.workdir", format_args!("`{}` is not an absolute path", clip(&text))));
    }
    Ok(text)
}

fn user(text: String) -> Result<String, Error> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.len() > USER_MAX_BYTES || !text.bytes().all(valid) {
        return Err(invalid("spec.user", format_args!("`{}` is neither a user name nor a uid", clip(&text))));
    }
    Ok(text)
}

/// Parses variables of processes. A refusal names the variable and never its value.
pub(super) fn variables(field: &str, map: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    bounded(field, &map, limits::ENV_VALUE_MAX_BYTES)?;
    let mut total = 0;
    for (key, value) in &map {
        total += key.len() + value.len() + 2;
        if key.contains('=') || key.contains('\0') || value.contains('\0') {
            return Err(invalid(field, format_args!("`{}` is not a variable: no `=` or NUL", clip(key))));
        }
        if key == reports::VARIABLE && reports::chosen(value).is_none() {
            let why = format_args!("`{}`: `{}` is no time from 1s to 1h", reports::VARIABLE, clip(value));
            return Err(invalid(field, why));
        }
    }
    if total > ENV_MAX_BYTES {
        return Err(invalid(field, format_args!("{total} bytes in all are over the limit of {ENV_MAX_BYTES}")));
    }
    Ok(map)
}

fn bounded(field: &str, map: &BTreeMap<String, String>, value_max: usize) -> Result<(), Error> {
    if map.len() > limits::MAP_MAX_ENTRIES {
        let max = limits::MAP_MAX_ENTRIES;
        return Err(invalid(field, format_args!("{} entries are over the limit of {max}", map.len())));
    }
    for (key, value) in map {
        if key.is_empty() || key.len() > limits::MAP_KEY_MAX_BYTES || value.len() > value_max {
            return Err(invalid(
                field,
                format_args!(
                    "`{}`: a key has 1 to {} bytes and a value at most {value_max}",
                    clip(key),
                    limits::MAP_KEY_MAX_BYTES
                ),
            ));
        }
    }
    Ok(())
}

/// Parses labels.
pub(crate) fn labels(map: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    bounded("labels", &map, limits::MAP_KEY_MAX_BYTES)?;
    Ok(map)
}

/// Parses a group.
pub(crate) fn group(text: String) -> Result<String, Error> {
    if text.len() > GROUP_MAX_BYTES || text.chars().any(char::is_control) {
        return Err(invalid("group", format_args!("at most {GROUP_MAX_BYTES} bytes and no control characters")));
    }
    Ok(text)
}

/// The start of a text from outside, for a message.
pub(crate) fn clip(text: &str) -> String {
    const CLIP_CHARS: usize = 80;
    text.chars().take(CLIP_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_spec_gets_every_default() {
        let spec = Spec::parse(v1::SandboxSpec::default()).expect("valid");
        assert_eq!((spec.template.as_str(), spec.network), ("host", Network::None));
        assert_eq!((spec.cpu_millis, spec.pids), (limits::default::CPU_MILLIS, limits::default::PIDS));
        assert_eq!(Spec::parse(spec.wire()), Ok(spec), "what was parsed parses again");
    }

    #[test]
    fn the_agents_ports_are_those_that_the_creator_chose() {
        let ports = |value: Option<&str>, skip_services| {
            let env = value.map(|value| ("AGENT_SSH_PORT".to_owned(), value.to_owned())).into_iter().collect();
            let spec = v1::SandboxSpec { env, skip_services, ..Default::default() };
            Spec::parse(spec).expect("valid").agent_ports()
        };
        assert_eq!(ports(None, false), [Some(3001), Some(2222)]);
        assert_eq!(ports(Some("2200"), false), [Some(3001), Some(2200)]);
        assert_eq!(ports(Some("0"), false), [Some(3001), None]);
        // As the agent has it, which says so in its log.
        assert_eq!(ports(Some("many"), false), [Some(3001), Some(2222)]);
        assert_eq!(ports(Some("2200"), true), [None, None]);
    }

    #[test]
    fn a_refusal_names_the_field() {
        let resources = |resources| v1::SandboxSpec { resources: Some(resources), ..Default::default() };
        let content = |directory: &str, branch: &str| v1::SandboxSpec {
            content: Some(v1::Content { directory: directory.into(), branch: branch.into(), ..Default::default() }),
            ..Default::default()
        };
        Spec::parse(content("/srv/project", "feature/one")).expect("the allowed neighbour");
        let reporting = |interval: &str| {
            let env = [(reports::VARIABLE.to_owned(), interval.to_owned())].into();
            v1::SandboxSpec { env, ..Default::default() }
        };
        let often = Spec::parse(reporting("2s")).expect("the allowed neighbour");
        assert_eq!(often.report_interval(), Duration::from_secs(2));
        let cases: Vec<(v1::SandboxSpec, &str)> = vec![
            (resources(v1::Resources { memory_bytes: 1024, ..Default::default() }), "spec.resources.memory_bytes"),
            (resources(v1::Resources { cpu_millis: 1, ..Default::default() }), "spec.resources.cpu_millis"),
            (resources(v1::Resources { pids: 1, ..Default::default() }), "spec.resources.pids"),
            (resources(v1::Resources { disk_bytes: 1, ..Default::default() }), "spec.resources.disk_bytes"),
            (v1::SandboxSpec { template: "../etc".into(), ..Default::default() }, "spec.template"),
            (v1::SandboxSpec { workdir: "relative".into(), ..Default::default() }, "spec.workdir"),
            (v1::SandboxSpec { user: "a b".into(), ..Default::default() }, "spec.user"),
            (v1::SandboxSpec { network: 9, ..Default::default() }, "spec.network"),
            (v1::SandboxSpec { lease_secs: 1, ..Default::default() }, "spec.lease_secs"),
            (v1::SandboxSpec { ttl_secs: u32::MAX, ..Default::default() }, "spec.ttl_secs"),
            (v1::SandboxSpec { env: [("A=B".into(), "".into())].into(), ..Default::default() }, "spec.env"),
            (reporting("1ms"), "spec.env"),
            (reporting("often"), "spec.env"),
            (content("relative", ""), "spec.content.directory"),
            (content("/srv/../etc", ""), "spec.content.directory"),
            (content("/srv", "-f"), "spec.content.branch"),
            (content("/srv", "a..b"), "spec.content.branch"),
            (content("/srv", "a/.b"), "spec.content.branch"),
            (content("/srv", "a b"), "spec.content.branch"),
            (v1::SandboxSpec { env: [("A".into(), "x".repeat(1 << 20))].into(), ..Default::default() }, "spec.env"),
        ];
        for (spec, field) in cases {
            let error = Spec::parse(spec).expect_err(field);
            assert_eq!((error.code, error.details["field"].as_str()), (Code::InvalidArgument, field));
        }
    }
}
