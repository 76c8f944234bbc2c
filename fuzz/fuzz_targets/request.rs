//! A request for a sandbox, as gRPC brings it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| dispense_server::fuzzing::request(data));
