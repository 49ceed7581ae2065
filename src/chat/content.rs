//! What a cell showed, as a model is told it: texts by head and tail without colours, tables as plain text, errors short, pictures as
//! pictures. Pure.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use crate::output::{joined, strip_ansi};

/// Bytes of one output's text, and of all of a cell's.
const MAX_OUTPUT: usize = 6 << 10;
const MAX_CELL: usize = 16 << 10;
/// Bytes and last lines of a traceback.
const MAX_TRACEBACK: usize = 2 << 10;
const TRACEBACK_LINES: usize = 14;
/// Bytes of a picture that is shown to a model.
const MAX_PICTURE: u64 = 3 << 20;
/// The latest pictures of a cell that are kept.
pub(super) const MAX_PICTURES: usize = 6;
/// What models take as pictures.
const PICTURES: [&str; 2] = ["image/png", "image/jpeg"];

/// A picture, where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Picture {
    /// In place, as base64.
    Inline { mime: &'static str, base64: String },
    /// An artifact.
    Artifact { mime: &'static str, sha256: String },
}

/// What a cell showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    pub text: String,
    pub pictures: Vec<Picture>,
}

/// Sums up a cell's outputs. `sizes`: bytes of the session's artifacts.
pub(super) fn shown(outputs: &[Value], sizes: &HashMap<String, u64>) -> Shown {
    let mut all = Shown::default();
    for output in outputs {
        let text = match output.get("output_type").and_then(Value::as_str) {
            Some("stream") => head_and_tail(&joined(output.get("text")), MAX_OUTPUT),
            Some("error") => error(output),
            _ => display(output, sizes, &mut all.pictures),
        };
        if !text.is_empty() {
            if !all.text.is_empty() && !all.text.ends_with('\n') {
                all.text.push('\n');
            }
            all.text.push_str(&text);
        }
        // Thousands of outputs are cut below; what is far over the bound need not be kept until then.
        if all.text.len() > 4 * MAX_CELL {
            all.text = head_and_tail(&all.text, 2 * MAX_CELL);
        }
    }
    all.text = head_and_tail(&all.text, MAX_CELL);
    all
}

fn display(output: &Value, sizes: &HashMap<String, u64>, pictures: &mut Vec<Picture>) -> String {
    let Some(data) = output.get("data").and_then(Value::as_object) else { return String::new() };
    for mime in PICTURES {
        let Some(value) = data.get(mime) else { continue };
        let too_large = || format!("[a picture, {mime}, too large to be shown to you; the person sees it]");
        let picture = match value.get("artifact").and_then(Value::as_str) {
            Some(sha256) if sizes.get(sha256).is_some_and(|bytes| *bytes <= MAX_PICTURE) => {
                Picture::Artifact { mime, sha256: sha256.to_owned() }
            }
            Some(_) => return too_large(),
            None => match inline(value) {
                Inline::Base64(base64) => Picture::Inline { mime, base64 },
                Inline::TooLarge => return too_large(),
                Inline::Broken => return format!("[a picture, {mime}, that cannot be read]"),
            },
        };
        if pictures.len() == MAX_PICTURES {
            pictures.remove(0);
        }
        pictures.push(picture);
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

/// What stands in place of a picture.
enum Inline {
    Base64(String),
    TooLarge,
    Broken,
}

/// A kernel can send anything as base64, and what cannot be read as such is no artifact: it stays where it is, of any size.
fn inline(value: &Value) -> Inline {
    let pieces: Vec<&str> = match value {
        Value::String(text) => vec![text],
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        _ => return Inline::Broken,
    };
    // Before any of it is copied. Three bytes are four letters, and lines end.
    let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    if bytes as u64 > MAX_PICTURE * 3 / 2 {
        return Inline::TooLarge;
    }
    let base64: String = pieces.iter().flat_map(|piece| piece.split_whitespace()).collect();
    match BASE64.decode(&base64) {
        Ok(bytes) if bytes.len() as u64 > MAX_PICTURE => Inline::TooLarge,
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

/// A text's beginning and end without escape sequences, and how much is left out between them.
pub(super) fn head_and_tail(text: &str, most: usize) -> String {
    // Sequences count until they are gone; a text that is far too long is cut before it is looked at.
    let roughly = 8 * most;
    let (cut, missing) = cut_middle(text, roughly);
    let (head, end) = cut.map_or((strip_ansi(text), None), |(head, end)| (strip_ansi(head), Some(strip_ansi(end))));
    match end {
        None => match cut_middle(&head, most) {
            (None, _) => head,
            (Some((first, last)), missing) => told(first, last, missing),
        },
        Some(end) => {
            let first = &head[..head.floor_char_boundary(most / 2)];
            let last = tail(&end, most / 2);
            let dropped = head.len() - first.len() + end.len() - last.len();
            told(first, &last, missing + dropped)
        }
    }
}

fn told(head: &str, end: &str, missing: usize) -> String {
    format!("{head}\n[… {missing} bytes are left out here …]\n{end}")
}

/// The two ends of a text that is too long, and the bytes between them.
fn cut_middle(text: &str, most: usize) -> (Option<(&str, &str)>, usize) {
    if text.len() <= most {
        return (None, 0);
    }
    let head = text.floor_char_boundary(most / 2);
    let end = text.ceil_char_boundary(text.len() - most / 2);
    (Some((&text[..head], &text[end..])), end - head)
}

fn tail(text: &str, most: usize) -> String {
    text[text.ceil_char_boundary(text.len().saturating_sub(most))..].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn sum(outputs: &[Value]) -> Shown {
        shown(outputs, &HashMap::from([("small".to_owned(), 10), ("large".to_owned(), MAX_PICTURE + 1)]))
    }

    #[test]
    fn texts_are_plain_and_tables_are_text() {
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
    fn pictures_are_pictures() {
        let picture =
            |data: Value| json!({"output_type": "display_data", "data": {"image/png": data, "text/plain": "<Figure>"}});
        let all =
            sum(&[picture(json!("aGk=\n")), picture(json!({"artifact": "small"})), picture(json!({"artifact": "large"}))]);
        assert_eq!(
            all.pictures,
            [
                Picture::Inline { mime: "image/png", base64: "aGk=".to_owned() },
                Picture::Artifact { mime: "image/png", sha256: "small".to_owned() }
            ]
        );
        assert!(!all.text.contains("aGk") && all.text.contains("too large"), "{}", all.text);
    }

    #[test]
    fn a_cell_keeps_few_pictures_and_none_that_is_too_large_or_broken() {
        let picture = |data: &str| json!({"output_type": "display_data", "data": {"image/png": data}});
        let many: Vec<Value> = (0..100).map(|n| picture(&BASE64.encode(format!("plot {n}")))).collect();
        let all = sum(&many);
        let last = |n: usize| Picture::Inline { mime: "image/png", base64: BASE64.encode(format!("plot {n}")) };
        assert_eq!(all.pictures, (94..100).map(last).collect::<Vec<_>>());
        let most = usize::try_from(MAX_PICTURE).unwrap();
        let fits = sum(&[picture(&BASE64.encode(vec![1; most]))]);
        assert_eq!(fits.pictures.len(), 1);
        for (data, words) in [
            (BASE64.encode(vec![1; most + 1]), "too large"),
            ("!".repeat(9 * most), "too large"),
            ("no base64!".to_owned(), "cannot be read"),
            (" ".to_owned(), "cannot be read"),
        ] {
            let all = sum(&[picture(&data)]);
            assert!(all.pictures.is_empty() && all.text.contains(words) && all.text.len() < 100, "{}", all.text);
        }
        assert!(sum(&[json!({"data": {"image/png": {"a": 1}}})]).text.contains("cannot be read"));
    }

    #[test]
    fn errors_are_short() {
        let lines: Vec<String> = (0..200).map(|n| format!("\u{1b}[1mframe {n}\u{1b}[0m")).collect();
        let text = sum(&[json!({"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": lines})]).text;
        assert!(text.starts_with("ValueError: no\n") && text.contains("frame 199") && !text.contains("frame 100"), "{text}");
        assert!(!text.contains('\u{1b}') && text.len() < 2 * MAX_TRACEBACK);
    }

    proptest! {
        #[test]
        fn no_text_is_longer_than_it_may_be(text in "(ä|\u{1b}\\[31m|line\n|x){0,400}", most in 20usize..200) {
            let cut = head_and_tail(&text, most);
            prop_assert!(cut.len() <= most + 60, "{} of {most}", cut.len());
            let coloured = cut.contains("\u{1b}[31m");
            prop_assert!(!coloured);
            if strip_ansi(&text).len() <= most && text.len() <= 8 * most {
                prop_assert_eq!(cut, strip_ansi(&text));
            }
        }
    }

    #[test]
    fn a_flood_is_head_and_tail() {
        let flood: String = (0..200_000).map(|n| format!("line {n}\n")).collect();
        let text = sum(&[json!({"output_type": "stream", "name": "stdout", "text": flood})]).text;
        assert!(text.len() < MAX_CELL && text.starts_with("line 0\n") && text.ends_with("line 199999\n"));
        assert!(text.contains("are left out here"));
    }
}
