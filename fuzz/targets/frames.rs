//! The stream of an agent, which a tenant may control, and that of a manager: frames, messages, events in pieces.
#![no_main]

use bytes::Bytes;
use cellkeep::agent_protocol::{EventAssembler, FrameReader, FromAgent, ToAgent};
use libfuzzer_sys::fuzz_target;

async fn read(stream: &[u8]) {
    let (mut from_agent, mut events) = (FrameReader::new(stream, FromAgent::cap), EventAssembler::default());
    while let Ok(frame) = from_agent.next().await {
        let Ok(message) = FromAgent::decode(frame) else { break };
        if let FromAgent::EventPiece { seq, total, piece } = message
            && events.push(seq, total, piece).is_err()
        {
            break;
        }
    }
    let mut to_agent = FrameReader::new(stream, ToAgent::cap);
    while let Ok(frame) = to_agent.next().await {
        if ToAgent::decode(frame).is_err() {
            break;
        }
    }
    let _ = cellkeep::agent_protocol::Event::decode(Bytes::copy_from_slice(stream));
}

fuzz_target!(|stream: &[u8]| {
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() {
        runtime.block_on(read(stream));
    }
});
