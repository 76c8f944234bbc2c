//! Headers, cookies, links, page tokens and keys, as strangers send them.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| dispense_server::fuzzing::headers(data));
