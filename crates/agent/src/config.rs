//! The agent's configuration: its `AGENT_*` variables. Everything else in its environment is what every
//! process of the sandbox inherits.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use dispense_api::duration::parse_duration;
use dispense_api::limits::{ports, reports};

/// The bearer token of heartbeats.
pub(crate) const TOKEN: &str = "AGENT_TOKEN";
/// Connections to the services inside the sandbox, when nothing is said, and at most: those that wait to be taken are bounded.
const MAX_SESSIONS_DEFAULT: usize = 64;
const MAX_SESSIONS_MAX: usize = 512;
/// Where commands are looked for when the sandbox has no PATH.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How the agent is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// `AGENT_SANDBOX_ID`.
    pub sandbox_id: String,
    /// `AGENT_SERVER_URL`: where heartbeats are posted; without it they go through the runner.
    pub server_url: Option<String>,
    /// `AGENT_TOKEN`: the bearer token of heartbeats.
    pub token: String,
    /// `AGENT_REPORT_INTERVAL`, a Go duration.
    pub report_interval: Duration,
    /// `AGENT_WORKDIR`.
    pub workdir: PathBuf,
    /// `AGENT_USER`.
    pub user: String,
    /// `AGENT_WORKSPACE_PORT`: where the workspace is inside the sandbox; `None` for 0, which is nowhere.
    pub workspace_port: Option<u16>,
    /// `AGENT_SSH_PORT`: the same for SSH.
    pub ssh_port: Option<u16>,
    /// `AGENT_MAX_SESSIONS`: connections to both at the same time.
    pub max_sessions: usize,
    /// `AGENT_IDLE_TIMEOUT`, a Go duration: a connection to either on which nothing is said for so long is closed.
    /// `None` for 0.
    pub idle_timeout: Option<Duration>,
    /// What every process inherits, until the runner says something else.
    pub base_env: BTreeMap<String, String>,
}

impl Config {
    /// Reads the variables; what cannot be used is told and replaced by its default, since an agent that does
    /// not start helps nobody.
    pub fn from_env(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let mut own = BTreeMap::new();
        let mut base_env = BTreeMap::new();
        for (key, value) in variables {
            let (Ok(key), Ok(value)) = (key.into_string(), value.into_string()) else { continue };
            if key.starts_with("AGENT_") {
                own.insert(key, value)
            } else {
                base_env.insert(key, value)
            };
        }
        let base_env = inherited(base_env);
        let mut take = |key: &str| own.remove(key).filter(|value| !value.is_empty());
        let report_interval = take(reports::VARIABLE).map_or(reports::INTERVAL, |text| {
            parse_duration(&text).filter(|interval| !interval.is_zero()).unwrap_or_else(|| {
                tracing::warn!(%text, "AGENT_REPORT_INTERVAL is not a duration such as 30s: using 30s");
                reports::INTERVAL
            })
        });
        Self {
            sandbox_id: take("AGENT_SANDBOX_ID").unwrap_or_default(),
            server_url: take("AGENT_SERVER_URL"),
            token: take(TOKEN).unwrap_or_default(),
            report_interval,
            workdir: take("AGENT_WORKDIR").map_or_else(|| "/workspace".into(), PathBuf::from),
            user: take("AGENT_USER").unwrap_or_else(|| "root".to_owned()),
            workspace_port: port(&mut take, "AGENT_WORKSPACE_PORT", ports::WORKSPACE),
            ssh_port: port(&mut take, ports::SSH_VARIABLE, ports::SSH),
            max_sessions: number(&mut take, "AGENT_MAX_SESSIONS", MAX_SESSIONS_DEFAULT).min(MAX_SESSIONS_MAX),
            idle_timeout: take("AGENT_IDLE_TIMEOUT")
                .and_then(|text| {
                    parse_duration(&text).or_else(|| {
                        tracing::warn!(%text, "AGENT_IDLE_TIMEOUT is not a duration such as 30m: nothing is closed");
                        None
                    })
                })
                .filter(|timeout| !timeout.is_zero()),
            base_env,
        }
    }
}

/// The number of a variable, or the default where it is none.
fn number<T: FromStr + Copy + Display>(
    take: &mut impl FnMut(&str) -> Option<String>,
    key: &'static str,
    default: T,
) -> T {
    take(key).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| {
            tracing::warn!(%text, "{key} is not a number that can be: using {default}");
            default
        })
    })
}

fn port(take: &mut impl FnMut(&str) -> Option<String>, key: &'static str, default: u16) -> Option<u16> {
    let text = take(key);
    if let Some(text) = text.as_deref().filter(|text| text.parse::<u16>().is_err()) {
        tracing::warn!(%text, "{key} is not a number that can be: using {default}");
    }
    ports::chosen(text.as_deref(), default)
}

/// What processes inherit of a sandbox's variables.
pub(crate) fn inherited(mut variables: BTreeMap<String, String>) -> BTreeMap<String, String> {
    variables.entry("PATH".to_owned()).or_insert_with(|| PATH_DEFAULT.to_owned());
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_variables_do_not_reach_the_processes() {
        let variables = [("AGENT_TOKEN", "secret"), ("AGENT_REPORT_INTERVAL", "5s"), ("LANG", "C.UTF-8")];
        let config = Config::from_env(variables.into_iter().map(|(key, value)| (key.into(), value.into())));
        assert_eq!(config.report_interval, Duration::from_secs(5));
        assert_eq!(config.base_env.keys().collect::<Vec<_>>(), ["LANG", "PATH"]);
    }
}
