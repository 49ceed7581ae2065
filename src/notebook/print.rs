//! Prints a notebook as Python's `nbformat.write` does, byte for byte.
//!
//! That is `json.dumps(indent=1, sort_keys=True, separators=(",", ": "), ensure_ascii=False)` after texts are split into
//! lists of lines and transient metadata is dropped. The writer does both while it prints, without a copy of the notebook.

use super::lines;
use super::number::push_number;
use crate::mime;
use serde_json::{Map, Value};

/// Metadata keys that Python's nbformat does not write.
const TRANSIENT: &[&str] = &["orig_nbformat", "orig_nbformat_minor", "signature"];
const TRANSIENT_IN_CELL: &[&str] = &["trusted"];

/// See [`Notebook::print`](super::Notebook::print).
pub(super) fn print(root: &Map<String, Value>) -> String {
    let mut writer = Writer { out: String::new(), level: 0 };
    writer.object(root, &[], &mut |writer, key, value| match (key, value) {
        ("metadata", Value::Object(map)) => writer.object(map, TRANSIENT, &mut Writer::field),
        ("cells", Value::Array(cells)) => writer.array(cells, &mut Writer::cell),
        _ => writer.value(value),
    });
    writer.out.push('\n');
    writer.out
}

struct Writer {
    out: String,
    level: usize,
}

type Field<'f> = &'f mut dyn FnMut(&mut Writer, &str, &Value);

impl Writer {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(true) => self.out.push_str("true"),
            Value::Bool(false) => self.out.push_str("false"),
            Value::Number(number) => push_number(number.as_str(), &mut self.out),
            Value::String(text) => self.string(text),
            Value::Array(items) => self.array(items, &mut Writer::value),
            Value::Object(map) => self.object(map, &[], &mut Writer::field),
        }
    }

    fn field(&mut self, _key: &str, value: &Value) {
        self.value(value);
    }

    /// An object sorted by key (by code point, which is the order of UTF-8 bytes), without the keys in `skip`.
    fn object(&mut self, map: &Map<String, Value>, skip: &[&str], field: Field) {
        let mut keys: Vec<(&String, &Value)> = map.iter().filter(|(key, _)| !skip.contains(&key.as_str())).collect();
        keys.sort_unstable_by_key(|(key, _)| *key);
        self.items('{', '}', keys.iter(), &mut |writer, (key, value)| {
            writer.string(key);
            writer.out.push_str(": ");
            field(writer, key, value);
        });
    }

    fn array(&mut self, items: &[Value], item: &mut dyn FnMut(&mut Writer, &Value)) {
        self.items('[', ']', items.iter(), item);
    }

    fn items<T>(&mut self, open: char, close: char, items: impl Iterator<Item = T>, item: &mut dyn FnMut(&mut Self, T)) {
        self.out.push(open);
        self.level += 1;
        let mut is_empty = true;
        for part in items {
            if !is_empty {
                self.out.push(',');
            }
            is_empty = false;
            self.new_line();
            item(self, part);
        }
        self.level -= 1;
        if !is_empty {
            self.new_line();
        }
        self.out.push(close);
    }

    fn new_line(&mut self) {
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n(' ', self.level));
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        let mut rest = text;
        while let Some(at) = rest.bytes().position(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
            self.out.push_str(&rest[..at]);
            self.escape(rest.as_bytes()[at]);
            rest = &rest[at + 1..];
        }
        self.out.push_str(rest);
        self.out.push('"');
    }

    fn escape(&mut self, byte: u8) {
        match byte {
            b'"' => self.out.push_str("\\\""),
            b'\\' => self.out.push_str("\\\\"),
            b'\n' => self.out.push_str("\\n"),
            b'\r' => self.out.push_str("\\r"),
            b'\t' => self.out.push_str("\\t"),
            0x08 => self.out.push_str("\\b"),
            0x0c => self.out.push_str("\\f"),
            _ => self.out.push_str(&format!("\\u{byte:04x}")),
        }
    }

    fn cell(&mut self, cell: &Value) {
        let Value::Object(map) = cell else { return self.value(cell) };
        let is_code = map.get("cell_type").and_then(Value::as_str) == Some("code");
        self.object(map, &[], &mut |writer, key, value| match (key, value) {
            ("source", _) => writer.text(value, true),
            ("metadata", Value::Object(map)) => writer.object(map, TRANSIENT_IN_CELL, &mut Writer::field),
            ("outputs", Value::Array(outputs)) if is_code => writer.array(outputs, &mut Writer::output),
            ("attachments", Value::Object(map)) => writer.object(map, &[], &mut |writer, _, value| writer.bundle(value)),
            _ => writer.value(value),
        });
    }

    fn output(&mut self, output: &Value) {
        let Value::Object(map) = output else { return self.value(output) };
        let kind = map.get("output_type").and_then(Value::as_str).unwrap_or_default();
        let has_bundle = matches!(kind, "display_data" | "execute_result");
        self.object(map, &[], &mut |writer, key, value| match key {
            "data" if has_bundle => writer.bundle(value),
            "text" if !has_bundle && !kind.is_empty() => writer.text(value, kind == "stream"),
            _ => writer.value(value),
        });
    }

    fn bundle(&mut self, bundle: &Value) {
        let Value::Object(map) = bundle else { return self.value(bundle) };
        self.object(map, &[], &mut |writer, key, value| match value {
            // A list under a JSON type is data, not lines.
            Value::Array(_) if mime::is_json(key) => writer.value(value),
            _ => writer.text(value, mime::is_split_on_write(key)),
        });
    }

    /// A multi-line string in either form: as a list of lines if `split`, otherwise as one string. Other values are
    /// unchanged.
    fn text(&mut self, value: &Value, split: bool) {
        if split && is_split_already(value) {
            return self.value(value);
        }
        match lines::join(value) {
            Some(text) if split => self.items('[', ']', lines::split(&text), &mut |writer, line| writer.string(line)),
            Some(text) => self.string(&text),
            None => self.value(value),
        }
    }
}

/// Whether a value is already the list of lines that splitting would produce, as in most files. It saves joining and
/// splitting.
fn is_split_already(value: &Value) -> bool {
    let Value::Array(items) = value else { return false };
    let last = items.len().saturating_sub(1);
    items.iter().enumerate().all(|(index, item)| {
        item.as_str().is_some_and(|text| lines::is_one(text) && (index == last || lines::is_ended(text)))
    })
}
