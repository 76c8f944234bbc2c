//! Previews: what listens in a sandbox, at a host name of its own.
//!
//! ```text
//! {port}-{sandbox}.{domain}     any port
//! {sandbox}.{app domain}        the user's application, port 3000
//! ```
//!
//! A preview is private: a signed link opens it to whoever has the link, until it expires or is revoked, or the API key that made it
//! ends, and a public one is open to everybody until then; what was opened ends too ([`pass`]). A link is for one sandbox (its id, not its name) and one port.

mod known;
pub(crate) mod pass;

use std::sync::Arc;

use dispense_api::error::{Code, Error};
use dispense_api::id::SandboxId;

use crate::auth::keys::is_key_id;
use crate::auth::secret::{ServerSecret, same};
use crate::clock::{Clock, MICROS_PER_SEC};
use crate::sandbox::spec::invalid;
use crate::store::{self, Store};

use known::Known;

/// Of the user's own application.
const APP_PORT: u16 = 3000;
/// Of a link that was made without a time.
const TTL_DEFAULT_SECS: u32 = 3600;
/// A month: who shares for longer shares anew.
const TTL_MAX_SECS: u32 = 30 * 86_400;
/// Two numbers of up to 20 digits, a key's id of 23, a proof of 40, three dots.
const TOKEN_MAX_BYTES: usize = 128;

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
        // The longer domain first: one may end in the other.
        if let Some(sandbox) = label(host, &self.app_domain) {
            return Some(Place { sandbox, port: APP_PORT });
        }
        let label = label(host, &self.domain)?;
        let (port, sandbox) = label.split_once('-')?;
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

/// The one label that a host has before a domain.
pub(crate) fn label(host: &str, domain: &str) -> Option<String> {
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let label = name.strip_suffix(domain)?.strip_suffix('.')?;
    (!label.is_empty() && !label.contains('.')).then(|| label.to_owned())
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

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    /// When it ends, in seconds.
    pub(crate) until: i64,
    /// When its link was made, in microseconds.
    pub(crate) made_at: i64,
    /// The API key that made the link; empty where none was asked for.
    pub(crate) key_id: String,
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
    pub(crate) known: Known,
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
        key_id: &str,
        public: bool,
        ttl_secs: u32,
    ) -> Result<Link, Error> {
        let ttl = if ttl_secs == 0 { TTL_DEFAULT_SECS } else { ttl_secs };
        if ttl > TTL_MAX_SECS {
            return Err(invalid("ttl_secs", format_args!("{ttl} is over the limit of {TTL_MAX_SECS} seconds")));
        }
        let made_at = self.clock.now();
        let until = made_at / MICROS_PER_SEC + i64::from(ttl);
        let origin = self.config.origin(place, self.listening);
        let expires_at = until * MICROS_PER_SEC;
        if !public {
            let grant = Grant { until, made_at, key_id: key_id.to_owned() };
            let token = self.sign(Kind::Link, sandbox, place.port, &grant);
            return Ok(Link { url: format!("{origin}/?{LINK_PARAMETER}={token}"), expires_at });
        }
        let (id, port, now) = (sandbox.clone(), place.port, made_at);
        let write = self.store.write(move |tx| {
            let id = id.clone();
            Box::pin(async move { store::previews::share(tx, &id, port, expires_at, now).await })
        });
        let written = write.await;
        self.known.forget(sandbox, port);
        written?;
        Ok(Link { url: format!("{origin}/"), expires_at })
    }

    /// Ends the public share of a port, and with `links` every link to it that was made so far.
    pub(crate) async fn close(&self, sandbox: &SandboxId, port: u16, links: bool) -> Result<(), Error> {
        let (id, now) = (sandbox.clone(), self.clock.now());
        let write = self.store.write(move |tx| {
            let id = id.clone();
            Box::pin(async move {
                if links {
                    let oldest = now - i64::from(TTL_MAX_SECS) * MICROS_PER_SEC;
                    store::previews::revoke(&mut *tx, &id, port, now, oldest).await?;
                }
                store::previews::end(tx, &id, port).await
            })
        });
        let written = write.await;
        self.known.forget(sandbox, port);
        Ok(written?)
    }

    /// Whether a link was revoked after it was made.
    pub(crate) async fn is_revoked(&self, sandbox: &SandboxId, port: u16, grant: &Grant) -> Result<bool, Error> {
        let until = self.known.access(self.store.readers(), sandbox, port).await?.revoked_until;
        Ok(until.is_some_and(|until| grant.made_at <= until))
    }

    /// Whether everybody may see it now.
    pub(crate) async fn is_public(&self, sandbox: &SandboxId, port: u16) -> Result<bool, Error> {
        Ok(self.share_left(sandbox, port).await?.is_some())
    }

    /// A token: what it says, and what proves it.
    pub(crate) fn sign(&self, kind: Kind, sandbox: &SandboxId, port: u16, grant: &Grant) -> String {
        sign(&self.secret, kind, sandbox, port, grant)
    }

    /// What a token says, until it expires. Whether it was revoked the store knows, and of its key the gate.
    pub(crate) fn verify(&self, kind: Kind, sandbox: &SandboxId, port: u16, token: &str) -> Result<Grant, Flaw> {
        verify(&self.secret, self.now_secs(), kind, sandbox, port, token)
    }

    pub(crate) fn now_secs(&self) -> i64 {
        self.clock.now() / MICROS_PER_SEC
    }
}

fn sign(secret: &ServerSecret, kind: Kind, sandbox: &SandboxId, port: u16, grant: &Grant) -> String {
    let Grant { until, made_at, key_id } = grant;
    let said = format!("{until}.{made_at}.{key_id}");
    let proof = secret.preview_token(kind.as_str(), sandbox, port, &said);
    format!("{said}.{proof}")
}

/// What a token says, whoever made it.
fn parse(token: &str) -> Option<Grant> {
    if token.len() > TOKEN_MAX_BYTES {
        return None;
    }
    let mut parts = token.split('.');
    let (until, made_at, key_id, _proof) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let known = key_id.is_empty() || is_key_id(key_id);
    let grant = Grant { until: until.parse().ok()?, made_at: made_at.parse().ok()?, key_id: key_id.to_owned() };
    (known && parts.next().is_none()).then_some(grant)
}

pub(crate) fn verify(
    secret: &ServerSecret,
    now: i64,
    kind: Kind,
    sandbox: &SandboxId,
    port: u16,
    token: &str,
) -> Result<Grant, Flaw> {
    let grant = parse(token).ok_or(Flaw::Foreign)?;
    // Written again: of several ways to write a number one is good.
    if !same(&sign(secret, kind, sandbox, port, &grant), token) {
        return Err(Flaw::Foreign);
    }
    if grant.until <= now { Err(Flaw::Expired) } else { Ok(grant) }
}

/// Of a URL; what has it is a link.
pub(crate) const LINK_PARAMETER: &str = "__dispense";

/// Parses the number of a port.
pub(crate) fn port(number: u32) -> Result<u16, Error> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| invalid("port", format_args!("{number} is not one of 1 to 65535")))
}

/// The agent's own ports in a sandbox have doors of their own, which ask for an API key.
pub(crate) fn refuse_agent_port(agent_ports: [Option<u16>; 2], port: u16) -> Result<(), Error> {
    if !agent_ports.contains(&Some(port)) {
        return Ok(());
    }
    let message = format!("port {port} is the agent's own in this sandbox: it is never a preview");
    Err(Error::new(Code::PermissionDenied, "agent_port", message))
}

#[cfg(test)]
mod tests;
