//! Cuts a stream of bytes into pieces that never split a UTF-8 character.

use bytes::Bytes;

/// Holds back an incomplete character at the end of what was pushed.
#[derive(Default)]
pub(super) struct WholeCharacters {
    incomplete: Vec<u8>,
}

impl WholeCharacters {
    /// The bytes that can be passed on, if any.
    pub fn push(&mut self, bytes: Bytes) -> Bytes {
        let mut whole = if self.incomplete.is_empty() { bytes } else { self.take_with(&bytes) };
        self.incomplete = whole.split_off(whole.len() - incomplete_tail(&whole)).to_vec();
        whole
    }

    /// The incomplete character at the end of the stream.
    pub fn finish(&mut self) -> Bytes {
        self.take_with(&[])
    }

    fn take_with(&mut self, bytes: &[u8]) -> Bytes {
        let mut joined = std::mem::take(&mut self.incomplete);
        joined.extend_from_slice(bytes);
        joined.into()
    }
}

/// The length of an incomplete character at the end, at most three bytes. Bytes that are not UTF-8 count as complete.
fn incomplete_tail(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let start = tail.iter().rposition(|byte| byte & 0b1100_0000 == 0b1100_0000);
    start.map(|at| &tail[at..]).filter(|start| start.len() < char_length(start[0])).map_or(0, <[u8]>::len)
}

/// The length of the UTF-8 character that starts with this byte.
fn char_length(first: u8) -> usize {
    match first {
        0b1100_0000..=0b1101_1111 => 2,
        0b1110_0000..=0b1110_1111 => 3,
        0b1111_0000..=0b1111_0111 => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_incomplete_characters_wait() {
        for (bytes, waiting) in [
            (&b""[..], 0),
            (b"abc", 0),
            ("aü".as_bytes(), 0),
            (&"aü".as_bytes()[..2], 1),
            (&"a€".as_bytes()[..3], 2),
            (&"😀".as_bytes()[..3], 3),
            ("😀".as_bytes(), 0),
            (b"\xff\xff", 0),
            (b"\x80\x80\x80\x80", 0),
        ] {
            assert_eq!(incomplete_tail(bytes), waiting, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn text_in_pieces_arrives_whole(text in "\\PC{1,40}", size in 1usize..9) {
            let mut characters = WholeCharacters::default();
            let mut arrived = String::new();
            for piece in text.as_bytes().chunks(size) {
                let whole = characters.push(Bytes::copy_from_slice(piece));
                arrived.push_str(std::str::from_utf8(&whole).unwrap());
            }
            prop_assert_eq!((arrived, characters.finish()), (text, Bytes::new()));
        }

        #[test]
        fn no_byte_is_lost(bytes in prop::collection::vec(any::<u8>(), 0..200), size in 1usize..9) {
            let mut characters = WholeCharacters::default();
            let mut arrived = Vec::new();
            for piece in bytes.chunks(size) {
                arrived.extend(characters.push(Bytes::copy_from_slice(piece)));
            }
            arrived.extend(characters.finish());
            prop_assert_eq!(arrived, bytes);
        }
    }
}
