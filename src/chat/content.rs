//! Summaries of outputs for the model: the beginning and the end of texts without colours, tables as plain text, short
//! errors, images. Pure.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use crate::output::{joined, strip_ansi};

/// The largest text of one output, and of all outputs of a cell. Bytes.
const MAX_OUTPUT: usize = 6 << 10;
const MAX_CELL: usize = 16 << 10;
/// The largest traceback in bytes, and the number of its last lines that are kept.
const MAX_TRACEBACK: usize = 2 << 10;
const TRACEBACK_LINES: usize = 14;
/// The largest image that is sent to the model, in bytes.
const MAX_IMAGE: u64 = 3 << 20;
/// The number of latest images of a cell that are kept.
pub(super) const MAX_IMAGES: usize = 6;
/// The image types that models accept.
const IMAGE_TYPES: [&str; 2] = ["image/png", "image/jpeg"];

/// An image and the location of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Image {
    Inline { mime: &'static str, base64: String },
    Artifact { mime: &'static str, sha256: String },
}

/// The outputs of a cell in the form for the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OutputSummary {
    pub text: String,
    pub images: Vec<Image>,
}

/// Summarizes the outputs of a cell. `sizes` are those of the session's artifacts in bytes.
pub(super) fn summarize(outputs: &[Value], sizes: &HashMap<String, u64>) -> OutputSummary {
    let mut all = OutputSummary::default();
    for output in outputs {
        let text = match output.get("output_type").and_then(Value::as_str) {
            Some("stream") => head_and_tail(&joined(output.get("text")), MAX_OUTPUT),
            Some("error") => error(output),
            _ => display(output, sizes, &mut all.images),
        };
        if !text.is_empty() {
            if !all.text.is_empty() && !all.text.ends_with('\n') {
                all.text.push('\n');
            }
            all.text.push_str(&text);
        }
        // The text is cut at the end. Cutting it here as well bounds the memory for thousands of outputs.
        if all.text.len() > 4 * MAX_CELL {
            all.text = head_and_tail(&all.text, 2 * MAX_CELL);
        }
    }
    all.text = head_and_tail(&all.text, MAX_CELL);
    all
}

fn display(output: &Value, sizes: &HashMap<String, u64>, images: &mut Vec<Image>) -> String {
    let Some(data) = output.get("data").and_then(Value::as_object) else { return String::new() };
    for mime in IMAGE_TYPES {
        let Some(value) = data.get(mime) else { continue };
        let too_large = || format!("[a picture, {mime}, too large to be shown to you; the person sees it]");
        let image = match value.get("artifact").and_then(Value::as_str) {
            Some(sha256) if sizes.get(sha256).is_some_and(|bytes| *bytes <= MAX_IMAGE) => {
                Image::Artifact { mime, sha256: sha256.to_owned() }
            }
            Some(_) => return too_large(),
            None => match parse_inline(value) {
                Inline::Base64(base64) => Image::Inline { mime, base64 },
                Inline::TooLarge => return too_large(),
                Inline::Broken => return format!("[a picture, {mime}, that cannot be read]"),
            },
        };
        if images.len() == MAX_IMAGES {
            images.remove(0);
        }
        images.push(image);
        return format!("[a picture, {mime}]");
    }
    for mime in ["text/plain", "text/markdown", "text/latex", "application/json"] {
        match data.get(mime) {
            Some(Value::Null) | None => {}
            Some(json @ (Value::Object(_) | Value::Number(_) | Value::Bool(_))) => {
                return head_and_tail(&json.to_string(), MAX_OUTPUT);
            }
            Some(text) => return head_and_tail(&joined(Some(text)), MAX_OUTPUT),
        }
    }
    let kinds: Vec<&str> = data.keys().map(String::as_str).take(4).collect();
    if kinds.is_empty() { String::new() } else { format!("[shown to the person as {}]", kinds.join(", ")) }
}

/// The result of reading an inline image.
enum Inline {
    Base64(String),
    TooLarge,
    Broken,
}

/// Reads an inline image. A kernel can send any text, of any size: data that is not valid base64 does not become an artifact
/// and stays inline.
fn parse_inline(value: &Value) -> Inline {
    let pieces: Vec<&str> = match value {
        Value::String(text) => vec![text],
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        _ => return Inline::Broken,
    };
    // This check precedes any copy. Base64 has four letters for three bytes, and line ends.
    let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    if bytes as u64 > MAX_IMAGE * 3 / 2 {
        return Inline::TooLarge;
    }
    let base64: String = pieces.iter().flat_map(|piece| piece.split_whitespace()).collect();
    match BASE64.decode(&base64) {
        Ok(bytes) if bytes.len() as u64 > MAX_IMAGE => Inline::TooLarge,
        Ok(bytes) if !bytes.is_empty() => Inline::Base64(base64),
        _ => Inline::Broken,
    }
}

fn error(output: &Value) -> String {
    let part = |key: &str| joined(output.get(key));
    let head = match (part("ename"), part("evalue")) {
        (name, value) if value.is_empty() => name,
        (name, value) => format!("{name}: {}", head_and_tail(&value, MAX_TRACEBACK)),
    };
    let lines = output.get("traceback").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text: Vec<String> = lines.iter().rev().take(TRACEBACK_LINES).map(|line| joined(Some(line))).collect();
    let text = text.into_iter().rev().collect::<Vec<_>>().join("\n");
    let text = strip_ansi(&tail(&text, 2 * MAX_TRACEBACK));
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(TRACEBACK_LINES)..].join("\n");
    if last.is_empty() { head } else { format!("{head}\n{}", tail(&last, MAX_TRACEBACK)) }
}

/// The beginning and the end of a text without escape sequences, with a note of how many bytes are left out. `max` bounds
/// the result, except for the note.
pub(super) fn head_and_tail(text: &str, max: usize) -> String {
    // A much longer text is cut before escape sequences are removed, to save time. They count for this first limit.
    let roughly = 8 * max;
    let (cut, missing) = cut_middle(text, roughly);
    let (head, end) = cut.map_or((strip_ansi(text), None), |(head, end)| (strip_ansi(head), Some(strip_ansi(end))));
    match end {
        None => match cut_middle(&head, max) {
            (None, _) => head,
            (Some((first, last)), missing) => join_ends(first, last, missing),
        },
        Some(end) => {
            let first = &head[..head.floor_char_boundary(max / 2)];
            let last = tail(&end, max / 2);
            let dropped = head.len() - first.len() + end.len() - last.len();
            join_ends(first, &last, missing + dropped)
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

fn tail(text: &str, max: usize) -> String {
    text[text.ceil_char_boundary(text.len().saturating_sub(max))..].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn sum(outputs: &[Value]) -> OutputSummary {
        summarize(outputs, &HashMap::from([("small".to_owned(), 10), ("large".to_owned(), MAX_IMAGE + 1)]))
    }

    #[test]
    fn text_is_plain_and_tables_are_text() {
        let outputs = [
            json!({"output_type": "stream", "name": "stdout", "text": ["\u{1b}[31mred\u{1b}[0m\n", "two"]}),
            json!({"output_type": "execute_result", "data": {"text/html": "<table>", "text/plain": "  a\n0 1"}}),
            json!({"output_type": "display_data", "data": {"application/vnd.plotly.v1+json": {}}}),
            json!({"output_type": "display_data", "data": {"application/json": {"a": 1}}}),
            json!({"output_type": "display_data", "data": 7}),
            json!({}),
        ];
        let text = sum(&outputs).text;
        assert_eq!(text, "red\ntwo\n  a\n0 1\n[shown to the person as application/vnd.plotly.v1+json]\n{\"a\":1}");
    }

    #[test]
    fn images_are_separated_from_text() {
        let picture =
            |data: Value| json!({"output_type": "display_data", "data": {"image/png": data, "text/plain": "<Figure>"}});
        let all =
            sum(&[picture(json!("aGk=\n")), picture(json!({"artifact": "small"})), picture(json!({"artifact": "large"}))]);
        assert_eq!(
            all.images,
            [
                Image::Inline { mime: "image/png", base64: "aGk=".to_owned() },
                Image::Artifact { mime: "image/png", sha256: "small".to_owned() }
            ]
        );
        assert!(!all.text.contains("aGk") && all.text.contains("too large"), "{}", all.text);
    }

    #[test]
    fn cell_keeps_latest_valid_images() {
        let picture = |data: &str| json!({"output_type": "display_data", "data": {"image/png": data}});
        let many: Vec<Value> = (0..100).map(|n| picture(&BASE64.encode(format!("plot {n}")))).collect();
        let all = sum(&many);
        let last = |n: usize| Image::Inline { mime: "image/png", base64: BASE64.encode(format!("plot {n}")) };
        assert_eq!(all.images, (94..100).map(last).collect::<Vec<_>>());
        let max = usize::try_from(MAX_IMAGE).unwrap();
        let fits = sum(&[picture(&BASE64.encode(vec![1; max]))]);
        assert_eq!(fits.images.len(), 1);
        for (data, words) in [
            (BASE64.encode(vec![1; max + 1]), "too large"),
            ("!".repeat(9 * max), "too large"),
            ("no base64!".to_owned(), "cannot be read"),
            (" ".to_owned(), "cannot be read"),
        ] {
            let all = sum(&[picture(&data)]);
            assert!(all.images.is_empty() && all.text.contains(words) && all.text.len() < 100, "{}", all.text);
        }
        assert!(sum(&[json!({"data": {"image/png": {"a": 1}}})]).text.contains("cannot be read"));
    }

    #[test]
    fn errors_are_shortened() {
        let lines: Vec<String> = (0..200).map(|n| format!("\u{1b}[1mframe {n}\u{1b}[0m")).collect();
        let text = sum(&[json!({"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": lines})]).text;
        assert!(text.starts_with("ValueError: no\n") && text.contains("frame 199") && !text.contains("frame 100"), "{text}");
        assert!(!text.contains('\u{1b}') && text.len() < 2 * MAX_TRACEBACK);
    }

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

    #[test]
    fn long_output_keeps_beginning_and_end() {
        let flood: String = (0..200_000).map(|n| format!("line {n}\n")).collect();
        let text = sum(&[json!({"output_type": "stream", "name": "stdout", "text": flood})]).text;
        assert!(text.len() < MAX_CELL && text.starts_with("line 0\n") && text.ends_with("line 199999\n"));
        assert!(text.contains("are left out here"));
    }
}
