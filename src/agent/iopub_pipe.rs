//! Decodes the pipe on which some kernels broadcast, instead of a ZeroMQ socket.
//!
//! What is in a pipe is outside of the kernel's process and survives its sudden death, while a ZeroMQ socket holds messages in
//! the process for some time. The kernel writes fragments of at most `PIPE_BUF` (4096) bytes, each with one `write`: the system
//! writes these completely or not at all, so neither a death nor an exception in the kernel can leave half a fragment.
//!
//! ```text
//! length: u16   of the payload
//! kind: u8      1: a part of a message, 2: its last part, 3: the owner of the following text
//! reserved: u8
//! number: u32   of the message; a new number abandons an unfinished message
//! stdout: u64   bytes that had been written to the kernel's stdout before this, all ones if unknown
//! stderr: u64   the same for stderr
//! payload       of a message: its parts form `Message::pack`; of an owner: the msg_id of an execute_request, empty for none
//! ```
//! All numbers are little endian.

use bytes::{Buf, Bytes, BytesMut};

use crate::agent_protocol::MAX_MESSAGE;
use crate::wire::{Message, WireError};

const HEADER: usize = 24;
const UNKNOWN: u64 = u64::MAX;

/// What a kernel sends on the pipe.
#[derive(Debug, PartialEq)]
pub(super) enum Broadcast {
    Message(Result<Message, WireError>),
    /// Text of the process from here on belongs to the execution with this `msg_id`. `None`: to the running one.
    TextOwner(Option<String>),
    /// The bytes are not fragments; nothing more can be read.
    Malformed,
    /// A message was larger than [`MAX_MESSAGE`] and is dropped.
    TooLarge,
}

/// The bytes that had been written to stdout and stderr before a broadcast. `None` if the kernel does not know.
pub(super) type Positions = [Option<u64>; 2];

/// Reassembles broadcasts from the bytes of the pipe.
#[derive(Default)]
pub(super) struct FragmentDecoder {
    bytes: BytesMut,
    message: BytesMut,
    number: u32,
    /// The current message is too large; its remaining fragments are skipped.
    skipping: bool,
    malformed: bool,
}

struct FragmentHeader {
    length: usize,
    kind: u8,
    number: u32,
    positions: Positions,
}

impl FragmentHeader {
    fn read(mut bytes: &[u8]) -> Self {
        let length = usize::from(bytes.get_u16_le());
        let kind = bytes.get_u8();
        bytes.advance(1);
        let number = bytes.get_u32_le();
        let positions = [bytes.get_u64_le(), bytes.get_u64_le()].map(|at| (at != UNKNOWN).then_some(at));
        Self { length, kind, number, positions }
    }
}

impl FragmentDecoder {
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.malformed {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// The next complete broadcast.
    pub fn next(&mut self) -> Option<(Positions, Broadcast)> {
        while self.bytes.len() >= HEADER {
            let header = FragmentHeader::read(&self.bytes);
            if self.bytes.len() < HEADER + header.length {
                return None;
            }
            self.bytes.advance(HEADER);
            let payload = self.bytes.split_to(header.length);
            if let Some(broadcast) = self.accept(&header, &payload) {
                return Some((header.positions, broadcast));
            }
        }
        None
    }

    fn accept(&mut self, header: &FragmentHeader, payload: &[u8]) -> Option<Broadcast> {
        match header.kind {
            1 | 2 => self.accept_part(header, payload),
            3 => {
                let owner = std::str::from_utf8(payload).ok().filter(|owner| !owner.is_empty());
                Some(Broadcast::TextOwner(owner.map(str::to_owned)))
            }
            _ => {
                (self.malformed, self.bytes, self.message) = (true, BytesMut::new(), BytesMut::new());
                Some(Broadcast::Malformed)
            }
        }
    }

    fn accept_part(&mut self, header: &FragmentHeader, payload: &[u8]) -> Option<Broadcast> {
        if header.number != self.number {
            (self.number, self.skipping) = (header.number, false);
            self.message.clear();
        }
        let last = header.kind == 2;
        if self.skipping {
            return None;
        }
        if self.message.len() + payload.len() > MAX_MESSAGE {
            self.message = BytesMut::new();
            self.skipping = true;
            return Some(Broadcast::TooLarge);
        }
        self.message.extend_from_slice(payload);
        last.then(|| Broadcast::Message(Message::unpack(&self.take_message())))
    }

    /// The complete message. Its memory is handed over, so a large one does not stay allocated here.
    fn take_message(&mut self) -> Bytes {
        std::mem::take(&mut self.message).freeze()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// The fragments of one broadcast.
    fn fragments(kind: u8, number: u32, positions: [u64; 2], payload: &[u8], size: usize) -> Vec<Vec<u8>> {
        let parts: Vec<&[u8]> = if payload.is_empty() { vec![payload] } else { payload.chunks(size).collect() };
        let last = parts.len() - 1;
        let encode = |(index, part): (usize, &&[u8])| {
            let kind = if kind == 2 && index < last { 1 } else { kind };
            let mut bytes = (part.len() as u16).to_le_bytes().to_vec();
            bytes.extend([kind, 0]);
            bytes.extend(number.to_le_bytes());
            bytes.extend(positions.iter().flat_map(|at| at.to_le_bytes()));
            bytes.extend(*part);
            bytes
        };
        parts.iter().enumerate().map(encode).collect()
    }

    fn message(text: &str) -> Message {
        Message::new_request("s", "display_data", &json!({"data": {"text/plain": text}}))
    }

    fn all(decoder: &mut FragmentDecoder) -> Vec<(Positions, Broadcast)> {
        std::iter::from_fn(|| decoder.next()).collect()
    }

    proptest! {
        #[test]
        fn broadcasts_survive_any_cut(texts in prop::collection::vec("\\PC{0,300}", 1..6), size in 1usize..600, read in 1usize..900) {
            let messages: Vec<Message> = texts.iter().map(|text| message(text)).collect();
            let bytes: Vec<u8> = messages.iter().enumerate()
                .flat_map(|(index, message)| fragments(2, index as u32 + 1, [7, UNKNOWN], &message.pack().concat(), size))
                .flatten().collect();
            let mut decoder = FragmentDecoder::default();
            let mut decoded = Vec::new();
            for piece in bytes.chunks(read) {
                decoder.push(piece);
                decoded.extend(all(&mut decoder));
            }
            let expected: Vec<_> =
                messages.into_iter().map(|message| ([Some(7), None], Broadcast::Message(Ok(message)))).collect();
            prop_assert_eq!(decoded, expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut decoder = FragmentDecoder::default();
            decoder.push(&bytes);
            all(&mut decoder);
            prop_assert!(decoder.message.len() <= bytes.len());
        }
    }

    #[test]
    fn abandoned_message_is_dropped() {
        let (first, second) = (message("never finished"), message("whole"));
        let mut decoder = FragmentDecoder::default();
        decoder.push(&fragments(2, 1, [0, 0], &first.pack().concat(), 50)[0]);
        fragments(2, 2, [0, 0], &second.pack().concat(), 50).iter().for_each(|part| decoder.push(part));
        assert_eq!(all(&mut decoder), [([Some(0), Some(0)], Broadcast::Message(Ok(second)))]);
    }

    #[test]
    fn owner_of_text_is_read() {
        let mut decoder = FragmentDecoder::default();
        decoder.push(&fragments(3, 0, [5, 6], b"id", 50).concat());
        decoder.push(&fragments(3, 0, [5, 6], b"", 50).concat());
        let owners: Vec<_> = all(&mut decoder).into_iter().map(|(_, broadcast)| broadcast).collect();
        assert_eq!(owners, [Broadcast::TextOwner(Some("id".into())), Broadcast::TextOwner(None)]);
    }

    #[test]
    fn too_large_message_is_reported_once_and_next_is_read() {
        let mut decoder = FragmentDecoder::default();
        let part = fragments(1, 1, [0, 0], &[b'x'; 60_000], 60_000).concat();
        let mut reports = 0;
        for _ in 0..MAX_MESSAGE / 60_000 + 10 {
            decoder.push(&part);
            reports += all(&mut decoder).iter().filter(|(_, broadcast)| *broadcast == Broadcast::TooLarge).count();
        }
        assert_eq!((reports, decoder.message.len()), (1, 0));
        decoder.push(&fragments(2, 2, [0, 0], &message("next").pack().concat(), 4000).concat());
        assert!(matches!(decoder.next(), Some((_, Broadcast::Message(Ok(_))))));
    }

    #[test]
    fn unknown_kind_ends_the_reading() {
        let mut decoder = FragmentDecoder::default();
        decoder.push(&[b'?'; 30_000]);
        assert_eq!(all(&mut decoder).pop().map(|(_, broadcast)| broadcast), Some(Broadcast::Malformed));
        decoder.push(&[b'?'; 30_000]);
        assert!(decoder.next().is_none() && decoder.bytes.is_empty(), "nothing is kept");
    }
}
