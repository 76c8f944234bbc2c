//! The headers on their way: hop-by-hop ones end here, credentials of Dispense too, and a program in a sandbox sees
//! the host that it expects, its own loopback.

use std::net::IpAddr;

use dispense_api::error::{Code, Error};
use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, HOST, LOCATION, ORIGIN, REFERER, SET_COOKIE, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version, request};

use super::access::COOKIE_NAME;
use crate::auth::keys::is_platform_secret;

/// Of one connection, and of no other; `Connection` names more.
const HOP_BY_HOP: [&str; 6] = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];
const API_KEY: &str = "x-api-key";

/// Where a request came from.
#[derive(Debug, Clone)]
pub(super) struct Forwarded {
    pub(super) port: u16,
    pub(super) host: String,
    pub(super) peer: Option<IpAddr>,
    pub(super) https: bool,
}

impl Forwarded {
    fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// As browsers know the preview.
    fn outside(&self) -> String {
        format!("{}://{}", self.scheme(), self.host)
    }

    /// As the program knows itself.
    fn inside(&self) -> String {
        format!("http://localhost:{}", self.port)
    }
}

/// The one host that a request is for: its address's, which wins, and its header's must not differ.
pub(crate) fn host<B>(request: &Request<B>) -> Option<&str> {
    let mut named = request.headers().get_all(HOST).iter();
    let header = named.next().and_then(|value| value.to_str().ok());
    if named.next().is_some() {
        return None;
    }
    match (request.uri().authority(), header) {
        (Some(authority), Some(header)) if !authority.as_str().eq_ignore_ascii_case(header) => None,
        (Some(authority), _) => Some(authority.as_str()),
        (None, header) => header,
    }
}

/// The protocol that a caller wants to change to.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asked = asked.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| asked).cloned()
}

/// The head of a request as the sandbox gets it.
pub(super) fn to_sandbox(
    mut head: request::Parts,
    forwarded: &Forwarded,
    upgrade: Option<HeaderValue>,
) -> Result<Request<()>, Error> {
    let bad =
        |_| Error::new(Code::InvalidArgument, "preview_address", "the address has characters that no address has");
    let trailers = head.headers.get(TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    strip_hop_by_hop(&mut head.headers);
    strip_credentials(&mut head.headers);
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let (outside, inside) = (forwarded.outside(), forwarded.inside());
    let headers = &mut head.headers;
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.append(CONNECTION, HeaderValue::from_static("TE"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    // Dev servers refuse hosts and origins that they do not know.
    headers.insert(HOST, HeaderValue::from_str(&format!("localhost:{}", forwarded.port)).map_err(bad)?);
    for name in [ORIGIN, REFERER] {
        let rest = headers.get(&name).and_then(|value| value.to_str().ok()?.strip_prefix(&outside).map(str::to_owned));
        if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
            headers.insert(name, HeaderValue::from_str(&format!("{inside}{rest}")).map_err(bad)?);
        }
    }
    let told = [
        ("forwarded", None),
        ("x-forwarded-for", forwarded.peer.map(|peer| peer.to_string())),
        ("x-forwarded-host", Some(forwarded.host.clone())),
        ("x-forwarded-proto", Some(forwarded.scheme().to_owned())),
        ("x-real-ip", forwarded.peer.map(|peer| peer.to_string())),
    ];
    for (name, value) in told {
        // What a caller says of itself is not believed.
        headers.remove(name);
        if let Some(value) = value {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(&value).map_err(bad)?);
        }
    }
    let mut request = Request::new(());
    *request.method_mut() = head.method;
    *request.uri_mut() = path.parse::<Uri>().map_err(|_| {
        Error::new(Code::InvalidArgument, "preview_address", "the path of the address cannot be passed on")
    })?;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = head.headers;
    Ok(request)
}

/// The headers of an answer as the caller gets them.
pub(super) fn from_sandbox(headers: &mut HeaderMap, forwarded: &Forwarded) {
    let upgrade = upgrade(headers);
    strip_hop_by_hop(headers);
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let inside = [forwarded.inside(), format!("http://127.0.0.1:{}", forwarded.port)];
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok()).and_then(|location| {
        let rest = inside.iter().find_map(|inside| location.strip_prefix(inside.as_str()))?;
        (rest.is_empty() || rest.starts_with(['/', '?', '#'])).then(|| format!("{}{rest}", forwarded.outside()))
    });
    if let Some(location) = location.and_then(|location| HeaderValue::from_str(&location).ok()) {
        headers.insert(LOCATION, location);
    }
    let cookies: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().filter_map(own_cookie).collect();
    headers.remove(SET_COOKIE);
    for cookie in cookies {
        headers.append(SET_COOKIE, cookie);
    }
}

/// A cookie of a sandbox is for its own host: one for the domain above would reach every other sandbox.
fn own_cookie(value: &HeaderValue) -> Option<HeaderValue> {
    let Ok(text) = value.to_str() else { return None };
    let is_domain = |part: &str| part.trim_start().to_ascii_lowercase().starts_with("domain");
    let (name, _) = text.split_once('=')?;
    if name.trim() == COOKIE_NAME {
        return None;
    }
    let kept: Vec<&str> =
        text.split(';').enumerate().filter(|(at, part)| *at == 0 || !is_domain(part)).map(|(_, part)| part).collect();
    HeaderValue::from_str(&kept.join(";")).ok()
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(TRANSFER_ENCODING);
}

/// Takes away what opens Dispense, and leaves what opens the program in the sandbox.
fn strip_credentials(headers: &mut HeaderMap) {
    let bearer = |value: &HeaderValue| {
        let token = value.to_str().ok().and_then(|value| Some(value.split_once(' ')?.1.trim().to_owned()));
        token.is_some_and(|token| is_platform_secret(&token))
    };
    if headers.get_all(AUTHORIZATION).iter().any(bearer) {
        headers.remove(AUTHORIZATION);
    }
    if headers.get_all(API_KEY).iter().any(|value| value.to_str().is_ok_and(is_platform_secret)) {
        headers.remove(API_KEY);
    }
    headers.remove("proxy-authorization");
    let kept: Vec<HeaderValue> = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| {
            let Ok(text) = value.to_str() else { return Some(value.clone()) };
            let foreign = |pair: &&str| pair.trim().split_once('=').is_none_or(|(name, _)| name != COOKIE_NAME);
            let pairs: Vec<&str> = text.split(';').filter(foreign).map(str::trim).collect();
            (!pairs.is_empty()).then(|| HeaderValue::from_str(&pairs.join("; ")).ok())?
        })
        .collect();
    headers.remove(COOKIE);
    for value in kept {
        headers.append(COOKIE, value);
    }
}

#[cfg(test)]
mod tests;
