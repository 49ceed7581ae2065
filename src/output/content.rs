//! Reads what one iopub message means for the outputs, whatever the shape of its content.

use super::MAX_ID;
use crate::wire::json::{self, Bounds, MAX_DEPTH, MAX_VALUES};
use serde_json::{Map, Value, json};

/// Deepest nesting of a content. In a notebook the content lies a few levels deeper, and must still be readable there.
const CONTENT_DEPTH: usize = MAX_DEPTH - 7;
/// Most characters that are quoted of an unreadable content.
const EXCERPT: usize = 200;

/// The meaning of a message.
pub(super) enum Reading {
    Nothing,
    Stream { name: String, text: String },
    Output { output: Value, display_id: Option<String> },
    Pages(Vec<Value>),
    Update { data: Value, metadata: Value, display_id: String },
    Clear { wait: bool },
}

/// Reads a message by the types that the Jupyter messaging documentation lists for iopub.
pub(super) fn read(msg_type: &str, content: &[u8]) -> Reading {
    const TYPES: &[&str] =
        &["stream", "display_data", "execute_result", "error", "update_display_data", "clear_output", "execute_reply"];
    if !TYPES.contains(&msg_type) {
        return Reading::Nothing;
    }
    let bounds = Bounds { depth: CONTENT_DEPTH, values: MAX_VALUES };
    let mut content = match json::parse_reporting(content, bounds).map(|parsed| parsed.value) {
        Ok(Value::Object(content)) => content,
        Ok(_) => return unreadable(msg_type, content, "the content is no JSON object"),
        Err(error) => return unreadable(msg_type, content, &error.to_string()),
    };
    match msg_type {
        "stream" => stream(&mut content),
        "error" => error(&mut content),
        "execute_reply" => pages(&mut content),
        "clear_output" => Reading::Clear { wait: is_true(content.get("wait")) },
        "update_display_data" => match display_id(&content) {
            Some(display_id) => Reading::Update { data: data(&mut content), metadata: metadata(&mut content), display_id },
            None => Reading::Nothing,
        },
        _ => display(msg_type, &mut content),
    }
}

/// An unreadable content is shown rather than dropped: the user sees that something came, and how it began.
fn unreadable(msg_type: &str, content: &[u8], reason: &str) -> Reading {
    let head = &content[..content.len().min(EXCERPT * 4)];
    let excerpt: String = String::from_utf8_lossy(head)
        .chars()
        .take(EXCERPT)
        .map(|symbol| if symbol.is_control() { ' ' } else { symbol })
        .collect();
    let text = format!(
        "cellkeep: the kernel sent an unparsable {msg_type} message of {} bytes ({reason}): {excerpt}\n",
        content.len()
    );
    Reading::Stream { name: "stderr".to_owned(), text }
}

fn stream(content: &mut Map<String, Value>) -> Reading {
    let name = match content.remove("name") {
        None | Some(Value::Null) => "stdout".to_owned(),
        Some(name) => text(name),
    };
    Reading::Stream { name, text: content.remove("text").map(text).unwrap_or_default() }
}

fn error(content: &mut Map<String, Value>) -> Reading {
    let mut take = |key| content.remove(key).map(text).unwrap_or_default();
    let (ename, evalue) = (take("ename"), take("evalue"));
    let traceback: Vec<Value> = match content.remove("traceback") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(lines)) => lines.into_iter().map(|line| Value::String(text(line))).collect(),
        Some(other) => vec![Value::String(text(other))],
    };
    let output = json!({"output_type": "error", "ename": ename, "evalue": evalue, "traceback": traceback});
    Reading::Output { output, display_id: None }
}

/// The pager payload of a reply (`len?` and the like), which JupyterLab displays below the cell.
fn pages(content: &mut Map<String, Value>) -> Reading {
    let Some(Value::Array(payload)) = content.remove("payload") else { return Reading::Nothing };
    let is_page = |item: &Value| item.get("source").is_some_and(|source| source == "page");
    let pages = payload.into_iter().filter(is_page).filter_map(|mut page| {
        let data = data(page.as_object_mut()?);
        Some(json!({"output_type": "display_data", "data": data, "metadata": {}}))
    });
    Reading::Pages(pages.collect())
}

fn display(msg_type: &str, content: &mut Map<String, Value>) -> Reading {
    let display_id = display_id(content);
    let mut output = Map::new();
    output.insert("output_type".to_owned(), Value::String(msg_type.to_owned()));
    output.insert("data".to_owned(), data(content));
    output.insert("metadata".to_owned(), metadata(content));
    if msg_type == "execute_result" {
        let count = content.remove("execution_count").filter(Value::is_u64).unwrap_or(Value::Null);
        output.insert("execution_count".to_owned(), count);
    }
    Reading::Output { output: Value::Object(output), display_id }
}

/// `transient` may be missing or null. Its id is a string by the protocol; some kernels send numbers.
fn display_id(content: &Map<String, Value>) -> Option<String> {
    match content.get("transient")?.get("display_id")? {
        Value::String(id) => (id.len() <= MAX_ID).then(|| id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

fn data(content: &mut Map<String, Value>) -> Value {
    match content.remove("data") {
        Some(data @ Value::Object(_)) => data,
        None | Some(Value::Null) => Value::Object(Map::new()),
        // No MIME bundle, but the kernel meant to show something.
        Some(other) => json!({"text/plain": text(other)}),
    }
}

fn metadata(content: &mut Map<String, Value>) -> Value {
    content.remove("metadata").filter(Value::is_object).unwrap_or_else(|| Value::Object(Map::new()))
}

/// Any value as text: a list of strings is joined (nbformat's multi-line strings), null is empty, the rest is JSON.
pub(super) fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        Value::Array(items) if items.iter().all(Value::is_string) => items.iter().filter_map(Value::as_str).collect(),
        other => other.to_string(),
    }
}

/// Truth as in Python, for the values that kernels send for `wait`.
fn is_true(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(flag)) => *flag,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        _ => false,
    }
}
