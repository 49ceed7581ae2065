//! Makes an output valid by the nbformat 4.5 schema, so that it can be written to a file.

use super::content::text;
use crate::mime;
use serde_json::{Map, Value, json};

/// Brings one output into the form that the nbformat 4.5 schema asks for: exactly the fields of its type, strings for MIME values of
/// types that are not JSON, a traceback of strings, a count that is null or not negative. Valid outputs stay as they are. A value that
/// is no output becomes a stream on stderr with its JSON, so that nothing is lost.
///
/// One exception from the schema: objects of types that end in `.json` (Altair's `application/vnd.vegalite.v6.json`) stay objects,
/// because no viewer draws the strings that the schema asks for.
pub fn repair_output(output: Value) -> Value {
    let mut fields = match output {
        Value::Object(fields) => fields,
        other => return note(&other),
    };
    match fields.get("output_type").and_then(Value::as_str) {
        Some("stream") => stream(&mut fields),
        Some("error") => error(&mut fields),
        Some("display_data") => display(&mut fields, false),
        Some("execute_result") => display(&mut fields, true),
        _ => return note(&Value::Object(fields)),
    }
    Value::Object(fields)
}

fn note(value: &Value) -> Value {
    let text = format!("cellkeep: not an output: {value}\n");
    json!({"output_type": "stream", "name": "stderr", "text": text})
}

fn keep_only(fields: &mut Map<String, Value>, names: &[&str]) {
    fields.retain(|name, _| names.contains(&name.as_str()));
}

fn is_multiline(value: &Value) -> bool {
    match value {
        Value::String(_) => true,
        Value::Array(items) => items.iter().all(Value::is_string),
        _ => false,
    }
}

/// Makes a field a string, or with `lines` allowed a list of strings.
fn textual(fields: &mut Map<String, Value>, name: &str, lines: bool, default: &str) {
    let field = fields.entry(name).or_insert(Value::Null);
    if field.is_string() || (lines && is_multiline(field)) {
        return;
    }
    *field = match field.take() {
        Value::Null => Value::String(default.to_owned()),
        other => Value::String(text(other)),
    };
}

fn stream(fields: &mut Map<String, Value>) {
    keep_only(fields, &["output_type", "name", "text"]);
    textual(fields, "name", false, "stdout");
    textual(fields, "text", true, "");
}

fn error(fields: &mut Map<String, Value>) {
    keep_only(fields, &["output_type", "ename", "evalue", "traceback"]);
    textual(fields, "ename", false, "");
    textual(fields, "evalue", false, "");
    let traceback = fields.entry("traceback").or_insert(Value::Null);
    *traceback = match traceback.take() {
        Value::Null => Value::Array(Vec::new()),
        Value::Array(lines) => lines.into_iter().map(|line| Value::String(text(line))).collect(),
        other => Value::Array(vec![Value::String(text(other))]),
    };
}

fn display(fields: &mut Map<String, Value>, counted: bool) {
    let known = ["output_type", "data", "metadata", "execution_count"];
    keep_only(fields, if counted { &known } else { &known[..3] });
    for name in ["data", "metadata"] {
        let field = fields.entry(name).or_insert(Value::Null);
        if !field.is_object() {
            *field = Value::Object(Map::new());
        }
    }
    if counted {
        let count = fields.entry("execution_count").or_insert(Value::Null);
        if !count.is_u64() {
            *count = Value::Null;
        }
    }
    if let Some(Value::Object(data)) = fields.get_mut("data") {
        for (mime, value) in data.iter_mut() {
            let free = mime::is_json(mime) || (mime.ends_with(".json") && value.is_object());
            if !free && !is_multiline(value) {
                *value = Value::String(text(value.take()));
            }
        }
    }
}
