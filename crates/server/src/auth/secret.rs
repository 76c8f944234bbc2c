//! Secrets: random ones, their hashes, and tokens that are derived from the server's own secret, so that
//! there is nothing to store for each sandbox.

use dispense_api::id::{Generation, SandboxId};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// 160 bits, as 40 hex digits.
const SECRET_BYTES: usize = 20;
const SANDBOX_TOKEN_PREFIX: &str = "dst_";
const JOIN_TOKEN_PREFIX: &str = "dsj_";
/// Before a runner's own credential.
pub(crate) const CREDENTIAL_PREFIX: &str = "dsr_";

/// Of everything that opens something of this server.
pub(crate) const PREFIXES: [&str; 5] = ["dsp_", "e2b_", SANDBOX_TOKEN_PREFIX, JOIN_TOKEN_PREFIX, CREDENTIAL_PREFIX];

/// A new secret.
pub(crate) fn random(prefix: &str) -> String {
    format!("{prefix}{}", hex(&random_bytes::<SECRET_BYTES>()))
}

/// Bytes that nobody can guess.
pub(crate) fn random_bytes<const COUNT: usize>() -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    getrandom::fill(&mut bytes).expect("the kernel gives randomness to every process");
    bytes
}

/// SHA-256 in hex. A secret has 160 random bits, so a fast hash is right.
pub(crate) fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

/// Two lower-case digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let mut text = String::with_capacity(2 * bytes.len());
    text.extend(bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|half| DIGITS[usize::from(half)]));
    text
}

/// The server's own secret, and what is derived from it.
pub(crate) struct ServerSecret(Hmac<Sha256>);

impl ServerSecret {
    pub(crate) fn new(secret: &str) -> Self {
        Self(Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length"))
    }

    /// The token with which a runner joins.
    pub(crate) fn join_token(&self) -> String {
        self.derive(JOIN_TOKEN_PREFIX, "join")
    }

    /// The token with which the agent of one placement of a sandbox reports.
    pub(crate) fn sandbox_token(&self, sandbox: &SandboxId, generation: Generation) -> String {
        self.derive(SANDBOX_TOKEN_PREFIX, &format!("sandbox {sandbox} {generation}"))
    }

    /// What proves that this server made a preview's link or cookie.
    pub(crate) fn preview_token(&self, kind: &str, sandbox: &SandboxId, port: u16, said: &str) -> String {
        self.derive("", &format!("preview {kind} {sandbox} {port} {said}"))
    }

    fn derive(&self, prefix: &str, purpose: &str) -> String {
        let mut mac = self.0.clone();
        mac.update(purpose.as_bytes());
        format!("{prefix}{}", hex(&mac.finalize().into_bytes()[..SECRET_BYTES]))
    }
}

/// Compares without telling by time where two secrets differ.
pub(crate) fn same(left: &str, right: &str) -> bool {
    left.as_bytes().ct_eq(right.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_by_purpose_sandbox_generation_and_server() {
        let (one, two) = (ServerSecret::new("1"), ServerSecret::new("2"));
        let (a, b) = (SandboxId::random(), SandboxId::random());
        let tokens = [
            one.join_token(),
            two.join_token(),
            one.sandbox_token(&a, Generation(1)),
            one.sandbox_token(&a, Generation(2)),
            one.sandbox_token(&b, Generation(1)),
            two.sandbox_token(&a, Generation(1)),
        ];
        for (index, token) in tokens.iter().enumerate() {
            assert!(!tokens[..index].contains(token));
        }
        assert_eq!(one.sandbox_token(&a, Generation(1)), tokens[2], "and are the same each time");
    }
}
