//! The settings of a server: a flag beats a variable beats the file beats the default. Each value knows where it
//! came from; a key that does not exist is refused by name.

mod file;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dispense_client::Error;
use dispense_server::{AccessConfig, Database, PreviewConfig, SshConfig, TlsConfig, WorkspaceConfig};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config;
use crate::failure::{local, usage};
use crate::units;

/// Names the file when no flag does.
const FILE_VARIABLE: &str = "DISPENSE_CONFIG";
const RUNNER_PORT: u16 = 50051;

/// One setting: its key in the file, its variable, what it is without either.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) key: &'static str,
    pub(crate) variable: &'static str,
    default: &'static str,
    /// Of `dispense up`, which serves one person on one machine.
    default_up: &'static str,
}

const fn same(key: &'static str, variable: &'static str, default: &'static str) -> Setting {
    Setting { key, variable, default, default_up: default }
}

/// All of them, in the order in which they are shown.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        key: "server.address",
        variable: "DISPENSE_GRPC_ADDRESS",
        default: ":8080",
        default_up: "127.0.0.1:8080",
    },
    Setting {
        key: "server.runner_address",
        variable: "DISPENSE_RUNNER_ADDRESS",
        default: ":50051",
        default_up: "127.0.0.1:50051",
    },
    same("server.ssh.enabled", "DISPENSE_SSH_ENABLED", "true"),
    Setting {
        key: "server.ssh.address",
        variable: "DISPENSE_SSH_ADDRESS",
        default: ":2222",
        default_up: "127.0.0.1:2222",
    },
    same("server.ssh.passwords", "DISPENSE_SSH_PASSWORDS", "false"),
    same("server.ssh.names", "DISPENSE_SSH_NAMES", ""),
    same("server.ssh.max_sessions", "DISPENSE_SSH_MAX_SESSIONS", "4096"),
    same("server.ssh.idle_timeout", "DISPENSE_SSH_IDLE_TIMEOUT", "12h"),
    same("server.log_tail", "DISPENSE_LOG_TAIL", "64K"),
    same("server.database.url", "DISPENSE_DATABASE_URL", ""),
    same("server.advertised_host", "DISPENSE_ADVERTISED_HOST", ""),
    same("server.tls.enabled", "DISPENSE_GRPC_TLS_ENABLED", "false"),
    same("server.tls.cert_file", "DISPENSE_GRPC_CERT_FILE", ""),
    same("server.tls.key_file", "DISPENSE_GRPC_KEY_FILE", ""),
    same("server.auth.enabled", "DISPENSE_GRPC_AUTH_ENABLED", "true"),
    same("server.auth.api_key_required", "DISPENSE_API_KEY_REQUIRED", "true"),
    Setting {
        key: "server.logging.level",
        variable: "DISPENSE_LOG",
        default: "info",
        // A line for each request is not for a person's terminal.
        default_up: "info,dispense_server::access=warn",
    },
    same("server.logging.format", "DISPENSE_LOG_FORMAT", "pretty"),
    Setting {
        key: "server.rate_limiting.enabled",
        variable: "DISPENSE_RATE_LIMITING_ENABLED",
        default: "true",
        default_up: "false",
    },
    same("server.rate_limiting.requests_per_minute", "DISPENSE_REQUESTS_PER_MINUTE", "100"),
    same("server.cors.allowed_origins", "DISPENSE_ALLOWED_ORIGINS", ""),
    same("server.previews.domain", "DISPENSE_PREVIEW_DOMAIN", "localhost"),
    same("server.previews.app_domain", "DISPENSE_APP_DOMAIN", ""),
    same("server.previews.port", "DISPENSE_PREVIEW_PORT", ""),
    same("server.previews.https", "DISPENSE_PREVIEW_HTTPS", ""),
    same("server.workspace.domain", "DISPENSE_WORKSPACE_DOMAIN", ""),
    same("server.workspace.ignore_file_kib", "DISPENSE_WORKSPACE_IGNORE_FILE_KIB", "64"),
    same("server.provider.url", "DISPENSE_PROVIDER_URL", "https://api.anthropic.com"),
];

/// SSH sessions cost some 100 KiB each.
const SSH_SESSIONS_MAX: usize = 65_536;
/// A month: one that is still for longer is nobody's.
const SSH_IDLE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Of a list of what is ignored, at most.
const IGNORE_FILE_MAX_KIB: usize = 4096;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Default,
    File(PathBuf),
    Variable(&'static str),
    Flag,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "{name}"),
            Self::Flag => write!(f, "flag"),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Value {
    pub(crate) text: String,
    pub(crate) source: Source,
}

impl Value {
    /// For people: of the address of a database without the password.
    pub(crate) fn shown(&self) -> String {
        match (self.text.split_once("://"), self.text.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, place))) => format!("{scheme}://…@{place}"),
            _ => self.text.clone(),
        }
    }
}

/// Every setting with its value.
#[derive(Debug)]
pub(crate) struct Settings(Vec<(&'static Setting, Value)>);

/// For whom the defaults are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `dispense server`.
    Server,
    /// `dispense up`.
    Up,
}

impl Settings {
    /// Reads the file and the variables. `flags` are those that were given, by key.
    pub(crate) fn load(kind: Kind, file: Option<&Path>, flags: &[(&str, Option<String>)]) -> Result<Self, Error> {
        Self::resolve(kind, file, flags, |name| std::env::var(name).ok())
    }

    fn resolve(
        kind: Kind,
        file: Option<&Path>,
        flags: &[(&str, Option<String>)],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        let named = file.map(Path::to_owned).or_else(|| variable(FILE_VARIABLE).map(PathBuf::from));
        let (path, content) = match named {
            Some(path) => {
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| local(format_args!("read {}", path.display()), &error))?;
                (path, text)
            }
            None => {
                let path = config::server_file().unwrap_or_default();
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                (path, text)
            }
        };
        let mut there = file::parse(&content).map_err(|why| usage(format!("{}: {why}", path.display())))?;
        let mut values = Vec::with_capacity(SETTINGS.len());
        for setting in SETTINGS {
            let flag = flags.iter().find(|(key, _)| *key == setting.key).and_then(|(_, text)| text.clone());
            let in_file = there.remove(setting.key);
            let default = if kind == Kind::Up { setting.default_up } else { setting.default };
            let (text, source) = if let Some(text) = flag {
                (text, Source::Flag)
            } else if let Some(text) = variable(setting.variable) {
                (text, Source::Variable(setting.variable))
            } else if let Some(text) = in_file {
                (text, Source::File(path.clone()))
            } else {
                (default.to_owned(), Source::Default)
            };
            values.push((setting, Value { text, source }));
        }
        if let Some(key) = there.keys().next() {
            let known: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
            let message = format!("{}: there is no setting `{key}`; there are {}", path.display(), known.join(", "));
            return Err(usage(message));
        }
        Ok(Self(values))
    }

    /// Each with its value, for people.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static Setting, &Value)> {
        self.0.iter().map(|(setting, value)| (*setting, value))
    }

    fn parse<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, Error> {
        let (_, value) = self.0.iter().find(|(setting, _)| setting.key == key).expect("every key is in the table");
        parse(&value.text).map_err(|why| usage(format!("{key} = `{}` ({}): {why}", value.shown(), value.source)))
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> Result<SocketAddr, Error> {
        self.parse("server.address", address)
    }

    /// Where runners connect.
    pub(crate) fn runner_address(&self) -> Result<SocketAddr, Error> {
        self.parse("server.runner_address", address)
    }

    /// Bytes of each stream that are kept when a sandbox is gone.
    pub(crate) fn log_tail_bytes(&self) -> Result<u32, Error> {
        let parse = |text: &str| u32::try_from(units::bytes(text)?).map_err(|_| "use at most 1M".to_owned());
        self.parse("server.log_tail", parse)
    }

    /// A filter, e.g. `info` or `dispense_server=debug`.
    pub(crate) fn log_filter(&self) -> Result<EnvFilter, Error> {
        self.parse("server.logging.level", |text| {
            let is_level = |word: &str| word.trim().parse::<LevelFilter>().is_ok();
            // The filter takes any word for the name of a part of the program, and is silent for all others.
            if let Some(slip) = text.split(',').find(|word| !word.contains('=') && !is_level(word)) {
                let slip = slip.trim();
                return Err(format!("`{slip}` is no level: use off, error, warn, info, debug or trace, or PART=LEVEL"));
            }
            EnvFilter::try_new(text).map_err(|error| error.to_string())
        })
    }

    /// Whether the log is JSON.
    pub(crate) fn log_is_json(&self) -> Result<bool, Error> {
        self.parse("server.logging.format", |text| match text {
            "json" => Ok(true),
            "pretty" => Ok(false),
            _ => Err("use `json` or `pretty`".to_owned()),
        })
    }

    /// The database; by default a file in the data directory.
    pub(crate) fn database(&self) -> Result<Option<Database>, Error> {
        self.parse("server.database.url", |text| match text.split_once("://") {
            None if text.is_empty() => Ok(None),
            Some(("postgres" | "postgresql", _)) => Ok(Some(Database::Postgres(text.to_owned()))),
            // What is wrong may have a password.
            _ => Err("use postgres://USER:PASSWORD@HOST/NAME, or nothing for a file in the data directory".to_owned()),
        })
    }

    /// Where other servers of the same database reach this one: by default where it listens, or by its machine's name.
    pub(crate) fn advertised_host(&self) -> Result<String, Error> {
        let listening = self.address()?.ip();
        self.parse("server.advertised_host", |text| match text {
            "" if listening.is_unspecified() => Ok(own_name()),
            "" => Ok(listening.to_string()),
            text if text.parse::<std::net::IpAddr>().is_ok() => Ok(text.to_owned()),
            text => domain(text),
        })
    }

    /// The certificate, where there is TLS: one of files, or of the server's own making.
    pub(crate) fn tls(&self) -> Result<Option<TlsConfig>, Error> {
        if !self.parse("server.tls.enabled", switch)? {
            return Ok(None);
        }
        let path = |text: &str| match text {
            "" => Ok(None),
            text => std::path::absolute(text).map(Some).map_err(|error| error.to_string()),
        };
        match (self.parse("server.tls.cert_file", path)?, self.parse("server.tls.key_file", path)?) {
            (Some(certificate), Some(key)) => Ok(Some(TlsConfig::Files { certificate, key })),
            (None, None) => Ok(Some(TlsConfig::SelfSigned)),
            _ => Err(usage("server.tls.cert_file and server.tls.key_file belong together: give both, or neither")),
        }
    }

    /// SSH, where it is on. The server's certificate is also for this machine's own names.
    pub(crate) fn ssh(&self) -> Result<Option<SshConfig>, Error> {
        if !self.parse("server.ssh.enabled", switch)? {
            return Ok(None);
        }
        let address = self.parse("server.ssh.address", address)?;
        let passwords = self.parse("server.ssh.passwords", switch)?;
        let mut names = self.parse("server.ssh.names", |text| {
            let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
            names.map(domain).collect::<Result<Vec<_>, String>>()
        })?;
        names.extend(["localhost".to_owned(), own_name()]);
        let sessions_max = self.parse("server.ssh.max_sessions", |text| {
            let sessions = text.parse().ok().filter(|sessions| (1..=SSH_SESSIONS_MAX).contains(sessions));
            sessions.ok_or_else(|| format!("use a number from 1 to {SSH_SESSIONS_MAX}"))
        })?;
        let idle_timeout = self.parse("server.ssh.idle_timeout", |text| match units::duration(text)? {
            time if (Duration::from_secs(1)..=SSH_IDLE_MAX).contains(&time) => Ok(time),
            _ => Err(format!("use a time from 1s to {}d", SSH_IDLE_MAX.as_secs() / 86_400)),
        })?;
        Ok(Some(SshConfig { address, passwords, names, sessions_max, idle_timeout }))
    }

    /// Where previews are. By default links have the server's own port, and `https` where it has TLS.
    pub(crate) fn previews(&self) -> Result<PreviewConfig, Error> {
        let domain = self.parse("server.previews.domain", domain)?;
        let app_domain = self.parse("server.previews.app_domain", |text| match text {
            "" => Ok(format!("preview.{domain}")),
            text => self::domain(text),
        })?;
        let port = self.parse("server.previews.port", |text| match text {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| "use a number from 0 to 65535".to_owned()),
        })?;
        let tls = self.tls()?.is_some();
        let https = self.parse("server.previews.https", |text| if text.is_empty() { Ok(tls) } else { switch(text) })?;
        Ok(PreviewConfig { domain, app_domain, port, https })
    }

    /// The workspaces in browsers.
    pub(crate) fn workspace(&self) -> Result<WorkspaceConfig, Error> {
        let ignore_file_kib = self.parse("server.workspace.ignore_file_kib", |text| {
            let kib = text.parse::<usize>().ok().filter(|kib| *kib <= IGNORE_FILE_MAX_KIB);
            kib.ok_or_else(|| format!("write a number of KiB up to {IGNORE_FILE_MAX_KIB}; 0 reads none"))
        })?;
        Ok(WorkspaceConfig { domain: self.workspace_domain()?, ignore_file_bytes: ignore_file_kib << 10 })
    }

    /// Where workspaces have host names, if they have. Programs in sandboxes serve pages below the domains of previews:
    /// none of them is to have a name that stands for a workspace.
    fn workspace_domain(&self) -> Result<Option<String>, Error> {
        let PreviewConfig { domain, app_domain, .. } = self.previews()?;
        self.parse("server.workspace.domain", |text| {
            if text.is_empty() {
                return Ok(None);
            }
            let ours = self::domain(text)?;
            let is_below = |above: &str| ours.strip_suffix(above).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            match [("domain", &domain), ("app_domain", &app_domain)].into_iter().find(|(_, above)| is_below(above)) {
                Some((key, above)) => Err(format!(
                    "previews have their names below server.previews.{key} = `{above}`: use a domain that is not that one \
                     nor below it"
                )),
                None => Ok(Some(ours)),
            }
        })
    }

    /// The API of the coding agents' model provider, if it may be asked.
    pub(crate) fn provider_url(&self) -> Result<Option<http::Uri>, Error> {
        self.parse("server.provider.url", |text| if text.is_empty() { Ok(None) } else { api_url(text).map(Some) })
    }

    /// What is asked of callers.
    pub(crate) fn access(&self) -> Result<AccessConfig, Error> {
        let auth = self.parse("server.auth.enabled", switch)?;
        let key_required = auth && self.parse("server.auth.api_key_required", switch)?;
        if !key_required && !self.address()?.ip().is_loopback() {
            let message = "without API keys a server listens on this machine only: set server.address to \
                           127.0.0.1:8080, or server.auth.enabled to true";
            return Err(usage(message));
        }
        let limited = self.parse("server.rate_limiting.enabled", switch)?;
        let per_minute = self.parse("server.rate_limiting.requests_per_minute", |text| {
            text.parse::<NonZeroU32>().map_err(|_| "use a number from 1 up".to_owned())
        })?;
        let allowed_origins = self.parse("server.cors.allowed_origins", |text| {
            let origins = text.split(',').map(str::trim).filter(|origin| !origin.is_empty());
            origins.map(origin).collect::<Result<Vec<_>, String>>()
        })?;
        Ok(AccessConfig { key_required, requests_per_minute: limited.then_some(per_minute), allowed_origins })
    }
}

/// This machine's.
fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// `HOST:PORT` with numbers, or `:PORT` for every address of the machine.
fn address(text: &str) -> Result<SocketAddr, String> {
    let whole = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    whole.parse().map_err(|_| format!("use ADDRESS:PORT, e.g. 127.0.0.1:{RUNNER_PORT}, or :PORT for all addresses"))
}

fn domain(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(plain)
    };
    if text.split('.').all(label) && text.len() <= 200 {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("use the name of a domain, e.g. dispense.example.org".to_owned())
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("use `true` or `false`".to_owned()),
    }
}

/// Without a query, and without a password, which logs would tell.
fn api_url(text: &str) -> Result<http::Uri, String> {
    let known = |scheme: &str| ["http", "https"].contains(&scheme);
    let parsed = text.parse::<http::Uri>().ok().filter(|uri| {
        let bare = uri.query().is_none() && !text.contains('#') && !text.contains('@');
        bare && uri.scheme_str().is_some_and(known) && uri.host().is_some_and(|host| !host.is_empty())
    });
    parsed.ok_or_else(|| "use e.g. https://api.anthropic.com, or nothing to ask nobody".to_owned())
}

fn origin(text: &str) -> Result<http::HeaderValue, String> {
    let bare = text.split_once("://").is_some_and(|(scheme, host)| {
        ["http", "https"].contains(&scheme) && !host.is_empty() && !host.contains(['/', '*', '?', '#'])
    });
    let wrong = || format!("`{text}` is no origin: use e.g. https://console.example.org");
    if bare { text.parse().map_err(|_| wrong()) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(yaml: &str, variables: &[(&str, &str)], flags: &[(&str, Option<String>)]) -> Result<Settings, Error> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("server.yaml");
        std::fs::write(&path, yaml).expect("ours");
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::resolve(Kind::Server, Some(&path), flags, variable)
    }

    fn source(settings: &Settings, key: &str) -> Source {
        let (_, value) = settings.iter().find(|(setting, _)| setting.key == key).expect("a setting");
        value.source.clone()
    }

    const SEED: &str = "server:\n  address: \":8080\"\n  auth:\n    enabled: true\n    api_key_required: true\n  \
                        logging:\n    level: \"info\"\n    format: \"json\"\n  rate_limiting:\n    enabled: true\n    \
                        requests_per_minute: 100\n";

    #[test]
    fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
        let flags = [("server.log_tail", Some("1K".to_owned()))];
        let variables = [("DISPENSE_LOG_TAIL", "2K"), ("DISPENSE_GRPC_ADDRESS", "127.0.0.1:9")];
        let settings = resolve(SEED, &variables, &flags).expect("valid");
        assert_eq!(settings.log_tail_bytes().expect("valid"), 1024);
        assert_eq!(settings.address().expect("valid"), "127.0.0.1:9".parse().expect("an address"));
        assert!(settings.log_is_json().expect("valid"));
        assert_eq!(source(&settings, "server.log_tail"), Source::Flag);
        assert_eq!(source(&settings, "server.address"), Source::Variable("DISPENSE_GRPC_ADDRESS"));
        assert!(matches!(source(&settings, "server.logging.format"), Source::File(_)));
        assert_eq!(source(&settings, "server.runner_address"), Source::Default);
        let access = settings.access().expect("valid");
        assert_eq!((access.key_required, access.requests_per_minute), (true, NonZeroU32::new(100)));
    }

    #[test]
    fn what_is_wrong_is_refused_with_the_key_and_its_source() {
        let unknown = resolve("server:\n  adress: \":1\"\n", &[], &[]).expect_err("a slip");
        assert!(unknown.message.contains("`server.adress`"), "{unknown}");
        let cases = [
            ("server:\n  address: somewhere\n", "server.address"),
            ("server:\n  auth:\n    enabled: perhaps\n", "server.auth.enabled"),
            ("server:\n  logging:\n    level: shouting\n", "`shouting` is no level"),
            ("server:\n  rate_limiting:\n    requests_per_minute: 0\n", "requests_per_minute"),
            ("server:\n  cors:\n    allowed_origins: [\"*\"]\n", "allowed_origins"),
            ("server:\n  auth:\n    enabled: false\n", "this machine only"),
        ];
        for (yaml, told) in cases {
            let settings = resolve(yaml, &[], &[]).expect("known keys");
            let parsed = settings.address().map(drop).and_then(|()| settings.access().map(drop));
            let error = parsed.and_then(|()| settings.log_filter().map(drop)).expect_err(yaml);
            assert!(error.message.contains(told), "{error}");
        }
        assert!(resolve("server: [1", &[], &[]).is_err());
    }

    #[test]
    fn a_provider_is_a_url_without_a_password_or_nobody() {
        let provider = |url: &str| resolve("", &[("DISPENSE_PROVIDER_URL", url)], &[]).expect("known").provider_url();
        assert_eq!(
            resolve("", &[], &[]).expect("known").provider_url().expect("valid").expect("one").scheme_str(),
            Some("https")
        );
        assert_eq!(provider("").expect("valid"), None);
        assert!(provider("http://gateway:4000/anthropic").expect("valid").is_some());
        for wrong in
            ["api.anthropic.com", "/v1", "ftp://a", "https://", "https://me:pass@a", "https://a?b", "https://a#b"]
        {
            let error = provider(wrong).expect_err(wrong);
            assert!(error.message.contains("server.provider.url"), "{error}");
        }
    }

    #[test]
    fn ssh_is_bounded_as_the_operator_says() {
        let ssh = |name: &str, text: &str| {
            let settings = resolve("", &[(name, text)], &[]).expect("known");
            settings.ssh().map(|ssh| ssh.map(|ssh| (ssh.sessions_max, ssh.idle_timeout.as_secs())))
        };
        let (sessions, idle) = ("DISPENSE_SSH_MAX_SESSIONS", "DISPENSE_SSH_IDLE_TIMEOUT");
        assert_eq!(ssh(sessions, "1").expect("valid"), Some((1, 43_200)));
        assert_eq!(ssh(idle, "90m").expect("valid"), Some((4096, 5400)));
        for (name, wrong, key) in [
            (sessions, "0", "server.ssh.max_sessions"),
            (sessions, "many", "server.ssh.max_sessions"),
            (sessions, "70000", "server.ssh.max_sessions"),
            (idle, "0", "server.ssh.idle_timeout"),
            (idle, "500ms", "server.ssh.idle_timeout"),
            (idle, "31d", "server.ssh.idle_timeout"),
        ] {
            assert!(ssh(name, wrong).expect_err(wrong).message.contains(key), "{wrong}");
        }
    }

    #[test]
    fn a_list_of_what_is_ignored_has_a_bound() {
        let bytes = |text: &str| {
            let settings = resolve("", &[("DISPENSE_WORKSPACE_IGNORE_FILE_KIB", text)], &[]).expect("known");
            settings.workspace().map(|workspace| workspace.ignore_file_bytes)
        };
        assert_eq!((bytes("0").expect("none"), bytes("128").expect("valid")), (0, 128 << 10));
        for wrong in ["-1", "64k", "4097", ""] {
            assert!(bytes(wrong).expect_err(wrong).message.contains("server.workspace.ignore_file_kib"), "{wrong}");
        }
    }

    #[test]
    fn a_workspace_domain_is_none_of_a_previews() {
        let workspace = |text: &str| {
            let yaml = "server:\n  previews:\n    domain: dev.example\n    app_domain: app.example\n";
            resolve(yaml, &[("DISPENSE_WORKSPACE_DOMAIN", text)], &[]).expect("known").workspace_domain()
        };
        assert_eq!(workspace("").expect("valid"), None);
        for right in ["Workspace.Example", "example", "mydev.example", "dev.example.org"] {
            assert_eq!(workspace(right).expect(right), Some(right.to_ascii_lowercase()));
        }
        for (wrong, told) in [
            ("dev.example", "server.previews.domain = `dev.example`"),
            ("a.b.DEV.example", "server.previews.domain = `dev.example`"),
            ("x.app.example", "server.previews.app_domain = `app.example`"),
            ("http://x", "the name of a domain"),
        ] {
            let error = workspace(wrong).expect_err(wrong);
            assert!(error.message.contains("server.workspace.domain") && error.message.contains(told), "{error}");
        }
    }

    #[test]
    fn lists_are_lists_or_words_between_commas() {
        for yaml in ["[\"https://a.example\", \"http://b.example:1\"]", "\"https://a.example, http://b.example:1\""] {
            let settings = resolve(&format!("server:\n  cors:\n    allowed_origins: {yaml}\n"), &[], &[]);
            let origins = settings.expect("known").access().expect("valid").allowed_origins;
            assert_eq!(origins, ["https://a.example", "http://b.example:1"]);
        }
    }
}
