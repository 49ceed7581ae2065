//! Terminal escape sequences: finding their end, and removing them from a text.

/// Longest control sequence (`ESC [ … letter`) that is recognised, in bytes. Real ones stay under 40.
const MAX_CSI: usize = 256;
/// Longest string sequence (`ESC ] … BEL`, for hyperlinks and titles) that is recognised, in bytes.
const MAX_STRING: usize = 2048;

/// What follows an ESC at the start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escape {
    /// A sequence of this many bytes, ESC included.
    Sequence(usize),
    /// The text ends inside a sequence.
    Incomplete,
    /// No sequence follows.
    Alone,
}

/// Measures the sequence at the start of `text`, whose first byte is ESC. The result depends on the bytes alone, not on where a chunk
/// ended: a sequence over its maximum length is none, however it arrived.
pub(crate) fn measure(text: &str) -> Escape {
    let bytes = text.as_bytes();
    match bytes.get(1) {
        None => Escape::Incomplete,
        Some(b'[') => csi(bytes),
        Some(b']' | b'P' | b'X' | b'^' | b'_') => string(bytes),
        // ESC, intermediates, final: character set selection and the like.
        Some(0x20..=0x2f) => match bytes.get(2) {
            None => Escape::Incomplete,
            Some(0x30..=0x7e) => Escape::Sequence(3),
            Some(_) => Escape::Alone,
        },
        Some(0x30..=0x7e) => Escape::Sequence(2),
        Some(_) => Escape::Alone,
    }
}

fn csi(bytes: &[u8]) -> Escape {
    for (at, byte) in bytes.iter().enumerate().take(MAX_CSI).skip(2) {
        match byte {
            0x40..=0x7e => return Escape::Sequence(at + 1),
            0x20..=0x3f => {}
            _ => return Escape::Alone,
        }
    }
    if bytes.len() >= MAX_CSI { Escape::Alone } else { Escape::Incomplete }
}

fn string(bytes: &[u8]) -> Escape {
    for (at, byte) in bytes.iter().enumerate().take(MAX_STRING).skip(2) {
        match byte {
            0x07 => return Escape::Sequence(at + 1),
            0x1b => {
                return match bytes.get(at + 1) {
                    None => Escape::Incomplete,
                    Some(b'\\') => Escape::Sequence(at + 2),
                    Some(_) => Escape::Alone,
                };
            }
            // A control character is no part of a title or link. The sequence was cut off, and what follows must not vanish in it.
            0x00..=0x1f => return Escape::Alone,
            _ => {}
        }
    }
    if bytes.len() >= MAX_STRING { Escape::Alone } else { Escape::Incomplete }
}

/// The text without escape sequences (colours, cursor movement, hyperlinks). An unfinished sequence at the end is removed too, and so
/// is an ESC that starts none.
pub fn strip_ansi(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        rest = match measure(rest) {
            Escape::Sequence(len) => &rest[len..],
            Escape::Incomplete => "",
            Escape::Alone => &rest[1..],
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn colours_links_and_movement_are_stripped() {
        let text = "\u{1b}[1;31mred\u{1b}[0m \u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{7} \u{1b}[2K\u{1b}(Bend\u{1b}[3";
        assert_eq!(strip_ansi(text), "red link end");
        assert_eq!(strip_ansi("a\u{1b}\nb"), "a\nb");
        assert_eq!(strip_ansi("\u{1b}]title\nline"), "]title\nline");
    }

    proptest! {
        #[test]
        fn no_escape_is_left(text in "[\u{1b}\\[\\]0-9;mKé\\\\\u{7}\n]{0,40}") {
            let escapes = strip_ansi(&text).matches('\u{1b}').count();
            prop_assert_eq!(escapes, 0);
        }
    }
}
