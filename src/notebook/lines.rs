//! Lines as Python's `str.splitlines(keepends=True)` splits them: nbformat stores texts as lists of such lines.

use serde_json::Value;
use std::borrow::Cow;

/// The lines of a text with their ends. Python ends lines at `\n`, `\r`, `\r\n`, `\v`, `\f`, `\x1c` to `\x1e`, `\x85`,
/// U+2028 and U+2029. Concatenated, the lines are the text; an empty text has no lines.
pub(super) fn split(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let (line, rest) = text.split_at(line_len(text));
        text = rest;
        Some(line)
    })
}

/// Length in bytes of the first line, with its end.
fn line_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|byte| may_start_line_end(*byte)) {
        at += found;
        match &bytes[at..] {
            [b'\r', b'\n', ..] => return at + 2,
            [b'\n' | b'\r' | 0x0b | 0x0c | 0x1c..=0x1e, ..] => return at + 1,
            [0xc2, 0x85, ..] => return at + 2,
            [0xe2, 0x80, 0xa8 | 0xa9, ..] => return at + 3,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn may_start_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r' | 0x0b | 0x0c | 0x1c..=0x1e | 0xc2 | 0xe2)
}

/// Whether the text is exactly one line: not empty, and without a line end before its end.
pub(super) fn is_one(text: &str) -> bool {
    !text.is_empty() && line_len(text) == text.len()
}

/// Whether a text ends with a complete line end.
pub(super) fn is_ended(text: &str) -> bool {
    match text.chars().next_back() {
        // A bare \r may be the first half of \r\n, whose second half is in the next text.
        Some('\r') | None => false,
        Some(last) => matches!(last, '\n' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'),
    }
}

/// A multi-line string: a string, or a list of strings, joined. `None` for other values.
pub(super) fn join(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Array(items) => items.iter().map(Value::as_str).collect::<Option<String>>().map(Cow::Owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_split_as_in_python() {
        let text = "a\r\nb\rc\n\nd\u{b}e\u{c}f\u{1c}g\u{1d}h\u{1e}i\u{85}j\u{2028}k\u{2029}l\u{1f}\u{a0}\u{2027}m";
        let lines: Vec<&str> = split(text).collect();
        assert_eq!(lines.len(), 13);
        assert_eq!(lines[12], "l\u{1f}\u{a0}\u{2027}m");
        assert_eq!(split("").count(), 0);
        assert_eq!(split("\n").collect::<Vec<_>>(), ["\n"]);
    }

    proptest! {
        #[test]
        fn lines_concatenate_to_the_text(text in "[ab\r\n\u{b}\u{85}\u{2028}é]{0,20}") {
            let lines: Vec<&str> = split(&text).collect();
            prop_assert_eq!(lines.concat(), text.as_str());
            for line in lines {
                prop_assert!(is_one(line));
            }
        }
    }
}
