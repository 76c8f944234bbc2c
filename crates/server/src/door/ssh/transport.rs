//! How SSH is spoken here: what a scanner finds nothing against.

use std::sync::Arc;
use std::time::Duration;

use russh::keys::{Algorithm, EcdsaCurve};
use russh::server::Config;
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac};

use super::{REJECTION_TIME, SshDoor};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Unanswered: the peer is gone.
const KEEPALIVE_MAX: usize = 4;
/// Nothing came for longer than four questions take, no answer either: what is left of the connection is dropped.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(180);
const ATTEMPTS_MAX: usize = 6;
/// Between the network and a channel's reader.
const CHANNEL_MESSAGES: usize = 64;

/// Of the gateway: a client that says nothing is asked whether it is there.
pub(super) fn outside(door: &SshDoor) -> Arc<Config> {
    config(door, Some(KEEPALIVE_INTERVAL), SILENCE_TIMEOUT)
}

/// Of a connection from inside a sandbox, whose way is too short to be lost.
pub(super) fn inside(door: &SshDoor) -> Arc<Config> {
    config(door, None, door.idle_timeout)
}

fn config(door: &SshDoor, keepalive_interval: Option<Duration>, silence: Duration) -> Arc<Config> {
    let (key, certificate) = door.ssh.authority.host();
    let mut methods = vec![MethodKind::PublicKey];
    methods.extend(door.passwords.then_some(MethodKind::Password));
    Arc::new(Config {
        server_id: SshId::Standard("SSH-2.0-dispense".into()),
        methods: MethodSet::from(methods.as_slice()),
        auth_rejection_time: REJECTION_TIME,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        certificates: vec![certificate],
        preferred: preferred(),
        max_auth_attempts: ATTEMPTS_MAX,
        inactivity_timeout: Some(silence),
        keepalive_interval,
        keepalive_max: KEEPALIVE_MAX,
        channel_buffer_size: CHANNEL_MESSAGES,
        nodelay: true,
        ..Config::default()
    })
}

fn preferred() -> Preferred {
    const CURVES: [EcdsaCurve; 3] = [EcdsaCurve::NistP256, EcdsaCurve::NistP384, EcdsaCurve::NistP521];
    let mut key = vec![Algorithm::Ed25519];
    key.extend(CURVES.map(|curve| Algorithm::Ecdsa { curve }));
    Preferred {
        kex: vec![
            kex::MLKEM768X25519_SHA256,
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::EXTENSION_SUPPORT_AS_SERVER,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
        ]
        .into(),
        key: key.into(),
        cipher: vec![cipher::CHACHA20_POLY1305, cipher::AES_256_GCM, cipher::AES_128_GCM, cipher::AES_256_CTR].into(),
        mac: vec![mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM].into(),
        compression: vec![compression::NONE].into(),
        ..Preferred::default()
    }
}
