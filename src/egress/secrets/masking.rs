//! Values of secrets that a host sends back, replaced by stars of the same length, so that lengths and ranges of responses stay true.

use bytes::{Bytes, BytesMut};
use regex::bytes::{Regex, RegexBuilder};

/// Finds values in bytes, also across the pieces in which they come.
#[derive(Clone, Debug)]
pub(super) struct Values {
    /// Longest first.
    values: Vec<Vec<u8>>,
    pattern: Option<Regex>,
}

impl Values {
    pub fn new<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let mut values: Vec<Vec<u8>> = values.map(|value| value.as_bytes().to_vec()).collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        let literal = |value: &Vec<u8>| regex::escape(&String::from_utf8_lossy(value));
        let pattern = values.iter().map(literal).collect::<Vec<_>>().join("|");
        // The length of the values is limited, so the pattern is, too.
        let pattern =
            RegexBuilder::new(&pattern).unicode(false).size_limit(64 << 20).build().ok().filter(|_| !values.is_empty());
        Self { values, pattern }
    }

    /// The bytes with stars in place of values; `None` if there is no value in them.
    pub fn masked(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let pattern = self.pattern.as_ref()?;
        let mut found = pattern.find_iter(bytes).peekable();
        found.peek()?;
        let mut masked = bytes.to_vec();
        found.for_each(|value| masked[value.range()].fill(b'*'));
        Some(masked)
    }

    /// The length of the longest end of these bytes with which a value may begin.
    fn open_end(&self, bytes: &[u8]) -> usize {
        let longest = self.values.first().map_or(0, |value| value.len() - 1).min(bytes.len());
        let begins = |length: &usize| {
            let end = &bytes[bytes.len() - length..];
            self.values.iter().any(|value| value.len() > *length && value.starts_with(end))
        };
        (1..=longest).rev().find(begins).unwrap_or(0)
    }
}

/// Masks a stream of bytes. What may be the beginning of a value waits for what follows.
#[derive(Debug)]
pub(super) struct Masker {
    values: Values,
    waiting: BytesMut,
}

impl Masker {
    pub fn new(values: Values) -> Self {
        Self { values, waiting: BytesMut::new() }
    }

    /// The bytes that can be passed on, maybe none.
    pub fn pass(&mut self, bytes: &Bytes) -> Bytes {
        let whole = if self.waiting.is_empty() {
            bytes.clone()
        } else {
            self.waiting.extend_from_slice(bytes);
            self.waiting.split().freeze()
        };
        let mut masked = self.values.masked(&whole).map_or(whole, Bytes::from);
        let open = self.values.open_end(&masked);
        self.waiting.extend_from_slice(&masked.split_off(masked.len() - open));
        masked
    }

    /// What still waits, at the end.
    pub fn finish(&mut self) -> Bytes {
        self.waiting.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values() -> Values {
        Values::new(["abcabd", "hunter2", "hunter2-long"].into_iter())
    }

    fn in_pieces(text: &str, size: usize) -> String {
        let (mut masker, mut all) = (Masker::new(values()), Vec::new());
        for piece in text.as_bytes().chunks(size) {
            all.extend_from_slice(&masker.pass(&Bytes::copy_from_slice(piece)));
        }
        all.extend_from_slice(&masker.finish());
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn values_are_masked_however_they_are_cut() {
        let (text, expected) =
            ("x abcabcabd hunter2 hunter hunter2-long hunte", "x abc****** ******* hunter ************ hunte");
        for size in 1..text.len() {
            // Where one value is the beginning of another, it may end before the longer one is seen.
            let masked = in_pieces(text, size);
            assert_eq!(masked.len(), expected.len());
            assert!(!masked.contains("hunter2") && !masked.contains("abcabd"), "{size}: {masked}");
        }
        assert_eq!(in_pieces(text, text.len()), expected);
        assert_eq!(values().masked(b"nothing"), None);
        assert_eq!(Values::new(std::iter::empty()).masked(b"nothing"), None);
    }

    #[test]
    fn what_is_no_beginning_is_passed_on_at_once() {
        let mut masker = Masker::new(values());
        assert_eq!(masker.pass(&Bytes::from_static(b"data: 1\n\n")), "data: 1\n\n");
        assert_eq!(masker.pass(&Bytes::from_static(b"data: hunt")), "data: ");
        assert_eq!(masker.pass(&Bytes::from_static(b"ing\n\n")), "hunting\n\n");
    }

    proptest! {
        #[test]
        fn no_value_gets_through(text in "[abcdhunter2-]{0,60}", size in 1usize..20) {
            let masked = in_pieces(&text, size);
            prop_assert!(!masked.contains("abcabd") && !masked.contains("hunter2"));
            prop_assert_eq!(masked.len(), text.len());
        }
    }
}
