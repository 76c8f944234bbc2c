//! TLS of the server's ports: a certificate from files, which are read again when they change, or one of the
//! server's own making, which clients know by its fingerprint.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use dispense_api::tls::{self, Pin, SharedPin};
use rcgen::{CertifiedKey as MadeCertificate, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::data_dir::{DataDir, DataDirError};

/// Between looks at the files.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// What a server makes for itself, in its data directory.
const CERTIFICATE_FILE: &str = "tls.crt";
const KEY_FILE: &str = "tls.key";

/// Where a server's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsConfig {
    /// PEM files: the certificate with its chain, and its key.
    Files {
        /// The server's certificate first.
        certificate: PathBuf,
        /// PKCS #8, PKCS #1 or SEC 1.
        key: PathBuf,
    },
    /// One that the server makes and keeps.
    SelfSigned,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file is not what it should be.
    #[error("{path}: {why}")]
    File { path: PathBuf, why: String },
    /// It could not be made.
    #[error("a certificate could not be made: {0}")]
    Made(#[from] rcgen::Error),
    /// It could not be kept.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The library refuses it.
    #[error(transparent)]
    Setup(#[from] rustls::Error),
}

/// The certificate of now.
#[derive(Debug)]
struct Current {
    certified: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified.read().expect("no holder panics").clone())
    }
}

/// TLS of a server.
pub(crate) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: Arc<Current>,
    pin: SharedPin,
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Reads the files; makes them first where the server is to have its own, for these names beside the machine's.
    pub(crate) fn open(config: &TlsConfig, data_dir: &DataDir, names: Vec<String>) -> Result<Self, TlsError> {
        let (certificate, key) = match config {
            TlsConfig::Files { certificate, key } => (certificate.clone(), key.clone()),
            TlsConfig::SelfSigned => own(data_dir, names)?,
        };
        let certified = load(&certificate, &key)?;
        let pin = Arc::new(RwLock::new(Pin::of(&certified.cert[0])));
        let current = Arc::new(Current { certified: RwLock::new(Arc::new(certified)) });
        let builder = ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions()?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(current.clone());
        config.alpn_protocols = vec![tls::ALPN_HTTP2.to_vec(), tls::ALPN_HTTP1.to_vec()];
        Ok(Self { certificate, key, current, pin, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Accepts connections.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// The fingerprint of the certificate of now.
    pub(crate) fn pin(&self) -> SharedPin {
        self.pin.clone()
    }

    /// Reads the files again whenever they have changed; what cannot be used is told and not taken.
    pub(crate) async fn reload_task(self: Arc<Self>, shutdown: CancellationToken) {
        let mut seen = self.modified();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RELOAD_INTERVAL) => {}
            }
            let now = self.modified();
            if now == seen {
                continue;
            }
            match load(&self.certificate, &self.key) {
                Ok(certified) => {
                    // Only now: a certificate whose key is still to come is read again.
                    seen = now;
                    let pin = Pin::of(&certified.cert[0]);
                    *self.current.certified.write().expect("no holder panics") = Arc::new(certified);
                    *self.pin.write().expect("no holder panics") = pin;
                    tracing::info!(%pin, "certificate was read again");
                }
                Err(error) => tracing::warn!(%error, "the new certificate cannot be used: the old one stays"),
            }
        }
    }

    fn modified(&self) -> [Option<SystemTime>; 2] {
        [&self.certificate, &self.key].map(|path| fs::metadata(path).and_then(|file| file.modified()).ok())
    }
}

/// The server's own certificate, made at the first start. It stays when the names change: clients know its fingerprint.
fn own(data_dir: &DataDir, mut names: Vec<String>) -> Result<(PathBuf, PathBuf), TlsError> {
    let (certificate, key) = (data_dir.join(CERTIFICATE_FILE), data_dir.join(KEY_FILE));
    if !(certificate.exists() && key.exists()) {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        names.extend(["localhost", "127.0.0.1", "::1", host.as_str()].map(str::to_owned));
        let MadeCertificate { cert, signing_key } = generate_simple_self_signed(names)?;
        data_dir.write(KEY_FILE, &signing_key.serialize_pem())?;
        data_dir.write(CERTIFICATE_FILE, &cert.pem())?;
    }
    Ok((certificate, key))
}

fn load(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let failed = |path: &Path, why: String| TlsError::File { path: path.to_owned(), why };
    let chain = read(certificate)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(failed(certificate, "it has no certificate in PEM form".to_owned()));
    }
    let key_der =
        PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| failed(key, format!("no private key: {error}")))?;
    let certified = CertifiedKey::from_der(chain, key_der, &tls::provider());
    certified.map_err(|error| failed(key, format!("it is not the key of {}: {error}", certificate.display())))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error: io::Error| TlsError::File { path: path.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use rustls::client::verify_server_name;
    use rustls::pki_types::ServerName;
    use rustls::server::ParsedCertificate;

    use super::*;

    fn write(folder: &Path, made: &MadeCertificate<rcgen::KeyPair>) -> TlsConfig {
        let (certificate, key) = (folder.join("server.crt"), folder.join("server.key"));
        fs::write(&certificate, made.cert.pem()).expect("ours");
        fs::write(&key, made.signing_key.serialize_pem()).expect("ours");
        TlsConfig::Files { certificate, key }
    }

    #[test]
    fn its_own_certificate_is_made_once_and_kept() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let data_dir = DataDir::open(folder.path()).expect("free");
        let open = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            Tls::open(&TlsConfig::SelfSigned, &data_dir, names).expect("made")
        };
        let (first, second) = (open(&["*.dev.example"]), open(&["*.other.example"]));
        assert_eq!(*first.pin.read().expect("ours"), *second.pin.read().expect("ours"));
        let certified = first.current.certified.read().expect("ours").clone();
        let certificate = ParsedCertificate::try_from(&certified.cert[0]).expect("a certificate");
        for (name, is_its) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("3000-web.dev.example", true),
            ("dev.example", false),
            ("a.b.dev.example", false),
            ("web.other.example", false),
        ] {
            let name = ServerName::try_from(name).expect("a name");
            assert_eq!(verify_server_name(&certificate, &name).is_ok(), is_its, "{name:?}");
        }
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused_by_name() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let data_dir = DataDir::open(&folder.path().join("data")).expect("free");
        let made = || generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
        let config = write(folder.path(), &made());
        Tls::open(&config, &data_dir, vec![]).expect("they belong together");
        fs::write(folder.path().join("server.key"), made().signing_key.serialize_pem()).expect("ours");
        let Err(TlsError::File { path, .. }) = Tls::open(&config, &data_dir, vec![]) else { panic!("another key") };
        assert!(path.ends_with("server.key"));
        fs::write(folder.path().join("server.crt"), "nothing").expect("ours");
        let Err(TlsError::File { path, .. }) = Tls::open(&config, &data_dir, vec![]) else { panic!("no certificate") };
        assert!(path.ends_with("server.crt"));
    }
}
