//! Bodies, cursors and headers of HTTP requests.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| cellkeep::api::fuzzing::read_requests(input));
