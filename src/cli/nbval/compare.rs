//! Compares a cell's stored outputs with fresh ones, as nbval does: by MIME type, with the streams of one name joined.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};

use super::SanitizeRules;
use crate::output::{OutputTarget, Outputs, StreamStyle, strip_ansi};

/// A longer difference is cut, bytes.
const MAX_DIFFERENCE: usize = 20_000;

/// The outputs of a cell, keyed by `stdout`, `stderr`, `error` and the MIME types of displays and results.
type OutputsByKind = BTreeMap<String, Vec<String>>;

fn by_kind(outputs: &[Value], rules: &SanitizeRules) -> OutputsByKind {
    let mut all = OutputsByKind::new();
    for output in outputs {
        match output["output_type"].as_str() {
            Some("stream") => {
                let stream =
                    all.entry(output["name"].as_str().unwrap_or("stdout").to_owned()).or_insert_with(|| vec![String::new()]);
                stream[0].push_str(&text_of(&output["text"]));
            }
            // As in nbval, tracebacks are not compared: they contain line numbers and file names.
            Some("error") => {
                let text = format!("{}: {}", text_of(&output["ename"]), text_of(&output["evalue"]));
                all.entry("error".to_owned()).or_default().push(strip_ansi(&text));
            }
            _ => {
                for (mime, value) in output["data"].as_object().into_iter().flatten() {
                    all.entry(mime.clone()).or_default().push(text_of(value));
                }
            }
        }
    }
    for (kind, texts) in &mut all {
        let is_stream = matches!(kind.as_str(), "stdout" | "stderr");
        for text in texts {
            *text = rules.apply(&if is_stream { rendered_stream(text) } else { std::mem::take(text) });
        }
    }
    all
}

/// A stream as a terminal shows it: other tools store every step of a progress bar.
fn rendered_stream(text: &str) -> String {
    let (cell, mut outputs) = (OutputTarget::cell(0), Outputs::new(StreamStyle::Terminal));
    outputs.apply(cell, "stream", json!({"name": "stdout", "text": text}).to_string().as_bytes());
    outputs.outputs(cell).first().map(|output| text_of(&output["text"])).unwrap_or_default()
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) if lines.iter().all(Value::is_string) => lines.iter().filter_map(Value::as_str).collect(),
        other => format!("{other:#}"),
    }
}

/// Describes each difference between stored and fresh outputs. `colours`: with ANSI colours.
pub(in crate::cli) fn differences(stored: &[Value], fresh: &[Value], rules: &SanitizeRules, colours: bool) -> Vec<String> {
    let (stored, fresh) = (by_kind(stored, rules), by_kind(fresh, rules));
    let mut all = Vec::new();
    for (kind, before) in &stored {
        match fresh.get(kind) {
            None => all.push(format!("{kind}: stored, but not there any more")),
            Some(after) if before.len() != after.len() => {
                all.push(format!("{kind}: {} stored, {} now", before.len(), after.len()));
            }
            Some(after) => {
                let pairs = before.iter().zip(after).filter(|(before, after)| before != after);
                all.extend(pairs.map(|(before, after)| difference(kind, before, after, colours)));
            }
        }
    }
    let new = fresh.iter().filter(|(kind, _)| !stored.contains_key(*kind));
    all.extend(new.map(|(kind, text)| {
        let first: String = text.concat().chars().filter(|c| !c.is_control()).take(80).collect();
        format!("{kind}: not stored, but there now: {first}")
    }));
    all
}

fn difference(kind: &str, before: &str, after: &str, colours: bool) -> String {
    let is_text = kind.starts_with("text/")
        || matches!(kind, "stdout" | "stderr" | "error" | "image/svg+xml")
        || kind.ends_with("json");
    if !is_text {
        let at = before.bytes().zip(after.bytes()).position(|(a, b)| a != b).unwrap_or(before.len().min(after.len()));
        return format!(
            "{kind}: the bytes differ: {} stored, {} now, from character {at} of their text on",
            before.len(),
            after.len()
        );
    }
    let mut text = format!("{kind}:\n");
    let diff = TextDiff::from_lines(before, after);
    for group in diff.grouped_ops(3) {
        for change in group.iter().flat_map(|part| diff.iter_changes(part)) {
            let (sign, colour) = match change.tag() {
                ChangeTag::Delete => ('-', "\u{1b}[31m"),
                ChangeTag::Insert => ('+', "\u{1b}[32m"),
                ChangeTag::Equal => (' ', ""),
            };
            let line = strip_ansi(change.value().trim_end_matches('\n'));
            let (colour, end) = if colours && !colour.is_empty() { (colour, "\u{1b}[0m") } else { ("", "") };
            text.push_str(&format!("    {colour}{sign}{line}{end}\n"));
        }
    }
    if text.len() > MAX_DIFFERENCE {
        text.truncate(text.floor_char_boundary(MAX_DIFFERENCE));
        text.push_str("\n    ... and more");
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(text: &str) -> Value {
        json!({"output_type": "stream", "name": "stdout", "text": text})
    }

    fn display(data: Value) -> Value {
        json!({"output_type": "display_data", "metadata": {}, "data": data})
    }

    fn compared(stored: &[Value], fresh: &[Value]) -> Vec<String> {
        differences(stored, fresh, &SanitizeRules::default(), false)
    }

    #[test]
    fn output_order_matters_only_within_a_kind() {
        let png = |text| display(json!({"image/png": text}));
        assert_eq!(compared(&[stream("a\n"), png("x"), stream("b\n")], &[png("x"), stream("a\nb\n")]), [""; 0]);
        assert_eq!(compared(&[stream("0%\r100%\n")], &[stream("100%\n")]), [""; 0], "as a terminal shows it");
        assert_eq!(compared(&[png("xa"), png("y")], &[png("y"), png("xa")]).len(), 2);
        assert_eq!(
            compared(&[png("xa")], &[png("xb")]),
            ["image/png: the bytes differ: 2 stored, 2 now, from character 1 of their text on"]
        );
        assert_eq!(compared(&[png("x")], &[]), ["image/png: stored, but not there any more"]);
        assert_eq!(compared(&[], &[stream("new")]), ["stdout: not stored, but there now: new"]);
        assert_eq!(compared(&[stream("same\nold\n")], &[stream("same\nnew\n")]), ["stdout:\n     same\n    -old\n    +new"]);
    }

    #[test]
    fn errors_are_compared_without_tracebacks() {
        let error = |value, trace| json!({"output_type": "error", "ename": "E", "evalue": value, "traceback": [trace]});
        assert_eq!(compared(&[error("v", "a")], &[error("v", "b")]), [""; 0]);
        assert_eq!(compared(&[error("v", "a")], &[error("w", "a")]).len(), 1);
    }
}
