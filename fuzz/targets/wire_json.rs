//! The lenient JSON parser: what it accepts, it prints as JSON that means the same.
#![no_main]

use cellkeep::wire::json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(value) = json::parse_lenient(text) {
        let printed = value.to_string();
        assert_eq!(json::parse_lenient(printed.as_bytes()).ok(), Some(value));
    }
    let _ = json::string_fields(text, ["msg_id", "msg_type"]);
});
