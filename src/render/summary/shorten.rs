//! The beginning and the end of long texts.

use crate::output::strip_ansi;

/// Counts what is left out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Omitted {
    pub bytes: u64,
}

impl Omitted {
    /// As [`head_and_tail`].
    pub fn shorten(&mut self, text: &str, max: usize) -> String {
        let (text, omitted) = shorten(text, max);
        self.bytes += omitted as u64;
        text
    }
}

/// The beginning and the end of a text without escape sequences, with a note of how many bytes are left out. `max` bounds
/// the result, except for the note.
pub fn head_and_tail(text: &str, max: usize) -> String {
    shorten(text, max).0
}

fn shorten(text: &str, max: usize) -> (String, usize) {
    // A much longer text is cut before escape sequences are removed, to save time. They count for this first limit.
    let roughly = 8 * max;
    let (cut, missing) = cut_middle(text, roughly);
    let (head, end) = cut.map_or((strip_ansi(text), None), |(head, end)| (strip_ansi(head), Some(strip_ansi(end))));
    match end {
        None => match cut_middle(&head, max) {
            (None, _) => (head, 0),
            (Some((first, last)), missing) => (join_ends(first, last, missing), missing),
        },
        Some(end) => {
            let first = &head[..head.floor_char_boundary(max / 2)];
            let last = tail(&end, max / 2);
            let missing = missing + head.len() - first.len() + end.len() - last.len();
            (join_ends(first, last, missing), missing)
        }
    }
}

fn join_ends(head: &str, end: &str, missing: usize) -> String {
    format!("{head}\n[… {missing} bytes are left out here …]\n{end}")
}

/// The two ends of a text above `max` bytes, and the number of bytes between them. `None` if the text is short enough.
fn cut_middle(text: &str, max: usize) -> (Option<(&str, &str)>, usize) {
    if text.len() <= max {
        return (None, 0);
    }
    let head = text.floor_char_boundary(max / 2);
    let end = text.ceil_char_boundary(text.len() - max / 2);
    (Some((&text[..head], &text[end..])), end - head)
}

/// The last bytes of a text, at most `max`.
pub(super) fn tail(text: &str, max: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(max))..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shortened_text_is_within_limit(text in "(ä|\u{1b}\\[31m|line\n|x){0,400}", max in 20usize..200) {
            let cut = head_and_tail(&text, max);
            prop_assert!(cut.len() <= max + 60, "{} of {max}", cut.len());
            let coloured = cut.contains("\u{1b}[31m");
            prop_assert!(!coloured);
            if strip_ansi(&text).len() <= max && text.len() <= 8 * max {
                prop_assert_eq!(cut, strip_ansi(&text));
            }
        }
    }
}
