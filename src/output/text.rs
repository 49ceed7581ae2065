//! Outputs as plain text, for terminals and other readers without a browser.

use crate::mime;
use serde_json::{Map, Value};

/// Types that are readable as text, best first.
const READABLE: &[&str] = &["text/plain", "text/markdown", "text/latex", "text/csv"];

/// Renders outputs for a terminal: stream text as it is, the `text/plain` of results and displays, tracebacks joined with line feeds.
/// Colours stay (see [`strip_ansi`](super::strip_ansi)). A display without text is named by its best type, as `[image/png]`. Blocks
/// start on a new line.
pub fn text_of(outputs: &[Value]) -> String {
    let mut out = String::new();
    for output in outputs {
        let (block, whole_lines) = block(output);
        if whole_lines && !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out.push_str(&block);
        if whole_lines && !block.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
    }
    out
}

/// The text of one output, and whether it takes whole lines.
fn block(output: &Value) -> (String, bool) {
    match output.get("output_type").and_then(Value::as_str) {
        Some("stream") => (joined(output.get("text")), false),
        Some("error") => (error(output), true),
        _ => (output.get("data").and_then(Value::as_object).map(bundle).unwrap_or_default(), true),
    }
}

fn bundle(data: &Map<String, Value>) -> String {
    for mime in READABLE {
        if let Some(value) = data.get(*mime).filter(|value| !value.is_null()) {
            return joined(Some(value));
        }
    }
    let best = mime::display_order(data.keys().map(String::as_str));
    best.first().map(|mime| format!("[{mime}]")).unwrap_or_default()
}

fn error(output: &Value) -> String {
    let lines = output.get("traceback").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if !lines.is_empty() {
        let lines: Vec<String> = lines.iter().map(|line| joined(Some(line))).collect();
        return lines.join("\n");
    }
    let (name, value) = (joined(output.get("ename")), joined(output.get("evalue")));
    if value.is_empty() { name } else { format!("{name}: {value}") }
}

/// A string or list of strings as one string; other values as JSON, nothing for null.
pub fn joined(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => items.iter().filter_map(Value::as_str).collect(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_kind_as_text() {
        let outputs = [
            json!({"output_type": "stream", "name": "stdout", "text": ["no end", " of line"]}),
            json!({"output_type": "execute_result", "data": {"text/html": "<b>", "text/plain": "42"}}),
            json!({"output_type": "display_data", "data": {"image/png": "aaaa", "text/html": "<p>"}}),
            json!({"output_type": "display_data", "data": {}}),
            json!({"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["a", "b"]}),
            json!({"output_type": "error", "ename": "E", "evalue": "v", "traceback": []}),
            json!(null),
        ];
        assert_eq!(text_of(&outputs), "no end of line\n42\n[text/html]\na\nb\nE: v\n");
    }
}
