//! What a runner says of itself and of its boxes.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| dispense_server::fuzzing::runner(data));
