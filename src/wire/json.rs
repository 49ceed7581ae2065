//! A lenient JSON parser, which accepts what real kernels and Python send and reports what it repaired.
//!
//! Python's `json` writes `NaN` and lone surrogate escapes, R and shell kernels pass on bytes that are not UTF-8, Windows
//! editors prefix a notebook with a byte-order mark. A strict parser would lose output each time. This parser repairs:
//!
//! | input | becomes |
//! |---|---|
//! | `NaN`, `Infinity`, `-Infinity` | `null` (JSON has no such numbers, and a string would change the type silently) |
//! | an escaped lone surrogate (`"\ud800"`) | U+FFFD |
//! | bytes that are not UTF-8 | U+FFFD |
//! | raw control characters inside a string | kept |
//! | a leading byte-order mark | skipped |
//! | UTF-16 with such a mark | decoded |
//! | a key twice in one object | the last value is kept |
//!
//! It does not use `serde_json` for untrusted text: with `arbitrary_precision` and `raw_value`, that interprets objects with
//! the keys `$serde_json::private::Number` and `$serde_json::private::RawValue`. Untrusted code could use such keys to cause
//! parse failures, or to smuggle in a nested document with a fresh depth budget. In this parser they are plain keys.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

/// The deepest nesting that [`parse_lenient`] accepts. `serde_json` refuses 128 and more, and must be able to read stored
/// values.
pub const MAX_DEPTH: usize = 127;

/// The most values (numbers, strings, arrays, ...) of a message's content. A parsed value takes about a hundred bytes, up to
/// fifty times its text, so a small message could otherwise fill the memory.
pub const MAX_VALUES: usize = 4_000_000;

/// Text that is not JSON even leniently. Lines and columns count from 1; columns count bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The text ends inside a value: an interrupted write or transfer.
    #[error("the JSON text ends early, at line {line} column {column}")]
    Truncated { line: usize, column: usize },
    #[error("not JSON at line {line} column {column}: {problem}")]
    Syntax { line: usize, column: usize, problem: &'static str },
    #[error("JSON nested deeper than {limit} levels at line {line} column {column}")]
    TooDeep { limit: usize, line: usize, column: usize },
    #[error("more than {limit} JSON values")]
    TooMany { limit: usize },
}

/// What [`parse_reporting`] repaired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repairs {
    /// Non-finite numbers, replaced with `null`.
    pub non_finite: usize,
    /// Escaped lone surrogates, replaced with U+FFFD.
    pub surrogates: usize,
    /// Strings with raw control characters, kept as they are.
    pub control: usize,
    /// Whether bytes that are not UTF-8 were replaced with U+FFFD.
    pub utf8: bool,
    /// Whether a byte-order mark was skipped.
    pub bom: bool,
    /// Whether the text was UTF-16.
    pub utf16: bool,
    /// Duplicate keys of objects; the last value is kept, as in Python and browsers.
    pub duplicates: usize,
}

impl Repairs {
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    pub value: Value,
    /// None for valid JSON.
    pub repairs: Repairs,
}

/// Parses one JSON value leniently; the module documentation lists the repairs.
///
/// # Errors
/// [`JsonError`] if the text is not JSON even so, is nested deeper than [`MAX_DEPTH`], or contains more than [`MAX_VALUES`].
pub fn parse_lenient(bytes: &[u8]) -> Result<Value, JsonError> {
    parse_reporting(bytes, Bounds { values: MAX_VALUES, ..Bounds::default() }).map(|parsed| parsed.value)
}

/// Limits of a text.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Nesting; capped at [`MAX_DEPTH`].
    pub depth: usize,
    /// Total number of values.
    pub values: usize,
}

impl Default for Bounds {
    /// [`MAX_DEPTH`] and any number of values, for trusted files.
    fn default() -> Self {
        Self { depth: MAX_DEPTH, values: usize::MAX }
    }
}

/// As [`parse_lenient`], within given bounds; also returns the repairs.
pub fn parse_reporting(bytes: &[u8], bounds: Bounds) -> Result<Parsed, JsonError> {
    let bounds = Bounds { depth: bounds.depth.min(MAX_DEPTH), ..bounds };
    let mut repairs = Repairs::default();
    let text = decode(bytes, &mut repairs);
    let mut parser = Parser::new(&text, bounds, repairs);
    let value = parser.document().map_err(|fault| fault.locate(text.as_bytes(), bounds))?;
    Ok(Parsed { value, repairs: parser.repairs })
}

/// The string values of an object at these keys, as [`parse_lenient`] reads them; empty if absent or not a string. Builds no
/// other values, which takes a third of the time; headers of every message are read this way.
///
/// # Errors
/// As [`parse_lenient`]; also if the value is not an object.
pub fn string_fields<const N: usize>(bytes: &[u8], keys: [&str; N]) -> Result<[String; N], JsonError> {
    let bounds = Bounds { values: MAX_VALUES, ..Bounds::default() };
    let text = decode(bytes, &mut Repairs::default());
    let mut parser = Parser::new(&text, bounds, Repairs::default());
    parser.texts(keys).map_err(|fault| fault.locate(text.as_bytes(), bounds))
}

/// Decodes UTF-8, or UTF-16 with a byte-order mark.
fn decode<'a>(bytes: &'a [u8], repairs: &mut Repairs) -> Cow<'a, str> {
    let from_utf16 = |unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes[2..].as_chunks::<2>();
        let units = pairs.iter().map(|pair| unit(*pair));
        let text: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        if rest.is_empty() { text } else { text + "\u{fffd}" }
    };
    repairs.utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    if repairs.utf16 {
        return Cow::Owned(from_utf16(if bytes[0] == 0xff { u16::from_le_bytes } else { u16::from_be_bytes }));
    }
    let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    repairs.bom = body.len() != bytes.len();
    // Validation is faster than lossy decoding for valid UTF-8.
    let text = std::str::from_utf8(body).map_or_else(|_| String::from_utf8_lossy(body), Cow::Borrowed);
    repairs.utf8 = matches!(text, Cow::Owned(_));
    text
}

/// A problem at a byte offset; lines are counted only for the error.
struct Fault {
    at: usize,
    kind: FaultKind,
}

enum FaultKind {
    Truncated,
    Deep,
    Many,
    Syntax(&'static str),
}

impl Fault {
    fn locate(self, text: &[u8], bounds: Bounds) -> JsonError {
        let before = &text[..self.at.min(text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        match self.kind {
            FaultKind::Truncated => JsonError::Truncated { line, column },
            FaultKind::Deep => JsonError::TooDeep { limit: bounds.depth, line, column },
            FaultKind::Many => JsonError::TooMany { limit: bounds.values },
            FaultKind::Syntax(problem) => JsonError::Syntax { line, column, problem },
        }
    }
}

/// A recursive descent parser. It slices the text only at ASCII bytes, so slices are always valid UTF-8.
struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    values: usize,
    bounds: Bounds,
    repairs: Repairs,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, bounds: Bounds, repairs: Repairs) -> Self {
        Parser { text, bytes: text.as_bytes(), at: 0, depth: 0, values: 0, bounds, repairs }
    }

    fn document(&mut self) -> Result<Value, Fault> {
        let value = self.value()?;
        self.end()?;
        Ok(value)
    }

    fn texts<const N: usize>(&mut self, keys: [&str; N]) -> Result<[String; N], Fault> {
        let mut texts = [const { String::new() }; N];
        self.skip_space();
        if self.peek() != Some(b'{') {
            return Err(self.syntax("expected an object"));
        }
        self.nested(|parser| {
            parser.members(|parser, key| {
                parser.skip_space();
                let wanted = keys.iter().position(|wanted| *wanted == key);
                match (wanted, parser.peek()) {
                    (Some(at), Some(b'"')) => texts[at] = parser.text()?.into_owned(),
                    (Some(at), _) => {
                        parser.value()?;
                        texts[at].clear();
                    }
                    (None, Some(b'"')) => drop(parser.text()?),
                    (None, _) => drop(parser.value()?),
                }
                Ok(())
            })
        })?;
        self.end()?;
        Ok(texts)
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.skip_space();
        if self.at < self.bytes.len() {
            return Err(self.syntax("more text after the end of the value"));
        }
        Ok(())
    }

    fn syntax(&self, problem: &'static str) -> Fault {
        if self.at >= self.bytes.len() {
            return Fault { at: self.bytes.len(), kind: FaultKind::Truncated };
        }
        Fault { at: self.at, kind: FaultKind::Syntax(problem) }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn value(&mut self) -> Result<Value, Fault> {
        self.values += 1;
        if self.values > self.bounds.values {
            return Err(Fault { at: self.at, kind: FaultKind::Many });
        }
        self.skip_space();
        match self.peek() {
            Some(b'"') => self.text().map(|text| Value::String(text.into_owned())),
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            Some(b'N') => self.non_finite("NaN"),
            Some(b'I') => self.non_finite("Infinity"),
            Some(b'-') if self.bytes.get(self.at + 1) == Some(&b'I') => self.non_finite("-Infinity"),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.syntax("expected a value")),
        }
    }

    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.depth >= self.bounds.depth {
            return Err(Fault { at: self.at, kind: FaultKind::Deep });
        }
        self.depth += 1;
        self.at += 1;
        let value = inner(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn object(&mut self) -> Result<Value, Fault> {
        let mut map = Map::new();
        self.members(|parser, key| {
            let value = parser.value()?;
            parser.repairs.duplicates += usize::from(map.insert(key.into_owned(), value).is_some());
            Ok(())
        })?;
        Ok(Value::Object(map))
    }

    /// Parses the members of an object after its opening brace; `member` parses a value.
    fn members(&mut self, mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), Fault>) -> Result<(), Fault> {
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return Err(self.syntax("expected a key in double quotes"));
            }
            let key = self.text()?;
            self.skip_space();
            if self.peek() != Some(b':') {
                return Err(self.syntax("expected a colon after the key"));
            }
            self.at += 1;
            member(self, key)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.syntax("expected a comma or a closing brace")),
            }
        }
    }

    fn array(&mut self) -> Result<Value, Fault> {
        let mut items = Vec::new();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value()?);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::Array(items));
                }
                _ => return Err(self.syntax("expected a comma or a closing bracket")),
            }
        }
    }

    fn literal(&mut self, word: &'static str, value: Value) -> Result<Value, Fault> {
        let rest = &self.bytes[self.at..];
        if rest.starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(value);
        }
        if word.as_bytes().starts_with(rest) {
            self.at = self.bytes.len();
        }
        Err(self.syntax("an unknown word"))
    }

    fn non_finite(&mut self, word: &'static str) -> Result<Value, Fault> {
        let value = self.literal(word, Value::Null)?;
        self.repairs.non_finite += 1;
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, Fault> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let number = self.text[start..self.at].parse::<Number>();
        number.map(Value::Number).map_err(|_| Fault { at: start, kind: FaultKind::Syntax("not a number") })
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(self.syntax("expected a digit")) } else { Ok(()) }
    }

    /// Parses a string; the next byte is its opening quote. Strings without escapes are borrowed.
    fn text(&mut self) -> Result<Cow<'a, str>, Fault> {
        let (text, from) = (self.text, self.at + 1);
        let end = self.bytes[from..].iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
        if let Some(end) = end.map(|end| from + end).filter(|end| self.bytes[*end] == b'"') {
            self.at = end + 1;
            return Ok(Cow::Borrowed(&text[from..end]));
        }
        self.text_with_escapes().map(Cow::Owned)
    }

    fn text_with_escapes(&mut self) -> Result<String, Fault> {
        self.at += 1;
        let mut out = String::new();
        let mut control = false;
        loop {
            let run = self.bytes[self.at..].iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
            let Some(run) = run else {
                return Err(Fault { at: self.bytes.len(), kind: FaultKind::Truncated });
            };
            let end = self.at + run;
            out.push_str(&self.text[self.at..end]);
            self.at = end + 1;
            match self.bytes[end] {
                b'"' => break,
                b'\\' => self.escape(&mut out)?,
                byte => {
                    control = true;
                    out.push(char::from(byte));
                }
            }
        }
        self.repairs.control += usize::from(control);
        Ok(out)
    }

    /// Parses an escape after its backslash.
    fn escape(&mut self, out: &mut String) -> Result<(), Fault> {
        let plain = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                let unit = self.hex4()?;
                out.push(self.code_point(unit));
                return Ok(());
            }
            _ => return Err(self.syntax("an unknown escape in a string")),
        };
        self.at += 1;
        out.push(plain);
        Ok(())
    }

    fn hex4(&mut self) -> Result<u16, Fault> {
        let mut unit = 0u16;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            let digit = digit.and_then(|digit| u16::try_from(digit).ok());
            let Some(digit) = digit else {
                return Err(self.syntax("expected four hexadecimal digits"));
            };
            unit = unit << 4 | digit;
            self.at += 1;
        }
        Ok(unit)
    }

    /// The character of a UTF-16 unit; consumes the second half of a surrogate pair if it follows.
    fn code_point(&mut self, unit: u16) -> char {
        if let Some(plain) = char::from_u32(u32::from(unit)) {
            return plain;
        }
        let high = (0xd800..0xdc00).contains(&unit);
        if high && self.bytes[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            if let Ok(low @ 0xdc00..=0xdfff) = self.hex4() {
                let code = 0x1_0000 + ((u32::from(unit) - 0xd800) << 10) + (u32::from(low) - 0xdc00);
                return char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
            }
            // Not the second half of this pair; it is parsed again as an escape of its own.
            self.at = back;
        }
        self.repairs.surrogates += 1;
        char::REPLACEMENT_CHARACTER
    }
}

/// Estimate of an object's length as text, in bytes.
pub fn map_size(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| key.len() + size(value) + 6).sum()
}

/// Estimate of a value's length as text, in bytes.
pub fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| size(item) + 1).sum(),
        Value::Object(map) => map_size(map),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn repaired(text: &[u8]) -> (Value, Repairs) {
        let parsed = parse_reporting(text, Bounds::default()).unwrap();
        (parsed.value, parsed.repairs)
    }

    #[test]
    fn number_of_values_is_bounded() {
        let bounds = Bounds { values: 4, ..Bounds::default() };
        assert!(parse_reporting(b"[1,2,{}]", bounds).is_ok());
        assert_eq!(parse_reporting(b"[1,2,{\"a\":1}]", bounds), Err(JsonError::TooMany { limit: 4 }));
    }

    #[test]
    fn valid_json_needs_no_repairs() {
        let (value, repairs) = repaired(br#" {"a": [1, -2.50, 1e400, true, null, "\u00e9\n\ud83d\ude00"]} "#);
        assert_eq!(value["a"][5], json!("\u{e9}\n\u{1f600}"));
        assert_eq!(value["a"][2].to_string(), "1e+400", "numbers keep their digits");
        assert!(!repairs.any());
    }

    #[test]
    fn non_finite_numbers_become_null() {
        let (value, repairs) = repaired(b"\xef\xbb\xbf[NaN, Infinity, -Infinity, \"NaN\"]");
        assert_eq!(value, json!([null, null, null, "NaN"]));
        assert_eq!((repairs.non_finite, repairs.bom), (3, true));
    }

    #[test]
    fn utf16_and_duplicate_keys_are_read() {
        let text = "{\"a\": \"é𝄞\"}";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for (mark, bytes) in [(b"\xff\xfe", little), (b"\xfe\xff", big)] {
            let (value, repairs) = repaired(&[mark.as_slice(), &bytes].concat());
            assert_eq!((value, repairs), (json!({"a": "é𝄞"}), Repairs { utf16: true, ..Repairs::default() }));
        }
        assert!(parse_lenient(b"\xff\xfe{").is_err());
        let (value, repairs) = repaired(b"{\"a\": 1, \"b\": {\"a\": 2, \"a\": 3}, \"a\": 4}");
        assert_eq!((value, repairs.duplicates), (json!({"a": 4, "b": {"a": 3}}), 2));
    }

    #[test]
    fn lone_surrogates_and_bytes_are_replaced() {
        let (value, repairs) = repaired(br#"["\ud800", "\udc00x", "\ud800\ud83d\ude00", "\ud800\n"]"#);
        assert_eq!(value, json!(["\u{fffd}", "\u{fffd}x", "\u{fffd}\u{1f600}", "\u{fffd}\n"]));
        assert_eq!(repairs.surrogates, 4);
        let (value, repairs) = repaired(b"\"caf\xe9 \x01\"");
        assert_eq!(value, json!("caf\u{fffd} \u{1}"));
        assert!(repairs.utf8 && repairs.control == 1);
    }

    #[test]
    fn errors_have_positions() {
        let error = parse_lenient(b"{\n  \"a\": oops}").unwrap_err();
        assert_eq!(error.to_string(), "not JSON at line 2 column 8: expected a value");
        for text in ["", "{", "[1,", "\"abc", "{\"a\"", "tru", "-", "1e", "\"\\u12", "[-Inf"] {
            let error = parse_lenient(text.as_bytes()).unwrap_err();
            assert!(matches!(error, JsonError::Truncated { .. }), "{text:?}: {error}");
        }
        for text in ["01", "[1,]", "{,}", "nul1", "1 2", "+1", ".5", "'a'", "\"\\x\""] {
            let error = parse_lenient(text.as_bytes()).unwrap_err();
            assert!(matches!(error, JsonError::Syntax { .. }), "{text:?}: {error}");
        }
    }

    #[test]
    fn nesting_bound_equals_serde_json() {
        let nest = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse_lenient(nest(MAX_DEPTH).as_bytes()).is_ok());
        assert!(serde_json::from_str::<Value>(&nest(MAX_DEPTH)).is_ok());
        assert!(serde_json::from_str::<Value>(&nest(MAX_DEPTH + 1)).is_err());
        let error = parse_lenient("[".repeat(1_000_000).as_bytes()).unwrap_err();
        assert!(matches!(error, JsonError::TooDeep { limit: MAX_DEPTH, .. }));
    }

    #[test]
    fn private_serde_keys_are_plain_keys() {
        let text = br#"{"$serde_json::private::Number": "x", "b": {"\u0024serde_json::private::RawValue": "[["}}"#;
        let value = parse_lenient(text).unwrap();
        assert_eq!(value["b"]["$serde_json::private::RawValue"], json!("[["));
    }

    #[test]
    fn string_fields_handle_odd_objects() {
        let keys = ["a", "b"];
        let odd = br#" {"x": [{"a": "no"}], "\u0061": "one", "a": "t\u0077o", "b": "gone", "b": 1} "#;
        assert_eq!(string_fields(odd, keys), Ok(["two".to_owned(), String::new()]));
        for none in ["", "[]", "{\"a\": \"x\"} 1", "{\"a\": \"x\"", "{\"a\": \"x\",}"] {
            assert!(string_fields(none.as_bytes(), keys).is_err(), "{none}");
        }
        assert!(string_fields(("[".repeat(1000) + "{}").as_bytes(), keys).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn valid_json_parses_as_in_serde_json(value in any_json()) {
            let text = serde_json::to_string_pretty(&value).unwrap();
            let (read, repairs) = repaired(text.as_bytes());
            prop_assert_eq!(read, value);
            prop_assert!(!repairs.any());
        }

        #[test]
        fn string_fields_agree_with_full_parse(text in "\\{(\"(a|b|\\\\u0061)\" ?: ?(\"[a-z\\\\n\"]{0,4}\"|1|\\[\\]|NaN|\\{\"a\": \"\"\\}),?){0,4}[}\"]") {
            let whole = parse_lenient(text.as_bytes()).ok().filter(Value::is_object);
            let texts = whole.map(|whole| ["a", "b"].map(|key| whole.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()));
            prop_assert_eq!(string_fields(text.as_bytes(), ["a", "b"]).ok(), texts);
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_lenient(&bytes);
        }

        #[test]
        fn everything_serde_json_accepts_is_accepted(text in "[\\[\\]{}:,\"\\\\ud800eE0-9.+\\-a-zNI \n]{0,30}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                prop_assert_eq!(parse_lenient(text.as_bytes()).unwrap(), value);
            }
        }
    }
}
