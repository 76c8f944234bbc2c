//! TLS to a server: by the authorities that this machine trusts, by a file of them, or by the fingerprint of the
//! server's own certificate, which a quick start prints.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::dial::{Connection, Dialler};

/// What HTTP/2 is called in the handshake.
pub const ALPN_HTTP2: &[u8] = b"h2";
/// What HTTP/1.1 is.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";
const DIGEST_BYTES: usize = 32;
const PIN_PREFIX: &str = "sha256:";
const HTTPS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;

/// SHA-256 of a certificate, as `sha256:` and 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; DIGEST_BYTES]);

/// Not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a fingerprint: use `sha256:` and 64 hex digits, as the server prints it")]
pub struct InvalidPin(String);

impl Pin {
    /// Of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        let mut bytes = [0; DIGEST_BYTES];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PIN_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Pin {
    type Err = InvalidPin;

    fn from_str(text: &str) -> Result<Self, InvalidPin> {
        let parsed =
            text.strip_prefix(PIN_PREFIX).filter(|digits| digits.len() == 2 * DIGEST_BYTES).and_then(|digits| {
                let mut bytes = [0; DIGEST_BYTES];
                for (index, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok()?;
                }
                Some(Self(bytes))
            });
        parsed.ok_or_else(|| InvalidPin(text.chars().take(80).collect()))
    }
}

/// A fingerprint that may change while somebody connects by it: a certificate is replaced when it is renewed.
pub type SharedPin = Arc<RwLock<Pin>>;

/// Whom to believe that it is the server.
#[derive(Debug, Clone, Default)]
pub enum Trust {
    /// Whom this machine's authorities vouch for.
    #[default]
    System,
    /// Whom the authorities of a PEM file vouch for.
    Authorities(PathBuf),
    /// Who has the certificate of this fingerprint.
    Pin(SharedPin),
}

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of authorities.
    #[error("failed to read the authorities in {path}: {why}")]
    Authorities {
        /// Which file.
        path: PathBuf,
        /// What is the matter with it.
        why: String,
    },
    /// The library's own refusal.
    #[error("failed to set TLS up")]
    Setup(#[from] rustls::Error),
}

impl Trust {
    /// Who has the certificate of this fingerprint, which does not change.
    pub fn pin(pin: Pin) -> Self {
        Self::Pin(Arc::new(RwLock::new(pin)))
    }
}

/// Opens connections to the host and port of a URL: in TLS for `https`, plain for `http`.
pub fn dialler(trust: &Trust) -> Result<Dialler, TlsError> {
    let connector = TlsConnector::from(Arc::new(client_config(trust)?));
    Ok(Arc::new(move |uri: http::Uri| {
        let connector = connector.clone();
        Box::pin(async move {
            let is_tls = uri.scheme_str() == Some("https");
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = uri.port_u16().unwrap_or(if is_tls { HTTPS_PORT } else { HTTP_PORT });
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            if !is_tls {
                return Ok(Box::new(stream) as Box<dyn Connection>);
            }
            let name = ServerName::try_from(host).map_err(|error| std::io::Error::other(error.to_string()))?;
            Ok(Box::new(connector.connect(name, stream).await?) as Box<dyn Connection>)
        })
    }))
}

/// TLS towards those whom `trust` names, which speak HTTP/2.
pub fn client_config(trust: &Trust) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let mut config = match trust {
        Trust::Pin(pin) => {
            let verifier = Arc::new(Pinned { pin: pin.clone(), provider });
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        Trust::System => builder.with_root_certificates(system_authorities()).with_no_client_auth(),
        Trust::Authorities(path) => {
            let failed = |why: String| TlsError::Authorities { path: path.clone(), why };
            let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
            let mut roots = RootCertStore::empty();
            for certificate in certificates {
                roots.add(certificate.map_err(|error| failed(error.to_string()))?)?;
            }
            if roots.is_empty() {
                return Err(failed("it has no certificate".to_owned()));
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    Ok(config)
}

/// Authorities that cannot be read are left out, as other programs do.
fn system_authorities() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// The cryptography of every TLS here.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Believes one certificate, whatever stands in it: its fingerprint came by a channel that is trusted.
#[derive(Debug)]
struct Pinned {
    pin: SharedPin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let wanted = *self.pin.read().expect("no holder panics");
        let there = Pin::of(end_entity);
        if wanted == there {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(format!("the server's certificate is {there}, and {wanted} is expected")))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_it_is_written() {
        let pin = Pin::of(&CertificateDer::from(vec![1, 2, 3]));
        assert_eq!(pin.to_string().parse(), Ok(pin));
        for wrong in ["", "sha256:", "sha256:00", &"0".repeat(64), &format!("sha256:{}", "g".repeat(64))] {
            assert!(wrong.parse::<Pin>().is_err(), "{wrong}");
        }
    }
}
