//! Ids, names, fingerprints and trace contexts: what is read is written as it was.

#![no_main]

use std::fmt::Display;
use std::str::FromStr;

use dispense_api::id::{RunnerId, SandboxId, SessionId};
use dispense_api::location::Location;
use dispense_api::method::Method;
use dispense_api::name::Name;
use dispense_api::tls::Pin;
use dispense_api::trace::TraceParent;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    same::<SandboxId>(text);
    same::<RunnerId>(text);
    same::<SessionId>(text);
    same::<Name>(text);
    again::<Pin>(text);
    again::<TraceParent>(text);
    again::<Location>(text);
    if let Some(method) = Method::parse(text) {
        assert_eq!(method.path(), text);
    }
});

/// Has one text form.
fn same<T: FromStr + Display>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), text);
    }
}

/// Is read from what it is written as.
fn again<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert!(value.to_string().parse::<T>().is_ok_and(|read| read == value));
    }
}
