//! The provider of the coding agents' models, asked whether it takes a key. It is asked for nothing else here, and
//! what it answers is not read beyond the status.

use std::time::Duration;

use dispense_api::tls::{ALPN_HTTP1, ALPN_HTTP2, Trust, client_config};
use http::{HeaderValue, StatusCode, Uri};
use reqwest::Client;
use reqwest::redirect::Policy;
use tokio::sync::{OnceCell, Semaphore};

/// From the question to the status: somebody waits for it.
const DEADLINE: Duration = Duration::from_secs(5);
/// BOUND: questions at a time, since each is a connection to elsewhere that a member asked for.
const ASKED_MAX: usize = 16;
/// Costs nothing and needs a key.
const MODELS: &str = "/v1/models";
const KEY: &str = "x-api-key";
const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    Refused,
    /// Nothing: why the provider said neither.
    Unknown(String),
}

/// The provider, if there is one to ask.
pub(crate) struct Provider {
    /// Without a slash at its end.
    url: Option<String>,
    deadline: Duration,
    asked: Semaphore,
    /// Made at the first question: it reads the machine's authorities.
    client: OnceCell<Client>,
}

impl Provider {
    pub(crate) fn new(url: Option<&Uri>) -> Self {
        let url = url.map(|url| url.to_string().trim_end_matches('/').to_owned());
        Self { url, deadline: DEADLINE, asked: Semaphore::new(ASKED_MAX), client: OnceCell::new() }
    }

    /// Whether the provider takes a key, which has the form of one.
    pub(crate) async fn ask(&self, key: &str) -> Verdict {
        let Some(url) = &self.url else {
            return Verdict::Unknown("this server is set to ask nobody".to_owned());
        };
        match tokio::time::timeout(self.deadline, self.status(url, key)).await {
            Ok(Ok(StatusCode::OK)) => Verdict::Accepted,
            Ok(Ok(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) => Verdict::Refused,
            Ok(Ok(other)) => Verdict::Unknown(format!("it answered {}", other.as_u16())),
            Ok(Err(why)) => Verdict::Unknown(why),
            Err(_) => Verdict::Unknown(format!("it did not answer within {} s", self.deadline.as_secs())),
        }
    }

    async fn status(&self, url: &str, key: &str) -> Result<StatusCode, String> {
        let _asking = self.asked.acquire().await.expect("nobody closes it");
        let client = self.client.get_or_try_init(client).await?;
        let mut key = HeaderValue::from_str(key).map_err(|_| "the key fits no header".to_owned())?;
        key.set_sensitive(true);
        let request = client.get(format!("{url}{MODELS}")).header(KEY, key).header(VERSION.0, VERSION.1);
        match request.send().await {
            // The body goes unread: it says nothing more, and its length would be the provider's choice.
            Ok(response) => Ok(response.status()),
            Err(error) => {
                let error = error.without_url();
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::warn!(%error, cause, "the models' provider was not reached");
                Err("the connection to it failed".to_owned())
            }
        }
    }
}

async fn client() -> Result<Client, String> {
    let made = tokio::task::spawn_blocking(|| {
        let mut tls = client_config(&Trust::System).map_err(|error| error.to_string())?;
        tls.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
        // A redirection would take the key to somebody else.
        let client = Client::builder().redirect(Policy::none()).tls_backend_preconfigured(tls);
        client.build().map_err(|error| error.to_string())
    });
    let made = made.await.unwrap_or_else(|error| Err(error.to_string()));
    made.map_err(|error| {
        tracing::error!(%error, "a client for the models' provider");
        "this server cannot open connections to it: see its log".to_owned()
    })
}

#[cfg(test)]
mod tests;
