//! The parsers of what comes from outside, for the fuzzer (`cargo xtask fuzz`). Each function panics when what it
//! promises does not hold.

use dispense_api::id::SandboxId;
use dispense_api::runner::{Box as BoxMessage, Hello};
use dispense_api::v1;
use http::{HeaderMap, HeaderValue, Request};
use prost::Message;

use crate::auth::keys::credential;
use crate::auth::secret::ServerSecret;
use crate::door::preview::headers::host;
use crate::door::request::Page;
use crate::fleet::hello;
use crate::preview::{self, Kind, PreviewConfig};
use crate::sandbox::create::NewSandbox;
use crate::sandbox::spec::Spec;
use crate::ssh::parse_public_key;

/// A create: what was taken is taken again, and stored and told as it was.
pub fn request(data: &[u8]) {
    let Ok(request) = v1::CreateSandboxRequest::decode(data) else { return };
    let labels = request.labels.into_iter().collect();
    let Ok(new) = NewSandbox::parse(request.name, request.spec.unwrap_or_default(), labels, request.group) else {
        return;
    };
    let stored = serde_json::to_string(&new.spec).expect("a valid specification is stored");
    assert_eq!(serde_json::from_str::<Spec>(&stored).expect("and read"), new.spec);
    let wire = new.spec.wire();
    assert_eq!(Spec::parse(wire).expect("what was valid stays so"), new.spec);
}

/// One text as every kind of header that is read.
pub fn headers(text: &str) {
    // Whatever a stranger makes up, nothing of it is signed.
    let secret = ServerSecret::new("a secret");
    let sandbox = SandboxId::random();
    assert!(preview::verify(&secret, 0, Kind::Link, &sandbox, 3000, text).is_err());
    if let Some(place) = PreviewConfig::default().place(text) {
        assert_ne!(place.port, 0);
    }
    if let Ok(Page { before: Some((at, id)), .. }) = Page::parse(0, text) {
        assert!(at.to_string().len() + id.len() < text.len() + 2);
    }
    if let Ok(key) = parse_public_key(text) {
        key.to_openssh().expect("a key that was read can be written");
    }
    let Ok(value) = HeaderValue::from_str(text) else { return };
    let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, value.clone())]);
    assert!(credential(&headers).is_none_or(|token| text.contains(token)));
    if let Ok(request) = Request::get(text).header(http::header::HOST, value).body(()) {
        assert!(host(&request).is_none_or(|host| text.contains(host)));
    }
}

/// A runner's first message, and a report.
pub fn runner(data: &[u8]) {
    if let Ok(Ok(known)) = Hello::decode(data).map(hello::parse) {
        assert!(!known.facts.name.chars().any(char::is_control), "it goes into logs");
        assert!(known.boxes.len() <= data.len());
    }
    if let Ok(Ok(report)) = BoxMessage::decode(data).map(hello::box_report) {
        assert!(report.message.len() <= data.len().max(1));
    }
}
