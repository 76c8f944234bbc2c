//! SSH: whom clients believe to be the server, and whom the server believes to be a user.
//!
//! Two certificate authorities, made at the first start and kept sealed in the database: the host's vouches for the
//! server's own key, so that no client ever asks about an unknown host; the user's signs short-lived certificates for
//! those who have an API key. A public key that was registered opens as its account.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dispense_api::error::{Code, Error};
use dispense_api::id::SandboxId;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{Certificate, HashAlg, PrivateKey, PublicKey};

use crate::auth::secret::random_bytes;
use crate::sandbox::spec::invalid;
use crate::vault::{Vault, VaultError};

/// The name that the host's certificate always has: clients compare with it by `HostKeyAlias`.
pub(crate) const HOST_ALIAS: &str = "dispense";
/// Of a user's certificate. It is asked for at each connection, and a connection outlives it.
const USER_CERTIFICATE_SECS: u64 = 900;
/// Of the host's certificate, which is made at each start.
const HOST_CERTIFICATE_SECS: u64 = 2 * 365 * 86_400;
/// Clocks differ.
const CLOCK_SLACK_SECS: u64 = 300;
/// Of a registered key with its comment.
const PUBLIC_KEY_MAX_BYTES: usize = 4096;
/// In the vault.
const HOST_KEY: &str = "ssh.host_key";
const HOST_AUTHORITY: &str = "ssh.host_authority";
const USER_AUTHORITY: &str = "ssh.user_authority";
/// What a user's certificate allows; OpenSSH refuses what is not named.
const EXTENSIONS: [&str; 3] = ["permit-port-forwarding", "permit-pty", "permit-user-rc"];

/// The keys.
pub(crate) struct Authority {
    host: PrivateKey,
    host_certificate: Certificate,
    host_authority: PublicKey,
    user_authority: PrivateKey,
}

/// SSH of a server where it is switched on.
pub(crate) struct Ssh {
    pub(crate) authority: Authority,
    /// Where it listens.
    pub(crate) port: u16,
}

/// How SSH is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshConfig {
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// An API key is taken as the password.
    pub passwords: bool,
    /// The names that the server's certificate is for, beside `dispense`.
    pub names: Vec<String>,
    /// Of those who have logged in at the port; one more is refused.
    pub sessions_max: usize,
    /// A session by which nothing passes for so long is ended.
    pub idle_timeout: Duration,
}

/// What a user gets for one sandbox.
pub(crate) struct Connection {
    pub(crate) certificate: String,
    /// In seconds.
    pub(crate) expires_at: u64,
    /// Where the user brought no key.
    pub(crate) private_key: String,
}

/// For those who ask for what is not there.
pub(crate) fn switched_off() -> Error {
    let message = "this server has no SSH: on this machine `dispense up` starts one that has, elsewhere `server.ssh.enabled` is set";
    Error::new(Code::FailedPrecondition, "ssh_off", message)
}

impl Authority {
    /// Reads the keys, or makes them; `names` are those that clients may know the server by.
    pub(crate) async fn open(vault: &Vault, names: &[String]) -> Result<Self, VaultError> {
        let host = key(vault, HOST_KEY).await?;
        let host_authority = key(vault, HOST_AUTHORITY).await?;
        let user_authority = key(vault, USER_AUTHORITY).await?;
        let certify = || {
            let now = now();
            let (from, until) = (now - CLOCK_SLACK_SECS, now + HOST_CERTIFICATE_SECS);
            let mut builder = Builder::new(random_bytes::<16>(), host.public_key(), from, until)?;
            builder.cert_type(CertType::Host)?.key_id("dispense")?.valid_principal(HOST_ALIAS)?;
            for name in names.iter().filter(|name| *name != HOST_ALIAS) {
                builder.valid_principal(name)?;
            }
            builder.sign(&host_authority)
        };
        let host_certificate = certify().expect("our own keys sign what we put together");
        Ok(Self { host, host_certificate, host_authority: host_authority.public_key().clone(), user_authority })
    }

    /// The server's key, and the certificate that vouches for it.
    pub(crate) fn host(&self) -> (PrivateKey, Certificate) {
        (self.host.clone(), self.host_certificate.clone())
    }

    /// The authority that vouches for the server, as a line of `authorized_keys` has it.
    pub(crate) fn host_authority(&self) -> String {
        self.host_authority.to_openssh().unwrap_or_default()
    }

    /// Signs a user's key for one sandbox, or one that is made now.
    pub(crate) fn connect(&self, public_key: &str, key_id: &str, sandbox: &SandboxId) -> Result<Connection, Error> {
        let (private_key, public_key) = match public_key {
            "" => new_pair()?,
            text => (String::new(), parse_public_key(text)?),
        };
        let failed = |error: ssh_key::Error| Error::new(Code::Internal, "ssh_certificate", error.to_string());
        let now = now();
        let expires_at = now + USER_CERTIFICATE_SECS;
        let mut builder =
            Builder::new(random_bytes::<16>(), &public_key, now - CLOCK_SLACK_SECS, expires_at).map_err(failed)?;
        builder.cert_type(CertType::User).map_err(failed)?.key_id(key_id).map_err(failed)?;
        builder.valid_principal(sandbox.as_str()).map_err(failed)?;
        for extension in EXTENSIONS {
            builder.extension(extension, "").map_err(failed)?;
        }
        let certificate = builder.sign(&self.user_authority).map_err(failed)?;
        Ok(Connection { certificate: certificate.to_openssh().map_err(failed)?, expires_at, private_key })
    }

    /// The API key that a certificate for a sandbox was made with; empty where none is asked for. What is not understood
    /// is refused.
    pub(crate) fn check(&self, certificate: &Certificate, sandbox: &SandboxId) -> Option<String> {
        let authority = self.user_authority.public_key().fingerprint(HashAlg::Sha256);
        certificate.validate_at(now(), [&authority]).ok()?;
        let for_it = certificate.valid_principals().iter().any(|principal| principal == sandbox.as_str());
        let plain = certificate.cert_type() == CertType::User && certificate.critical_options().is_empty();
        (for_it && plain).then(|| certificate.key_id().to_owned())
    }
}

/// A new key pair: the private key in OpenSSH's form, and the public one.
fn new_pair() -> Result<(String, PublicKey), Error> {
    let failed = |error: ssh_key::Error| Error::new(Code::Internal, "ssh_key", error.to_string());
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&random_bytes::<32>()));
    Ok((key.to_openssh(LineEnding::LF).map_err(failed)?.to_string(), key.public_key().clone()))
}

/// Parses a public key as `ssh-keygen` writes it.
pub(crate) fn parse_public_key(text: &str) -> Result<PublicKey, Error> {
    let wrong = || invalid("public_key", "it is not a line of the form `ssh-ed25519 AAAA… comment`");
    if text.len() > PUBLIC_KEY_MAX_BYTES {
        return Err(wrong());
    }
    let key = PublicKey::from_openssh(text.trim()).map_err(|_| wrong())?;
    match key.algorithm() {
        ssh_key::Algorithm::Ed25519 | ssh_key::Algorithm::Ecdsa { .. } => Ok(key),
        other => Err(invalid("public_key", format_args!("`{other}` keys are not taken: use `ssh-keygen -t ed25519`"))),
    }
}

/// How a public key is shown and looked up.
pub(crate) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

async fn key(vault: &Vault, name: &str) -> Result<PrivateKey, VaultError> {
    let unusable = || VaultError::Unusable(name.to_owned());
    if let Some(text) = vault.get(name).await? {
        return PrivateKey::from_openssh(&text).map_err(|_| unusable());
    }
    let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&random_bytes::<32>()));
    let key = PrivateKey::new(pair, "").map_err(|_| unusable())?;
    let text = key.to_openssh(LineEnding::LF).map_err(|_| unusable())?;
    vault.put(name, &text).await?;
    Ok(key)
}

/// Certificates are of the world's time, as clients see it.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests;
