//! Terminal text in a page: colours, and long texts folded in the middle.

use crate::render::ansi::{Span, spans};

/// Longer texts are folded.
const FOLD_LINES: usize = 160;
const FOLD_BYTES: usize = 24_000;
/// The visible ends of a folded text: lines at the start and at the end, and at most this many bytes each.
const HEAD_LINES: usize = 20;
const TAIL_LINES: usize = 20;
const SHOWN_BYTES: usize = 4000;

/// A text with colours in a `<pre>`; the middle of a long text is folded.
pub(super) fn html(text: &str, class: &str, out: &mut String) {
    let spans = spans(text);
    let lengths: usize = spans.iter().map(|span| span.text.len()).sum();
    let lines = spans.iter().map(|span| newlines(span.text)).sum::<usize>() + 1;
    if lines <= FOLD_LINES && lengths <= FOLD_BYTES {
        open(class, out);
        spans.iter().for_each(|span| span.html(span.text, out));
        out.push_str("</pre>\n");
        return;
    }
    let (head, tail) = fold_bounds(&spans, lengths, lines);
    open(class, out);
    push_range(&spans, 0, head, out);
    let hidden = match spans_lines(&spans, head, tail) {
        0 | 1 => format!("{} characters", with_separators(tail - head)),
        lines => format!("{} lines", with_separators(lines)),
    };
    out.push_str(&format!("</pre>\n<details class=\"fold\"><summary>{hidden} more</summary>\n"));
    open(class, out);
    push_range(&spans, head, tail, out);
    out.push_str("</pre>\n</details>\n");
    open(class, out);
    push_range(&spans, tail, lengths, out);
    out.push_str("</pre>\n");
}

fn open(class: &str, out: &mut String) {
    // HTML ignores a line feed directly after <pre>: an empty first line must not get lost.
    out.push_str(if class.is_empty() { "<pre>\n" } else { "<pre class=\"wide\">\n" });
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// The end of the head and the start of the tail, in bytes of the text of all spans.
fn fold_bounds(spans: &[Span<'_>], all: usize, lines: usize) -> (usize, usize) {
    let (mut at, mut line) = (0, 0);
    let (mut head, mut tail) = (None, None);
    for span in spans {
        for (place, _) in span.text.match_indices('\n') {
            line += 1;
            let behind = at + place + 1;
            if line == HEAD_LINES {
                head = Some(behind);
            }
            if line + TAIL_LINES == lines {
                tail = Some(behind);
            }
        }
        at += span.text.len();
    }
    let head = head.unwrap_or(all).min(SHOWN_BYTES);
    let tail = tail.unwrap_or(0).max(all.saturating_sub(SHOWN_BYTES)).max(head);
    (boundary(spans, head), boundary(spans, tail))
}

/// The offset, or the start of the character that contains it.
fn boundary(spans: &[Span<'_>], place: usize) -> usize {
    let mut at = 0;
    for span in spans {
        if place < at + span.text.len() {
            return at + span.text.floor_char_boundary(place - at);
        }
        at += span.text.len();
    }
    at
}

/// Appends the text between two offsets.
fn push_range(spans: &[Span<'_>], from: usize, to: usize, out: &mut String) {
    parts(spans, from, to).for_each(|(span, text)| span.html(text, out));
}

fn spans_lines(spans: &[Span<'_>], from: usize, to: usize) -> usize {
    parts(spans, from, to).map(|(_, text)| newlines(text)).sum()
}

fn parts<'a>(spans: &'a [Span<'a>], from: usize, to: usize) -> impl Iterator<Item = (&'a Span<'a>, &'a str)> {
    let mut at = 0;
    spans.iter().filter_map(move |span| {
        let (start, end) = (at, at + span.text.len());
        at = end;
        let (cut_from, cut_to) = (from.max(start), to.min(end));
        (cut_from < cut_to).then(|| (span, &span.text[cut_from - start..cut_to - start]))
    })
}

/// A number with separators of thousands.
pub(super) fn with_separators(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::strip_ansi;
    use proptest::prelude::*;

    #[test]
    fn long_texts_are_folded_and_complete() {
        let text: String = (0..1000).map(|line| format!("\u{1b}[3{}m{line}\n", line % 8)).collect();
        let mut out = String::new();
        html(text.trim_end(), "", &mut out);
        assert!(out.contains("<summary>960 lines more</summary>"), "{}", &out[..2000]);
        for line in [0, 19, 20, 500, 979, 980, 999] {
            assert_eq!(
                out.matches(&format!(">{line}\n")).count() + out.matches(&format!(">{line}</span>")).count(),
                1,
                "{line}"
            );
        }
        let mut one = String::new();
        html(&"é".repeat(50_000), "", &mut one);
        assert!(one.contains("92,000 characters more"), "{}", &one[8000..8300]);
        assert_eq!(one.matches('é').count(), 50_000);
    }

    proptest! {
        #[test]
        fn folding_keeps_every_character(lines in 100..400_usize, width in 0..200_usize) {
            let text: String = (0..lines).map(|line| format!("{}\u{1b}[1m{line}é\u{1b}[0m\n", "x".repeat(width))).collect();
            let mut out = String::new();
            html(&text, "", &mut out);
            let mut inside = String::new();
            for part in out.split("<pre>\n").skip(1) {
                inside.push_str(part.split("</pre>").next().unwrap());
            }
            let inside = inside.replace("<span class=\"ab\">", "").replace("</span>", "");
            prop_assert_eq!(inside, strip_ansi(&text));
        }
    }
}
