//! Format 3 (IPython 1 and 2) to format 4, as Python's nbformat converts it.

use super::{lines, object_field};
use crate::wire::json;
use serde_json::{Map, Value, json};

/// The short names of MIME types in outputs of format 3.
const MIME_NAMES: &[(&str, &str)] = &[
    ("text", "text/plain"),
    ("html", "text/html"),
    ("svg", "image/svg+xml"),
    ("png", "image/png"),
    ("jpeg", "image/jpeg"),
    ("latex", "text/latex"),
    ("json", "application/json"),
    ("javascript", "application/javascript"),
];

/// Output fields that format 3 stores as lists of lines.
const MULTILINE: &[&str] = &["text", "html", "svg", "latex", "javascript", "json"];

/// Converts the root of a notebook from format 3 to 4. The cells of all worksheets are concatenated.
pub(super) fn from_v3(root: &mut Map<String, Value>) {
    let mut cells = Vec::new();
    if let Some(Value::Array(worksheets)) = root.shift_remove("worksheets") {
        for mut worksheet in worksheets {
            if let Some(Value::Array(inner)) = worksheet.get_mut("cells") {
                cells.append(inner);
            }
        }
    }
    for cell in &mut cells {
        if let Value::Object(cell) = cell {
            upgrade_cell(cell);
        }
    }
    root.insert("cells".to_owned(), Value::Array(cells));
    root.insert("nbformat".to_owned(), json!(4));
    root.shift_remove("orig_nbformat");
    root.shift_remove("orig_nbformat_minor");
    let metadata = object_field(root, "metadata");
    metadata.shift_remove("name");
    metadata.shift_remove("signature");
}

fn upgrade_cell(cell: &mut Map<String, Value>) {
    object_field(cell, "metadata");
    match cell.get("cell_type").and_then(Value::as_str) {
        Some("code") => upgrade_code(cell),
        Some("heading") => {
            join_field(cell, "source");
            upgrade_heading(cell);
        }
        Some("html") => {
            join_field(cell, "source");
            cell.insert("cell_type".to_owned(), json!("markdown"));
        }
        _ => join_field(cell, "source"),
    }
}

fn upgrade_code(cell: &mut Map<String, Value>) {
    cell.shift_remove("language");
    if let Some(collapsed) = cell.shift_remove("collapsed") {
        object_field(cell, "metadata").insert("collapsed".to_owned(), collapsed);
    }
    join_field(cell, "input");
    let source = cell.shift_remove("input").unwrap_or_else(|| json!(""));
    cell.insert("source".to_owned(), source);
    let count = cell.shift_remove("prompt_number").unwrap_or(Value::Null);
    cell.insert("execution_count".to_owned(), count);
    let outputs = cell.entry("outputs").or_insert_with(|| Value::Array(Vec::new()));
    for output in outputs.as_array_mut().into_iter().flatten() {
        if let Value::Object(output) = output {
            upgrade_output(output);
        }
    }
}

fn upgrade_heading(cell: &mut Map<String, Value>) {
    let level = cell.shift_remove("level").and_then(|level| level.as_u64()).unwrap_or(1);
    let hashes = "#".repeat(usize::try_from(level.min(64)).unwrap_or(1));
    let source = cell.get("source").and_then(Value::as_str).unwrap_or_default();
    let ends = ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    // A line has at most one end, but \r\n has two characters.
    let words: Vec<&str> = lines::split(source).map(|line| line.trim_end_matches(ends)).collect();
    let source = format!("{hashes} {}", words.join(" "));
    cell.insert("source".to_owned(), Value::String(source));
    cell.insert("cell_type".to_owned(), json!("markdown"));
}

fn upgrade_output(output: &mut Map<String, Value>) {
    MULTILINE.iter().for_each(|field| join_field(output, field));
    match output.get("output_type").and_then(Value::as_str) {
        Some("pyout") => {
            let count = output.shift_remove("prompt_number").unwrap_or(Value::Null);
            output.insert("output_type".to_owned(), json!("execute_result"));
            output.insert("execution_count".to_owned(), count);
            upgrade_bundle(output);
        }
        Some("display_data") => upgrade_bundle(output),
        Some("pyerr") => {
            output.insert("output_type".to_owned(), json!("error"));
        }
        Some("stream") => {
            let name = output.shift_remove("stream").unwrap_or_else(|| json!("stdout"));
            output.insert("name".to_owned(), name);
        }
        _ => {}
    }
}

/// Moves all keys that are not fields of format 4 into the `data` bundle.
fn upgrade_bundle(output: &mut Map<String, Value>) {
    let mut data = Map::new();
    for (key, value) in std::mem::take(output) {
        let is_field = matches!(key.as_str(), "output_type" | "execution_count" | "metadata");
        if is_field {
            output.insert(key, value)
        } else {
            data.insert(key, value)
        };
    }
    rename_mimes(&mut data);
    if let Some(value) = data.get_mut("application/json")
        && let Some(parsed) = value.as_str().and_then(|text| json::parse_lenient(text.as_bytes()).ok())
    {
        *value = parsed;
    }
    output.insert("data".to_owned(), Value::Object(data));
    rename_mimes(object_field(output, "metadata"));
}

fn rename_mimes(map: &mut Map<String, Value>) {
    for (alias, mime) in MIME_NAMES {
        if let Some(value) = map.shift_remove(*alias) {
            map.insert((*mime).to_owned(), value);
        }
    }
}

/// Joins a list of lines. Format 3 stores them with their line ends, very old files without.
fn join_field(map: &mut Map<String, Value>, field: &str) {
    let Some(Value::Array(items)) = map.get(field) else { return };
    let Some(parts) = items.iter().map(Value::as_str).collect::<Option<Vec<&str>>>() else { return };
    let with_ends = parts.first().is_some_and(|first| first.ends_with(['\n', '\r']));
    let text = parts.join(if with_ends { "" } else { "\n" });
    map.insert(field.to_owned(), Value::String(text));
}
