//! Splits events into frames of bounded size and reassembles them.

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{EVENT, ProtocolError};
use super::frame::encode_frame;
use super::types::Event;
use crate::ids::Seq;

/// The largest Jupyter message, bytes. Exceeds the default output limit, so that the output limit applies first.
pub const MAX_MESSAGE: usize = 160 * 1024 * 1024;
/// The size of an event piece, bytes. Small enough that acknowledgements and answers never wait long behind a large event.
pub const EVENT_CHUNK: usize = 256 * 1024;

/// Splits an encoded event into frames. Each payload is seq (u64), total length (u32) and the next piece, little endian.
pub fn encode_event_frames(seq: Seq, pieces: &[Bytes]) -> Vec<Vec<Bytes>> {
    let total = pieces.iter().map(Bytes::len).sum::<usize>();
    let mut frames = Vec::with_capacity(total / EVENT_CHUNK + 1);
    let (mut chunk, mut room) = (Vec::new(), EVENT_CHUNK);
    let close = |chunk: &mut Vec<Bytes>| {
        let mut head = BytesMut::with_capacity(12);
        head.put_u64_le(seq.0);
        head.put_u32_le(total as u32);
        encode_frame(EVENT, std::iter::once(head.freeze()).chain(chunk.drain(..)).collect())
    };
    for piece in pieces {
        let mut piece = piece.clone();
        while piece.len() > room {
            chunk.push(piece.split_to(room));
            frames.push(close(&mut chunk));
            room = EVENT_CHUNK;
        }
        room -= piece.len();
        chunk.push(piece);
    }
    frames.push(close(&mut chunk));
    frames
}

/// Reassembles events from their pieces.
#[derive(Default)]
pub struct EventAssembler {
    seq: Seq,
    total: usize,
    bytes: BytesMut,
}

impl EventAssembler {
    /// Adds a piece, and returns the event if it was the last one. Memory grows with the bytes received, not with the
    /// claimed total.
    ///
    /// # Errors
    /// [`ProtocolError`] if the pieces do not fit together or the event is invalid.
    pub fn push(&mut self, seq: Seq, total: usize, piece: Bytes) -> Result<Option<Event>, ProtocolError> {
        let fail = |what| Err(ProtocolError::Assembly { seq, what });
        if total > MAX_MESSAGE + EVENT_CHUNK {
            return fail("exceeds the message size limit");
        }
        if self.bytes.is_empty() {
            if piece.len() == total {
                return Event::decode(piece).map(Some);
            }
            (self.seq, self.total) = (seq, total);
        } else if (self.seq, self.total) != (seq, total) {
            return fail("started before the previous event was complete");
        }
        if piece.is_empty() || self.bytes.len() + piece.len() > total {
            return fail("pieces exceed the announced length");
        }
        self.bytes.extend_from_slice(&piece);
        if self.bytes.len() < total {
            return Ok(None);
        }
        Event::decode(std::mem::take(&mut self.bytes).freeze()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_protocol::codec::tests::{frame, message};
    use crate::agent_protocol::{FromAgent, KernelEvent, KernelExit};
    use crate::ids::Generation;
    use crate::wire::Channel;

    fn split_and_reassemble(event: &Event) -> Option<Event> {
        let mut assembler = EventAssembler::default();
        let mut last = None;
        for pieces in encode_event_frames(Seq(4), &event.encode()) {
            let raw = frame(pieces);
            assert!(raw.payload.len() < FromAgent::cap(raw.kind).unwrap());
            let FromAgent::EventPiece { seq, total, piece } = FromAgent::decode(raw).unwrap() else { panic!() };
            assert!(last.is_none());
            last = assembler.push(seq, total, piece).unwrap();
        }
        last
    }

    #[test]
    fn events_of_any_size_are_reassembled() {
        for size in [0, 1, EVENT_CHUNK - 300, EVENT_CHUNK, 3 * EVENT_CHUNK + 17] {
            let event = Event::Message { channel: Channel::Iopub, generation: Generation(1), message: message(size) };
            assert_eq!(split_and_reassemble(&event), Some(event));
        }
        let exit = KernelExit { code: None, signal: Some(9), out_of_memory: true, reason: None, start_log: "x".into() };
        let event = Event::Kernel { generation: Generation(1), event: KernelEvent::Exited(exit) };
        assert_eq!(split_and_reassemble(&event), Some(event));
    }

    #[test]
    fn forged_pieces_are_refused() {
        let mut assembler = EventAssembler::default();
        assert!(assembler.push(Seq(1), usize::MAX, Bytes::new()).is_err());
        assert!(assembler.push(Seq(1), 10, Bytes::from_static(b"12345")).unwrap().is_none());
        assert!(assembler.push(Seq(2), 10, Bytes::from_static(b"12345")).is_err());
        assert!(assembler.push(Seq(1), 10, Bytes::from_static(b"123456")).is_err());
    }
}
