//! The Rust client of Dispense: connect, call, stream.
//!
//! ```no_run
//! # async fn example() -> Result<(), dispense_client::Error> {
//! use dispense_client::{Client, v1};
//!
//! let client = Client::connect("http://127.0.0.1:8080", "dsp_…").await?;
//! let sandbox = client.create(v1::CreateSandboxRequest { wait: true, ..Default::default() }).await?;
//! let start = v1::StartProcess { args: vec!["uname".into(), "-a".into()], ..Default::default() };
//! let mut process = client.run(&sandbox.id, start).await?;
//! while let Some(event) = process.events.next().await? {
//!     println!("{event:?}");
//! }
//! client.delete(&sandbox.id, false, true).await?;
//! # Ok(())
//! # }
//! ```
//!
//! It retries only what is idempotent: reads, deletes, renewals. Whole programs stand in `crates/client/examples`; CI runs
//! each of them.

mod batch;
mod error;
mod files;
mod keys;
mod operations;
mod ports;
mod previews;
mod processes;
mod retry;
mod sandboxes;
mod ssh;

use std::time::Duration;

use dispense_api::dial;
use dispense_api::limits;
use dispense_api::tls;
use dispense_api::trace::{TRACEPARENT, TraceParent};
use dispense_api::v1::file_service_client::FileServiceClient;
use dispense_api::v1::job_service_client::JobServiceClient;
use dispense_api::v1::log_service_client::LogServiceClient;
use dispense_api::v1::port_service_client::PortServiceClient;
use dispense_api::v1::preview_service_client::PreviewServiceClient;
use dispense_api::v1::process_service_client::ProcessServiceClient;
use dispense_api::v1::runner_service_client::RunnerServiceClient;
use dispense_api::v1::sandbox_service_client::SandboxServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Uri};
use tonic::{Request, Status};

pub use dispense_api::dial::{Connection, Dialler, Dialling};
pub use dispense_api::error::{Code, Error};
pub use dispense_api::tls::{Pin, Trust};
pub use dispense_api::v1;
pub use files::{Download, Upload};
pub use operations::EventStream;
pub use ports::{PortListener, PortReader, PortStream, PortWriter};
pub use processes::{Events, Input, RunningProcess};

/// A server that does not accept within this time is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent server is asked after this long.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A server or runner that is upgraded is back sooner.
const RESUME_FOR_DEFAULT: Duration = Duration::from_secs(600);
/// Messages that wait in a stream that the caller writes.
const STREAM_MESSAGES: usize = 8;

/// What goes with every request.
#[derive(Clone)]
struct Headers {
    api_key: MetadataValue<Ascii>,
    trace: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.api_key.clone());
        if let Some(trace) = &self.trace {
            request.metadata_mut().insert(TRACEPARENT, trace.clone());
        }
        Ok(request)
    }
}

type Authenticated = InterceptedService<Channel, Headers>;

/// A connection to a server. Cloning is cheap and shares it.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    headers: Headers,
    resume_for: Duration,
}

impl Client {
    /// Connects to `http://HOST:PORT` or `https://HOST:PORT` with an API key. Of the latter, the authorities that
    /// this machine trusts must vouch for the server.
    pub async fn connect(url: &str, api_key: &str) -> Result<Self, Error> {
        Self::connect_trusting(url, api_key, &Trust::System).await
    }

    /// The same, believing other authorities than this machine's, or one certificate by its fingerprint.
    pub async fn connect_trusting(url: &str, api_key: &str, trust: &Trust) -> Result<Self, Error> {
        let tls = url.starts_with("https://").then(|| tls::dialler(trust)).transpose();
        let dialler = tls.map_err(|error| Error::new(Code::InvalidArgument, "tls", error.to_string()))?;
        Self::connect_over(url, api_key, dialler).await
    }

    /// Connects as the environment says: `DISPENSE_URL`, `DISPENSE_API_KEY`, and `DISPENSE_TLS_PIN` or
    /// `DISPENSE_CA_FILE` for a server that this machine's authorities do not know.
    pub async fn from_env() -> Result<Self, Error> {
        let variable = |name: &str| {
            let missing = || Error::new(Code::InvalidArgument, "endpoint", format!("{name} is not set"));
            std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(missing)
        };
        let trust = match (variable("DISPENSE_TLS_PIN"), variable("DISPENSE_CA_FILE")) {
            (Ok(pin), _) => {
                let pin = pin.parse::<Pin>();
                Trust::pin(pin.map_err(|error| Error::new(Code::InvalidArgument, "tls", error.to_string()))?)
            }
            (Err(_), Ok(path)) => Trust::Authorities(path.into()),
            (Err(_), Err(_)) => Trust::System,
        };
        Self::connect_trusting(&variable("DISPENSE_URL")?, &variable("DISPENSE_API_KEY")?, &trust).await
    }

    /// The same, over connections that the caller makes.
    pub async fn connect_over(url: &str, api_key: &str, dialler: Option<Dialler>) -> Result<Self, Error> {
        let invalid = |message: String| Error::new(Code::InvalidArgument, "endpoint", message);
        let uri: Uri = url
            .parse()
            .map_err(|_| invalid(format!("`{url}` is not the address of a server: use http://HOST:PORT")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(invalid(format!("`{url}` is not the address of a server: use http:// or https://HOST:PORT")));
        }
        let api_key = format!("Bearer {api_key}")
            .parse()
            .map_err(|_| invalid("the API key has characters that no key has".to_owned()))?;
        let endpoint = dial::endpoint(&uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .tcp_nodelay(true);
        let channel =
            dial::connect(&endpoint, &uri, dialler.as_ref()).await.map_err(|error| error::unreachable(url, &error))?;
        Ok(Self { channel, headers: Headers { api_key, trace: None }, resume_for: RESUME_FOR_DEFAULT })
    }

    /// From now on its requests belong to a trace, as W3C's `traceparent` names it; what is none changes nothing. The
    /// server, the runner and the processes that are started in sandboxes go on with it.
    pub fn traced(mut self, traceparent: &str) -> Self {
        let known = traceparent.parse::<TraceParent>().ok();
        self.headers.trace = known.and_then(|parent| parent.to_string().parse().ok());
        self
    }

    /// Streams whose connection is cut try for this long to come back; 10 minutes when nothing is said.
    pub fn resume_for(mut self, time: Duration) -> Self {
        self.resume_for = time;
        self
    }

    fn sandboxes(&self) -> SandboxServiceClient<Authenticated> {
        SandboxServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(PAGE_MAX_BYTES)
    }

    fn runners_client(&self) -> RunnerServiceClient<Authenticated> {
        RunnerServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(PAGE_MAX_BYTES)
    }

    fn jobs_client(&self) -> JobServiceClient<Authenticated> {
        JobServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    fn logs_client(&self) -> LogServiceClient<Authenticated> {
        LogServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(PAGE_MAX_BYTES)
    }

    fn previews(&self) -> PreviewServiceClient<Authenticated> {
        PreviewServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    fn processes(&self) -> ProcessServiceClient<Authenticated> {
        ProcessServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(limits::RESPONSE_MESSAGE_MAX_BYTES)
    }

    fn files(&self) -> FileServiceClient<Authenticated> {
        FileServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(limits::RESPONSE_MESSAGE_MAX_BYTES)
    }

    fn ports(&self) -> PortServiceClient<Authenticated> {
        PortServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(limits::RESPONSE_MESSAGE_MAX_BYTES)
    }
}

/// A page of a thousand sandboxes, each with its environment.
const PAGE_MAX_BYTES: usize = 64 << 20;
