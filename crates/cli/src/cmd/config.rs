//! `dispense config`: which server is used, and where each value comes from.

use dispense_client::Error;
use serde::Serialize;

use crate::args::{ConfigArgs, ConfigCommand, ConfigKey, Global, Output};
use crate::config::{self, Config};
use crate::endpoint::{Endpoint, parse_pin, resolve};
use crate::local::lease;
use crate::settings::{Kind, Setting, Settings, Value};
use crate::show;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShowJson {
    url: String,
    api_key: String,
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runner_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_pin: Option<String>,
    /// Of a server that would be started here.
    server: Vec<SettingJson>,
}

#[derive(Serialize)]
struct SettingJson {
    key: &'static str,
    value: String,
    source: String,
    variable: &'static str,
}

/// Shows or changes the configuration.
pub(super) async fn config(global: &Global, args: ConfigArgs) -> Result<u8, Error> {
    match args.command {
        ConfigCommand::Show => show(global).await,
        ConfigCommand::Set { key, value } => change(key, Some(value)),
        ConfigCommand::Unset { key } => change(key, None),
    }
}

fn change(key: ConfigKey, value: Option<String>) -> Result<u8, Error> {
    let mut config = Config::load()?;
    match key {
        ConfigKey::Url => config.url = value,
        ConfigKey::ApiKey => config.api_key = value,
        ConfigKey::TlsPin => {
            config.tls_pin = value.map(|pin| parse_pin(&pin).map(|pin| pin.to_string())).transpose()?
        }
    }
    let path = config.save()?;
    crate::show::say!("{} is written", path.display());
    Ok(0)
}

async fn show(global: &Global) -> Result<u8, Error> {
    let shown = match resolve(global)? {
        Endpoint::Configured { url, api_key, source, .. } => ShowJson {
            url,
            api_key: masked(&api_key),
            source: source.to_owned(),
            data_dir: None,
            runner_url: None,
            join_token: None,
            tls_pin: None,
            server: vec![],
        },
        Endpoint::Local { data_dir } => {
            // It is asked for, not started: showing changes nothing.
            let lease = lease::find(&data_dir).await?;
            let info = lease.map(|lease| lease.info);
            let source = match &info {
                Some(_) => "the local server of the data directory",
                None => "no server runs: `dispense run` starts one, `dispense up` keeps one",
            };
            ShowJson {
                url: info.as_ref().map(|info| info.url.clone()).unwrap_or_default(),
                api_key: info.as_ref().map(|info| masked(&info.api_key)).unwrap_or_default(),
                source: source.to_owned(),
                data_dir: Some(data_dir.display().to_string()),
                runner_url: info.as_ref().map(|info| info.runner_url.clone()),
                tls_pin: info.as_ref().and_then(|info| info.tls_pin.clone()),
                join_token: info.map(|info| info.join_token),
                server: settings()?,
            }
        }
    };
    match global.output {
        Output::Json => show::json(&shown),
        Output::Table => {
            let file = config::path().map(|path| path.display().to_string()).unwrap_or_default();
            let facts = [
                ("url", Some(shown.url)),
                ("api key", Some(shown.api_key)),
                ("from", Some(shown.source)),
                ("data directory", shown.data_dir),
                ("runners join", shown.runner_url),
                ("join token", shown.join_token),
                ("tls pin", shown.tls_pin),
                ("file", Some(file)),
            ];
            for (name, value) in facts {
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    crate::show::say!("{name:<15} {value}");
                }
            }
            if !shown.server.is_empty() {
                crate::show::say!("");
                let mut table = show::table(&["A SERVER HERE HAS", "VALUE", "FROM", "VARIABLE"]);
                for setting in shown.server {
                    table.add_row([setting.key, &setting.value, &setting.source, setting.variable]);
                }
                show::print(&table);
            }
        }
    }
    Ok(0)
}

fn settings() -> Result<Vec<SettingJson>, Error> {
    let settings = Settings::load(Kind::Server, None, &[])?;
    let row = |(setting, value): (&'static Setting, &Value)| SettingJson {
        key: setting.key,
        value: value.shown(),
        source: value.source.to_string(),
        variable: setting.variable,
    };
    Ok(settings.iter().map(row).collect())
}

/// Enough to tell two keys apart.
fn masked(key: &str) -> String {
    const SHOWN_CHARS: usize = 8;
    key.chars().take(SHOWN_CHARS).chain("…".chars()).collect()
}
