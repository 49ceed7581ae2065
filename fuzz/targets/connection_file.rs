//! The connection file of a kernel.
#![no_main]

use cellkeep::wire::Channel;
use cellkeep::wire::connection_file::ConnectionInfo;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(connection) = serde_json::from_slice::<ConnectionInfo>(text) {
        let _ = connection.endpoint(Channel::Shell);
    }
});
