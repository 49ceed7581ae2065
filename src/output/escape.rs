//! Terminal escape sequences: finding their end, and taking them out of a text.

/// Longest control sequence (`ESC [ … letter`) taken for one, in bytes. Real ones stay under 40.
const MAX_CSI: usize = 256;
/// Longest string sequence (`ESC ] … BEL`, as hyperlinks and titles) taken for one, in bytes.
const MAX_STRING: usize = 2048;

/// What stands behind an ESC at the start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escape {
    /// A sequence of this many bytes, ESC included.
    Sequence(usize),
    /// The text ends inside a sequence.
    Incomplete,
    /// No sequence: the ESC stands alone.
    Alone,
}

/// Measures the sequence at the start of `text`, whose first byte is ESC. The answer depends on the bytes alone, not
/// on where a chunk ended: a sequence over its maximum length is none, however it arrived.
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
            // A line break or another control is no part of a title or link: the sequence was cut off, and what
            // follows must not vanish in it.
            0x00..=0x1f => return Escape::Alone,
            _ => {}
        }
    }
    if bytes.len() >= MAX_STRING { Escape::Alone } else { Escape::Incomplete }
}

/// The text without escape sequences (colours, cursor movement, hyperlinks). An unfinished sequence at the end goes
/// too; an ESC that starts none goes alone.
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
    fn strips_colours_links_and_cursor() {
        let text = "\u{1b}[1;31mred\u{1b}[0m \u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{7} \u{1b}[2K\u{1b}(Bend\u{1b}[3";
        assert_eq!(strip_ansi(text), "red link end");
        assert_eq!(strip_ansi("a\u{1b}\nb"), "a\nb");
        assert_eq!(strip_ansi("\u{1b}]title\nline"), "]title\nline");
    }

    proptest! {
        #[test]
        fn leaves_no_escape(text in "[\u{1b}\\[\\]0-9;mKé\\\\\u{7}\n]{0,40}") {
            let escapes = strip_ansi(&text).matches('\u{1b}').count();
            prop_assert_eq!(escapes, 0);
        }
    }
}
