//! Which server a command uses: the configured one, or the one of this machine's data directory.

use std::path::PathBuf;
use std::time::Duration;

use dispense_client::{Client, Error, Pin, Trust};

use crate::args::Global;
use crate::config::{self, Config};
use crate::failure::usage;
use crate::local::lease::{self, Lease};
use crate::telemetry;

/// An embedded server that is away is dead, and its sandboxes with it.
const EMBEDDED_RESUME_FOR: Duration = Duration::from_secs(2);

/// Where the values of an endpoint come from.
#[derive(Debug, Clone)]
pub(crate) enum Endpoint {
    /// A server that the user named.
    Configured { url: String, api_key: String, source: &'static str, trust: Trust },
    /// The one of the data directory.
    Local { data_dir: PathBuf },
}

/// A connection, and what keeps the server behind it alive.
pub(crate) struct Connected {
    pub(crate) client: Client,
    /// Of a local server: it may end when the last of these is dropped.
    _lease: Option<Lease>,
}

/// Decides which server to use.
pub(crate) fn resolve(global: &Global) -> Result<Endpoint, Error> {
    let file = Config::load()?;
    let (url, source) = match (&global.url, &file.url) {
        (Some(url), _) => (url.clone(), "flag or DISPENSE_URL"),
        (None, Some(url)) => (url.clone(), "configuration file"),
        (None, None) => return Ok(Endpoint::Local { data_dir: data_dir(global)? }),
    };
    // A key belongs to its server: one from the file is not sent to a server from a flag.
    let from_file = file.api_key.filter(|_| file.url.as_deref() == Some(&url));
    let api_key = global.api_key.clone().or(from_file).ok_or_else(|| {
        usage(format!("there is no API key for {url}: set DISPENSE_API_KEY, or use `dispense config set api-key`"))
    })?;
    let pinned = file.tls_pin.filter(|_| file.url.as_deref() == Some(&url)).map(|pin| parse_pin(&pin)).transpose()?;
    let trust = match (trust(global), pinned) {
        (Trust::System, Some(pin)) => Trust::pin(pin),
        (given, _) => given,
    };
    Ok(Endpoint::Configured { url, api_key, source, trust })
}

/// The host of the server that a command uses, without its port.
pub(crate) fn server_host(global: &Global) -> Result<String, Error> {
    let url = match resolve(global)? {
        Endpoint::Configured { url, .. } => url,
        // A local one is on this machine.
        Endpoint::Local { .. } => return Ok("127.0.0.1".to_owned()),
    };
    let host =
        url.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(|host| host.trim_matches(['[', ']']).to_owned()));
    host.ok_or_else(|| usage(format!("`{url}` has no host")))
}

/// Whom the flags and variables believe that it is the server.
pub(crate) fn trust(global: &Global) -> Trust {
    match (&global.tls_pin, &global.ca_file) {
        (Some(pin), _) => Trust::pin(*pin),
        (None, Some(path)) => Trust::Authorities(path.clone()),
        (None, None) => Trust::System,
    }
}

/// A fingerprint from the configuration.
pub(crate) fn parse_pin(text: &str) -> Result<Pin, Error> {
    text.parse().map_err(|error| usage(format!("tls-pin: {error}")))
}

/// The data directory of a local server.
pub(crate) fn data_dir(global: &Global) -> Result<PathBuf, Error> {
    match &global.data_dir {
        Some(path) => std::path::absolute(path).map_err(|error| crate::failure::local("resolve --data-dir", &error)),
        None => config::default_data_dir(),
    }
}

/// Connects; a local server is started when none runs.
pub(crate) async fn connect(global: &Global) -> Result<Connected, Error> {
    match resolve(global)? {
        Endpoint::Configured { url, api_key, trust, .. } => {
            let client = Client::connect_trusting(&url, &api_key, &trust).await?.traced(telemetry::current());
            Ok(Connected { client, _lease: None })
        }
        Endpoint::Local { data_dir } => {
            let lease = lease::take(&data_dir).await?;
            let mut client = lease.info.connect().await?.traced(telemetry::current());
            if lease.info.embedded {
                client = client.resume_for(EMBEDDED_RESUME_FOR);
            }
            Ok(Connected { client, _lease: Some(lease) })
        }
    }
}
