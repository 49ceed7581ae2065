//! Values of outputs as text and bytes. A value that is one string is borrowed.

use crate::output::text_of;
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;
use std::borrow::Cow;

/// Accepts base64 with or without padding: kernels send both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A value as text: strings and lists of strings joined, null as empty text, other values as JSON.
pub(super) fn text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        Value::Null => Cow::Borrowed(""),
        Value::Array(items) if items.iter().all(Value::is_string) => items.iter().filter_map(Value::as_str).collect(),
        other => Cow::Owned(other.to_string()),
    }
}

/// The text under a key of an output.
pub(super) fn field<'a>(output: &'a Value, key: &str) -> Cow<'a, str> {
    output.get(key).map_or(Cow::Borrowed(""), text)
}

/// The pieces of a multi-line string.
pub(super) fn pieces(value: &Value) -> impl Iterator<Item = &str> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    value.as_str().into_iter().chain(items.iter().filter_map(Value::as_str))
}

/// Appends base64 without its white space. Returns `false` and appends nothing if the value is not base64.
pub(super) fn push_base64(value: &Value, out: &mut String) -> bool {
    let before = out.len();
    for piece in pieces(value).flat_map(str::split_ascii_whitespace) {
        if !piece.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')) {
            out.truncate(before);
            return false;
        }
        out.push_str(piece);
    }
    out.len() > before
}

pub(super) fn bytes(value: &Value) -> Option<Vec<u8>> {
    let mut text = String::new();
    push_base64(value, &mut text).then(|| BASE64.decode(&text).ok())?
}

/// Text as base64, for data URLs.
pub(super) fn encode(text: &str, out: &mut String) {
    BASE64.encode_string(text, out);
}

/// The text of an output without colours.
pub(super) fn plain(output: &Value) -> String {
    crate::output::strip_ansi(&text_of(std::slice::from_ref(output)))
}

/// The text as a terminal shows it, for example the last state of a progress bar.
pub(super) fn as_terminal(text: Cow<'_, str>) -> Cow<'_, str> {
    // Line ends of Windows do not move the cursor back.
    let text = if text.contains("\r\n") { Cow::Owned(text.replace("\r\n", "\n")) } else { text };
    let moves = text.contains(['\r', '\u{8}']) || text.contains("\u{1b}[") && text.contains(['K', 'A', 'J', 'G']);
    if moves { Cow::Owned(crate::output::terminal_text(&text)) } else { text }
}

/// The text without line ends at its end.
pub(super) fn trimmed(text: &str) -> &str {
    text.trim_end_matches(['\n', '\r'])
}
