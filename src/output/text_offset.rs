//! Offsets in texts, in the units in which clients count.

use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

/// An offset in a text, or its length: in bytes of UTF-8, and in UTF-16 code units, which JavaScript, Java and C# count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TextOffset {
    pub bytes: usize,
    pub utf16: usize,
}

impl TextOffset {
    /// The length of a text.
    pub fn of(text: &str) -> Self {
        let continuations = text.bytes().filter(|byte| (0x80..0xc0).contains(byte)).count();
        // Characters of four bytes are surrogate pairs.
        let pairs = text.bytes().filter(|byte| *byte >= 0xf0).count();
        Self { bytes: text.len(), utf16: text.len() - continuations + pairs }
    }
}

impl Add for TextOffset {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, utf16: self.utf16 + other.utf16 }
    }
}

impl AddAssign for TextOffset {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lengths_are_those_of_the_encodings(text in "\\PC*") {
            prop_assert_eq!(TextOffset::of(&text), TextOffset { bytes: text.len(), utf16: text.encode_utf16().count() });
        }
    }
}
