//! Long text in outputs with `outputs=refs`: its beginning and its length stand for it.

use serde_json::{Value, json};

use crate::output::TextOffset;

/// Text up to this size stays whole. Bytes.
const MAX_WHOLE: usize = 64 << 10;
/// The beginning that is given of a longer one. Bytes.
const START: usize = 1 << 10;

/// Replaces the long texts of an output: the text of a stream, and the texts of a MIME bundle. The replacement has no address,
/// so a kernel that forges one cannot send a client elsewhere.
pub(super) fn refer_to_long_text(output: &mut Value) {
    if let Some(text) = output.get_mut("text") {
        refer(text);
    }
    if let Some(Value::Object(data)) = output.get_mut("data") {
        data.values_mut().for_each(refer);
    }
}

fn refer(value: &mut Value) {
    let Value::String(text) = value else { return };
    if text.len() <= MAX_WHOLE {
        return;
    }
    let length = TextOffset::of(text);
    let start = &text[..text.floor_char_boundary(START)];
    *value = json!({"start": start, "bytes": length.bytes, "utf16": length.utf16});
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_given_by_start_and_length() {
        let long = "é".repeat(MAX_WHOLE);
        let mut stream = json!({"output_type": "stream", "name": "stdout", "text": long});
        refer_to_long_text(&mut stream);
        let expected = json!({"start": "é".repeat(START / 2), "bytes": 2 * MAX_WHOLE, "utf16": MAX_WHOLE});
        assert_eq!(stream, json!({"output_type": "stream", "name": "stdout", "text": expected}));

        let short = "x".repeat(MAX_WHOLE);
        let bundle =
            json!({"output_type": "display_data", "data": {"text/html": long, "text/plain": short, "a/json": {"b": 1}}});
        let mut referred = bundle.clone();
        refer_to_long_text(&mut referred);
        assert_eq!(referred["data"]["text/html"], expected);
        assert_eq!(referred["data"]["text/plain"], bundle["data"]["text/plain"]);
        assert_eq!(referred["data"]["a/json"], bundle["data"]["a/json"]);
    }
}
