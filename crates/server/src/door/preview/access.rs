//! Who may see a preview: whoever has a link, a browser that once had it, an API key of somebody who may use the
//! sandbox, or everybody. What they open ends with what let them in.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use dispense_api::error::{Code, Error};
use dispense_api::id::SandboxId;
use dispense_api::method::Method;
use http::header::{CACHE_CONTROL, COOKIE, LOCATION, ORIGIN, REFERRER_POLICY, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use hyper::body::Incoming;

use super::{has_platform_key, headers};
use crate::auth::table::Need;
use crate::auth::{Principal, Role};
use crate::door::Parts;
use crate::preview::pass::Pass;
use crate::preview::{Flaw, Grant, Kind, LINK_PARAMETER, Place};
use crate::relay::Route;

/// Of a browser that had a link. It begins so that no program in a sandbox has one of that name by chance.
pub(super) const COOKIE_NAME: &str = "__dispense_preview";
/// For a sandbox that sleeps or starts: then the caller is told, and a page looks again.
const WAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// What becomes of a request.
pub(super) enum Entry {
    /// It goes on to the sandbox, as long as this opens anything.
    Open(Route, Pass),
    Answered(Response),
}

/// Lets a request in, or not. Who may not see a sandbox does not learn whether it exists.
pub(super) async fn enter(parts: &Parts, place: &Place, request: &Request<Incoming>) -> Result<Entry, Error> {
    if has_platform_key(request.headers()) {
        let caller = parts.gate.admit(request.headers(), Some(Need::Role(Role::Member)))?;
        let caller = caller.ok_or_else(|| private(place))?;
        let route = parts.sandboxes.seen_by(&caller).route(&place.sandbox, Method::OpenPort, WAKE_TIMEOUT).await?;
        return Ok(Entry::Open(route, Pass::Key(caller)));
    }
    let Some(sandbox) = parts.sandboxes.id_of(&place.sandbox).await? else { return Err(private(place)) };
    if let Some((token, clean)) = link(request) {
        return redeem(parts, place, &sandbox, &token, &clean).await.map(Entry::Answered);
    }
    let mut pass = None;
    for token in cookies(request.headers(), COOKIE_NAME) {
        if let Ok(grant) = parts.previews.verify(Kind::Cookie, &sandbox, place.port, &token) {
            // The one that opens for longest: a browser may have the cookies of several links.
            let holder = holder_of(parts, &sandbox, place.port, &grant).await?;
            pass =
                [pass, holder.map(|holder| (grant, holder))].into_iter().flatten().max_by_key(|(grant, _)| grant.until);
        }
    }
    let pass = match pass {
        Some((grant, holder)) => {
            check_origin(parts, &sandbox, request).await?;
            Pass::Link(grant, holder)
        }
        None if parts.previews.is_public(&sandbox, place.port).await? => Pass::Public,
        None => return Err(private(place)),
    };
    Ok(Entry::Open(parts.sandboxes.route(sandbox.as_str(), true, WAKE_TIMEOUT).await?, pass))
}

/// Whose key made a token's link, as long as neither was revoked.
async fn holder_of(parts: &Parts, sandbox: &SandboxId, port: u16, grant: &Grant) -> Result<Option<Principal>, Error> {
    let revoked = parts.previews.is_revoked(sandbox, port, grant).await?;
    Ok(parts.gate.holder(&grant.key_id).filter(|_| !revoked))
}

/// The token of a link, and the address without it.
fn link(request: &Request<Incoming>) -> Option<(String, String)> {
    let query = request.uri().query()?;
    let token = |part: &str| part.strip_prefix(LINK_PARAMETER)?.strip_prefix('=').map(str::to_owned);
    let found = query.split('&').find_map(token)?;
    let rest: Vec<&str> = query.split('&').filter(|part| token(part).is_none()).collect();
    // One slash: two would lead a browser to another host.
    let path = format!("/{}", request.uri().path().trim_start_matches(['/', '\\']));
    Some((found, if rest.is_empty() { path } else { format!("{path}?{}", rest.join("&")) }))
}

/// Changes a link for a cookie of this origin, and leads to the address without the link.
async fn redeem(
    parts: &Parts,
    place: &Place,
    sandbox: &SandboxId,
    token: &str,
    clean: &str,
) -> Result<Response, Error> {
    let previews = &parts.previews;
    let over = |reason, why| {
        let Place { sandbox, port } = place;
        let message = format!("this link {why}: make a new one with `dispense preview {sandbox} {port}`");
        Error::new(Code::Unauthenticated, reason, message)
    };
    let grant = previews.verify(Kind::Link, sandbox, place.port, token).map_err(|flaw| match flaw {
        Flaw::Foreign => private(place),
        Flaw::Expired => over("link_expired", "has expired"),
    })?;
    if holder_of(parts, sandbox, place.port, &grant).await?.is_none() {
        return Err(over("link_revoked", "was revoked, or the API key that made it has ended"));
    }
    let cookie = previews.sign(Kind::Cookie, sandbox, place.port, &grant);
    let age = grant.until.saturating_sub(previews.now_secs());
    // In a frame of another site a browser sends cookies only over TLS, and then to each site its own.
    let site = if previews.config.https { "SameSite=None; Secure; Partitioned" } else { "SameSite=Lax" };
    let cookie = format!("{COOKIE_NAME}={cookie}; Path=/; Max-Age={age}; HttpOnly; {site}");
    let bad =
        |_| Error::new(Code::InvalidArgument, "preview_address", "the address has characters that no address has");
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let head = response.headers_mut();
    head.insert(LOCATION, HeaderValue::from_str(clean).map_err(bad)?);
    head.insert(SET_COOKIE, HeaderValue::from_str(&cookie).map_err(bad)?);
    head.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    head.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(response)
}

/// A browser sends its cookie with what pages of other origins ask for, too: of those only the same sandbox's may.
async fn check_origin(parts: &Parts, sandbox: &SandboxId, request: &Request<Incoming>) -> Result<(), Error> {
    let Some(origin) = request.headers().get(ORIGIN) else { return Ok(()) };
    let host = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
    if host.is_some_and(|host| headers::host(request).is_some_and(|own| own.eq_ignore_ascii_case(host))) {
        return Ok(());
    }
    if let Some(other) = host.and_then(|host| parts.previews.place(host))
        && parts.sandboxes.id_of(&other.sandbox).await?.as_ref() == Some(sandbox)
    {
        return Ok(());
    }
    let message = "a page of another origin may not use this preview";
    Err(Error::new(Code::PermissionDenied, "cross_origin", message))
}

/// The values of a cookie: another one of the name may have been set for a wider domain.
fn cookies(headers: &HeaderMap, name: &str) -> Vec<String> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).collect()
}

fn private(place: &Place) -> Error {
    let Place { sandbox, port } = place;
    let message =
        format!("this preview is private: open it with a link, which `dispense preview {sandbox} {port}` prints");
    Error::new(Code::Unauthenticated, "preview_private", message)
}
