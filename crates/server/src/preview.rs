//! Previews: what listens in a sandbox, at a host name of its own.
//!
//! ```text
//! {port}-{sandbox}.{domain}     any port
//! {sandbox}.{app domain}        the user's application, port 3000
//! ```
//!
//! A preview is private: a signed link opens it to whoever has the link, until it expires, and a public one is open to
//! everybody until then. A link is for one sandbox (its id, not its name) and one port.

use std::sync::Arc;

use dispense_api::error::{Code, Error};
use dispense_api::id::SandboxId;
use dispense_api::limits::ports;

use crate::auth::secret::{ServerSecret, same};
use crate::clock::Clock;
use crate::sandbox::spec::invalid;
use crate::store::{self, Store};

/// Of the user's own application.
const APP_PORT: u16 = 3000;
/// Of a link that was made without a time.
const TTL_DEFAULT_SECS: u32 = 3600;
/// A month: who shares for longer shares anew.
const TTL_MAX_SECS: u32 = 30 * 86_400;
const MICROS_PER_SEC: i64 = 1_000_000;

/// Where previews are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewConfig {
    /// Below it each sandbox and port has a name; a wildcard in the DNS leads here.
    pub domain: String,
    /// Below it each sandbox's application has a name.
    pub app_domain: String,
    /// The port in links; `None` for the one that the server listens on.
    pub port: Option<u16>,
    /// Links begin with `https`: the server has TLS, or what is before it.
    pub https: bool,
}

impl Default for PreviewConfig {
    fn default() -> Self {
        // Browsers and resolvers lead every name below `localhost` to the same machine.
        Self { domain: "localhost".into(), app_domain: "preview.localhost".into(), port: None, https: false }
    }
}

impl PreviewConfig {
    /// What a `Host` header stands for, if it is one of a preview.
    pub(crate) fn place(&self, host: &str) -> Option<Place> {
        let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let label = |domain: &str| {
            let label = name.strip_suffix(domain)?.strip_suffix('.')?;
            (!label.is_empty() && !label.contains('.')).then_some(label)
        };
        // The longer domain first: one may end in the other.
        if let Some(sandbox) = label(&self.app_domain) {
            return Some(Place { sandbox: sandbox.to_owned(), port: APP_PORT });
        }
        let (port, sandbox) = label(&self.domain)?.split_once('-')?;
        let plain = !port.starts_with('0') && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|_| plain && !sandbox.is_empty())?;
        Some(Place { sandbox: sandbox.to_owned(), port })
    }

    /// The origin of a place. `listening` is the server's own port.
    fn origin(&self, place: &Place, listening: u16) -> String {
        let (scheme, default) = if self.https { ("https", 443) } else { ("http", 80) };
        let port = self.port.unwrap_or(listening);
        let host = format!("{}-{}.{}", place.port, place.sandbox, self.domain);
        if port == default { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") }
    }
}

/// What a host name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Name or id.
    pub(crate) sandbox: String,
    pub(crate) port: u16,
}

/// What a token opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In a URL; changed for the other at the first use.
    Link,
    /// In a browser's cookie.
    Cookie,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Cookie => "cookie",
        }
    }
}

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It is not of this server, or for another sandbox or port.
    Foreign,
    Expired,
}

/// Links and shares.
pub(crate) struct Previews {
    pub(crate) config: PreviewConfig,
    pub(crate) secret: Arc<ServerSecret>,
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Arc<Clock>,
    /// The server's own port.
    pub(crate) listening: u16,
}

/// A link that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) url: String,
    /// In microseconds.
    pub(crate) expires_at: i64,
}

impl Previews {
    /// What a `Host` header stands for, if it is one of a preview.
    pub(crate) fn place(&self, host: &str) -> Option<Place> {
        self.config.place(host)
    }

    /// Opens a port of a sandbox to those who have the link, or, when it is `public`, to everybody.
    pub(crate) async fn open(
        &self,
        sandbox: &SandboxId,
        place: &Place,
        public: bool,
        ttl_secs: u32,
    ) -> Result<Link, Error> {
        let ttl = if ttl_secs == 0 { TTL_DEFAULT_SECS } else { ttl_secs };
        if ttl > TTL_MAX_SECS {
            return Err(invalid("ttl_secs", format_args!("{ttl} is over the limit of {TTL_MAX_SECS} seconds")));
        }
        let until = self.clock.now() / MICROS_PER_SEC + i64::from(ttl);
        let origin = self.config.origin(place, self.listening);
        let expires_at = until * MICROS_PER_SEC;
        if !public {
            let token = self.sign(Kind::Link, sandbox, place.port, until);
            return Ok(Link { url: format!("{origin}/?{LINK_PARAMETER}={token}"), expires_at });
        }
        let (id, port, now) = (sandbox.clone(), place.port, self.clock.now());
        let write = self.store.write(move |tx| {
            let id = id.clone();
            Box::pin(async move { store::previews::share(tx, &id, port, expires_at, now).await })
        });
        write.await?;
        Ok(Link { url: format!("{origin}/"), expires_at })
    }

    /// Ends the public share of a port.
    pub(crate) async fn close(&self, sandbox: &SandboxId, port: u16) -> Result<(), Error> {
        let id = sandbox.clone();
        let write = self.store.write(move |tx| {
            let id = id.clone();
            Box::pin(async move { store::previews::end(tx, &id, port).await })
        });
        Ok(write.await?)
    }

    /// Whether everybody may see it now.
    pub(crate) async fn is_public(&self, sandbox: &SandboxId, port: u16) -> Result<bool, Error> {
        let until = store::previews::public_until(self.store.readers(), sandbox, port).await?;
        Ok(until.is_some_and(|until| until > self.clock.now()))
    }

    /// A token: when it ends, in seconds, and what proves it.
    pub(crate) fn sign(&self, kind: Kind, sandbox: &SandboxId, port: u16, until: i64) -> String {
        sign(&self.secret, kind, sandbox, port, until)
    }

    /// Until when a token is good, in seconds.
    pub(crate) fn verify(&self, kind: Kind, sandbox: &SandboxId, port: u16, token: &str) -> Result<i64, Flaw> {
        verify(&self.secret, self.now_secs(), kind, sandbox, port, token)
    }

    pub(crate) fn now_secs(&self) -> i64 {
        self.clock.now() / MICROS_PER_SEC
    }
}

fn sign(secret: &ServerSecret, kind: Kind, sandbox: &SandboxId, port: u16, until: i64) -> String {
    format!("{until}.{}", secret.preview_token(kind.as_str(), sandbox, port, until))
}

pub(crate) fn verify(
    secret: &ServerSecret,
    now: i64,
    kind: Kind,
    sandbox: &SandboxId,
    port: u16,
    token: &str,
) -> Result<i64, Flaw> {
    let (until, _) = token.split_once('.').ok_or(Flaw::Foreign)?;
    let until: i64 = until.parse().map_err(|_| Flaw::Foreign)?;
    if !same(&sign(secret, kind, sandbox, port, until), token) {
        return Err(Flaw::Foreign);
    }
    if until <= now { Err(Flaw::Expired) } else { Ok(until) }
}

/// Of a URL; what has it is a link.
pub(crate) const LINK_PARAMETER: &str = "__dispense";

/// Parses the number of a port that may be shown.
pub(crate) fn port(number: u32) -> Result<u16, Error> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| invalid("port", format_args!("{number} is not one of 1 to 65535")))?;
    refuse_agent_port(port).map(|()| port)
}

/// The agent's own ports have doors of their own, which ask for an API key.
pub(crate) fn refuse_agent_port(port: u16) -> Result<(), Error> {
    if !ports::AGENT.contains(&port) {
        return Ok(());
    }
    let message = format!("port {port} is the agent's own: it is never a preview");
    Err(Error::new(Code::PermissionDenied, "agent_port", message))
}

#[cfg(test)]
mod tests;
