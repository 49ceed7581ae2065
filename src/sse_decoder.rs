//! Decodes server-sent events, which may be split anywhere, of servers that are not trusted.

use thiserror::Error;

/// The largest event in bytes.
const MAX_EVENT: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an event exceeds {} MB", MAX_EVENT >> 20)]
pub(crate) struct EventTooLarge;

/// A decoder of server-sent events for chunks of any size.
#[derive(Debug, Default)]
pub(crate) struct SseDecoder {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    /// The last byte was a carriage return, so a following line feed belongs to it.
    after_return: bool,
}

impl SseDecoder {
    /// Adds a chunk. Returns the data of the events that are complete now.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Vec<String>, EventTooLarge> {
        let mut events = Vec::new();
        for &byte in chunk {
            let ends_line = matches!(byte, b'\n' | b'\r');
            let is_second = byte == b'\n' && self.after_return;
            self.after_return = byte == b'\r';
            if is_second {
                continue;
            }
            if ends_line {
                let line = std::mem::take(&mut self.line);
                events.extend(self.end_line(&line));
            } else {
                self.line.push(byte);
            }
            if self.line.len() + self.data.len() > MAX_EVENT {
                return Err(EventTooLarge);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self, line: &[u8]) -> Option<String> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return std::mem::take(&mut self.has_data).then_some(data);
        }
        let rest = line.strip_prefix(b"data:")?;
        if self.has_data {
            self.data.push('\n');
        }
        self.has_data = true;
        self.data.push_str(&String::from_utf8_lossy(rest.strip_prefix(b" ").unwrap_or(rest)));
        None
    }

    /// The last event, if the stream ended without the empty line that ends it. Some endpoints leave that out.
    pub fn finish(mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        self.end_line(&line).or_else(|| self.has_data.then_some(self.data))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn collect(chunks: &[&[u8]]) -> Vec<String> {
        let mut decoder = SseDecoder::default();
        let mut events: Vec<String> = chunks.iter().flat_map(|chunk| decoder.push(chunk).unwrap()).collect();
        events.extend(decoder.finish());
        events
    }

    #[test]
    fn events_are_decoded_with_any_line_ends() {
        let text = b": hello\r\ndata: a\r\n\r\nid: 7\ndata:b\ndata: c\n\ndata: d\r\rdata: e";
        assert_eq!(collect(&[text]), ["a", "b\nc", "d", "e"]);
        assert_eq!(collect(&[b"\n\n: nothing\n\n"]), [""; 0]);
        let mut decoder = SseDecoder::default();
        assert!(decoder.push(&vec![b'x'; MAX_EVENT + 1]).is_err());
    }

    proptest! {
        #[test]
        fn chunk_bounds_do_not_matter(
            text in "(data: [aä{}\r]{0,5}|: x|\n|\r\n){0,12}", cuts in prop::collection::vec(0usize..80, 0..6)
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                pieces.push(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(collect(&pieces), collect(&[bytes]));
        }
    }
}
