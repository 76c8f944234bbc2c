//! What an object's bytes are to add up to: the SHA-256 that `save` wrote into its metadata or, of an object of others, what
//! the storage tells when it is asked (`x-amz-checksum-mode`).
//!
//! The library shows no headers of an answer, so a client of our own around its client keeps those that are meant. A sum
//! of sums of parts (`…-7`, or of type `COMPOSITE`) says nothing about the whole, and is none.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use http::{HeaderMap, HeaderName, HeaderValue};
use object_store::ClientOptions;
use object_store::GetResult;
use object_store::aws::AmazonS3ConfigKey;
use object_store::client::ReqwestConnector;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};
use sha2::{Digest, Sha256};

use super::kept::make_readable;

/// In hex, of an object's bytes.
pub(super) const SHA256: &str = "dispense-sha256";
const MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");
const KIND: HeaderName = HeaderName::from_static("x-amz-checksum-type");
const OF_PARTS: &str = "COMPOSITE";

/// How bytes are added up; the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Sha256,
    Crc64Nvme,
    Crc32c,
    Crc32,
}

impl Algorithm {
    const ALL: [Self; 4] = [Self::Sha256, Self::Crc64Nvme, Self::Crc32c, Self::Crc32];

    fn header(self) -> HeaderName {
        HeaderName::from_static(match self {
            Self::Sha256 => "x-amz-checksum-sha256",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc32 => "x-amz-checksum-crc32",
        })
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Sha256 => "SHA-256",
            Self::Crc64Nvme => "CRC-64/NVME",
            Self::Crc32c => "CRC-32C",
            Self::Crc32 => "CRC-32",
        })
    }
}

enum State {
    Sha256(Box<Sha256>),
    Crc64(crc_fast::Digest),
    Crc32(crc_fast::Digest),
}

/// Adds up the bytes of one object, and knows what the sum is to be.
pub(super) struct Sum {
    algorithm: Algorithm,
    /// In base64.
    wanted: String,
    state: State,
}

/// The sum is another one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    pub(super) algorithm: String,
    pub(super) found: String,
    pub(super) wanted: String,
}

impl Sum {
    /// Of an answer that begins with an object's first byte; nothing where nobody says what it is to be.
    pub(super) fn of(answer: &GetResult, recorded: Option<&str>) -> Option<Self> {
        let recorded = recorded.and_then(bytes_of).map(|bytes| (Algorithm::Sha256, STANDARD.encode(bytes)));
        let (algorithm, wanted) = recorded.or_else(|| answer.extensions.get::<Told>().map(|told| told.clone().0))?;
        Some(Self::new(algorithm, wanted))
    }

    fn new(algorithm: Algorithm, wanted: String) -> Self {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(Box::new(Sha256::new())),
            Algorithm::Crc64Nvme => State::Crc64(crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme)),
            Algorithm::Crc32c => State::Crc32(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi)),
            Algorithm::Crc32 => State::Crc32(crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc)),
        };
        Self { algorithm, wanted, state }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(hash) => hash.update(bytes),
            State::Crc64(crc) | State::Crc32(crc) => crc.update(bytes),
        }
    }

    /// After the last byte.
    pub(super) fn finish(self) -> Result<(), Mismatch> {
        let found = match self.state {
            State::Sha256(hash) => STANDARD.encode(hash.finalize()),
            State::Crc64(crc) => STANDARD.encode(crc.finalize().to_be_bytes()),
            // The upper half of a shorter sum is empty.
            State::Crc32(crc) => STANDARD.encode(&crc.finalize().to_be_bytes()[4..]),
        };
        if found == self.wanted {
            return Ok(());
        }
        Err(Mismatch { algorithm: self.algorithm.to_string(), found, wanted: self.wanted })
    }
}

/// As `save` records it.
pub(super) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * Sha256::output_size() || !digits.is_ascii() {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

/// What the storage told with an answer.
#[derive(Debug, Clone)]
struct Told((Algorithm, String));

fn told(headers: &HeaderMap) -> Option<Told> {
    if headers.get(KIND).is_some_and(|kind| kind == OF_PARTS) {
        return None;
    }
    let found = Algorithm::ALL.into_iter().find_map(|algorithm| {
        let text = headers.get(algorithm.header())?.to_str().ok()?;
        (!text.contains('-')).then(|| (algorithm, text.to_owned()))
    });
    found.map(Told)
}

/// Options that ask for sums, beside those of the process's variables.
pub(super) fn asking() -> ClientOptions {
    let mut options = ClientOptions::new();
    for (name, value) in std::env::vars() {
        if name.starts_with("AWS_")
            && let Ok(AmazonS3ConfigKey::Client(key)) = name.to_ascii_lowercase().parse()
        {
            options = options.with_config(key, value);
        }
    }
    // The library signs it with each request for an object.
    options.with_default_headers(HeaderMap::from_iter([(MODE, HeaderValue::from_static("ENABLED"))]))
}

/// Makes clients that keep what the storage tells.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // INVARIANT: the client underneath adds no header, since a storage refuses what is not signed.
        let bare = options.clone().with_default_headers(HeaderMap::new());
        Ok(HttpClient::new(Keeping(ReqwestConnector::default().connect(&bare)?)))
    }
}

#[derive(Debug)]
struct Keeping(HttpClient);

#[async_trait::async_trait]
impl HttpService for Keeping {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut response = self.0.execute(request).await?;
        if let Some(told) = told(response.headers()) {
            response.extensions_mut().insert(told);
        }
        make_readable(response.headers_mut());
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use object_store::aws::AmazonS3Builder;
    use object_store::{ObjectStore, ObjectStoreExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const DIGITS: &[u8] = b"123456789";

    /// The published check values of each.
    #[test]
    fn each_sum_is_the_published_one() {
        let sha = "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225";
        let sha = STANDARD.encode(bytes_of(sha).expect("hex"));
        for (algorithm, wanted) in [
            (Algorithm::Sha256, sha),
            (Algorithm::Crc64Nvme, STANDARD.encode(0xae8b_1486_0a79_9888_u64.to_be_bytes())),
            (Algorithm::Crc32c, STANDARD.encode(0xe306_9283_u32.to_be_bytes())),
            (Algorithm::Crc32, STANDARD.encode(0xcbf4_3926_u32.to_be_bytes())),
        ] {
            let mut sum = Sum::new(algorithm, wanted.clone());
            DIGITS.chunks(4).for_each(|part| sum.update(part));
            assert_eq!(sum.finish(), Ok(()), "{algorithm}");
            let mut sum = Sum::new(algorithm, wanted.clone());
            sum.update(b"123456780");
            assert_eq!(sum.finish().expect_err("another one").wanted, wanted, "{algorithm}");
        }
    }

    #[test]
    fn the_best_sum_of_the_whole_counts_and_one_of_parts_never() {
        let told_by = |headers: &[(&'static str, &'static str)]| {
            let pair = |(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            told(&headers.iter().map(pair).collect()).map(|told| told.0)
        };
        assert_eq!(told_by(&[("x-amz-checksum-sha1", "qrvM")]), None);
        let (crc, sha) = (("x-amz-checksum-crc32", "y/Q5Jg=="), ("x-amz-checksum-sha256", "abc="));
        assert_eq!(told_by(&[crc]), Some((Algorithm::Crc32, "y/Q5Jg==".into())));
        assert_eq!(told_by(&[crc, sha]), Some((Algorithm::Sha256, "abc=".into())));
        assert_eq!(told_by(&[crc, ("x-amz-checksum-sha256", "abc=-2")]), Some((Algorithm::Crc32, "y/Q5Jg==".into())));
        assert_eq!(told_by(&[crc, ("x-amz-checksum-type", "COMPOSITE")]), None);
    }

    /// A request for an object, and one for a list, as they reach a storage that has neither.
    async fn requests() -> Vec<String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let options = asking().with_allow_http(true);
        let builder = AmazonS3Builder::new().with_client_options(options).with_http_connector(Connector);
        let builder = builder.with_endpoint(format!("http://{}", listener.local_addr().expect("bound")));
        let builder = builder.with_bucket_name("b").with_access_key_id("id").with_secret_access_key("secret");
        let store = builder.build().expect("complete");
        let serve = async {
            let mut requests = Vec::new();
            while requests.len() < 2 {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut head = vec![0; 8192];
                let count = stream.read(&mut head).await.expect("a head");
                requests.push(String::from_utf8_lossy(&head[..count]).to_lowercase());
                let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await.expect("it listens");
            }
            requests
        };
        let ask = async {
            store.get(&"object".into()).await.expect_err("none is there");
            store.list_with_delimiter(None).await.expect_err("none is there");
        };
        let both = async { tokio::join!(serve, ask).0 };
        tokio::time::timeout(std::time::Duration::from_secs(20), both).await.expect("in time")
    }

    /// An `x-amz-` header that is not signed is refused by Amazon.
    #[tokio::test]
    async fn sums_are_asked_for_with_a_header_that_is_signed() {
        crate::choose_crypto();
        let [object, list] = requests().await.try_into().expect("two");
        assert!(object.contains("x-amz-checksum-mode: enabled\r\n"), "{object}");
        let (_, signed) = object.split_once("signedheaders=").expect("it is signed");
        assert!(signed.split(',').next().is_some_and(|names| names.contains("x-amz-checksum-mode")), "{object}");
        assert!(!list.contains("x-amz-checksum-mode"), "{list}");
    }

    #[test]
    fn a_record_that_is_none_is_none() {
        for text in ["", "abc", &"g".repeat(64), &"é".repeat(32), &"a".repeat(66)] {
            assert_eq!(bytes_of(text), None, "{text}");
        }
        assert_eq!(bytes_of(&"0a".repeat(32)), Some(vec![10; 32]));
    }
}
