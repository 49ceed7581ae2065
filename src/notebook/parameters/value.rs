//! Values of parameters, from the command line, YAML and JSON.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, json};
use std::fmt;

/// A value. Other than JSON, it has integers of any size, infinite floats and NaN.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Null,
    Bool(bool),
    /// Decimal digits, with a minus sign if negative.
    Integer(String),
    /// May be infinite or NaN.
    Float(f64),
    Text(String),
    List(Vec<Literal>),
    /// Names with values, in order.
    Map(Vec<(String, Literal)>),
}

/// The value of a command-line argument, by papermill's rules: `True`, `False`, `None`, what Python's `int` or `float` would
/// accept, otherwise text.
pub fn guess(text: &str) -> Literal {
    match text {
        "True" => Literal::Bool(true),
        "False" => Literal::Bool(false),
        "None" => Literal::Null,
        _ => number(text.trim()).unwrap_or_else(|| Literal::Text(text.to_owned())),
    }
}

fn number(text: &str) -> Option<Literal> {
    // Python accepts 1_000, but no underscore at an end or next to another.
    let grouped = text.as_bytes().windows(3).all(|w| w[1] != b'_' || w[0].is_ascii_digit() && w[2].is_ascii_digit());
    if !grouped || text.starts_with('_') || text.ends_with('_') {
        return None;
    }
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(integer(negative, digits));
    }
    plain.parse().ok().map(Literal::Float)
}

fn integer(negative: bool, digits: &str) -> Literal {
    let digits = digits.trim_start_matches('0');
    match digits {
        "" => Literal::Integer("0".to_owned()),
        _ => Literal::Integer(format!("{}{digits}", if negative { "-" } else { "" })),
    }
}

impl Literal {
    /// The value as JSON. Numbers that JSON cannot represent become text.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(flag) => json!(flag),
            Self::Integer(digits) => digits.parse::<Number>().map_or_else(|_| json!(digits), Value::Number),
            Self::Float(number) if number.is_finite() => json!(number),
            Self::Float(number) if number.is_nan() => json!("NaN"),
            Self::Float(number) => json!(if *number > 0.0 { "Infinity" } else { "-Infinity" }),
            Self::Text(text) => json!(text),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Map(entries) => {
                Value::Object(entries.iter().map(|(key, value)| (key.clone(), value.to_json())).collect::<Map<_, _>>())
            }
        }
    }

    /// The text of the value in a path.
    pub fn to_text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Bool(flag) => if *flag { "True" } else { "False" }.to_owned(),
            Self::Null => "None".to_owned(),
            Self::Integer(digits) => digits.clone(),
            Self::Float(number) => format!("{number:?}"),
            other => other.to_json().to_string(),
        }
    }
}

impl From<Value> for Literal {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(flag) => Self::Bool(flag),
            // The digits as written: there may be more than a machine number can hold.
            Value::Number(written) => {
                let text = written.to_string();
                let is_float = text.contains(['.', 'e', 'E']);
                number(&text).filter(|_| !is_float).unwrap_or_else(|| Self::Float(text.parse().unwrap_or(f64::NAN)))
            }
            Value::String(text) => Self::Text(text),
            Value::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            Value::Object(entries) => Self::Map(entries.into_iter().map(|(key, value)| (key, Self::from(value))).collect()),
        }
    }
}

impl<'de> Deserialize<'de> for Literal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Literal;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value, a list or a mapping")
    }

    fn visit_unit<E>(self) -> Result<Literal, E> {
        Ok(Literal::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Literal, E> {
        Ok(Literal::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Literal, E> {
        Ok(Literal::Integer(number.to_string()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Literal, E> {
        Ok(Literal::Integer(number.to_string()))
    }

    fn visit_i128<E>(self, number: i128) -> Result<Literal, E> {
        Ok(Literal::Integer(number.to_string()))
    }

    fn visit_u128<E>(self, number: u128) -> Result<Literal, E> {
        Ok(Literal::Integer(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Literal, E> {
        Ok(Literal::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Literal, E> {
        Ok(Literal::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Literal, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(Literal::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Literal, A::Error> {
        let mut all = Vec::new();
        // Keys that are not text become text, as in papermill.
        while let Some((key, value)) = entries.next_entry::<Literal, Literal>()? {
            all.push((key.to_text(), value));
        }
        Ok(Literal::Map(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_interpreted_as_in_papermill() {
        let integer = |digits: &str| Literal::Integer(digits.to_owned());
        assert_eq!(guess("True"), Literal::Bool(true));
        assert_eq!(guess("None"), Literal::Null);
        assert_eq!(
            (guess("-3"), guess("+007"), guess("1_000"), guess(" 5 ")),
            (integer("-3"), integer("7"), integer("1000"), integer("5"))
        );
        assert_eq!(guess("123456789012345678901234567890"), integer("123456789012345678901234567890"));
        assert_eq!(
            (guess("0.5"), guess("1e3"), guess(".5"), guess("-inf")),
            (Literal::Float(0.5), Literal::Float(1e3), Literal::Float(0.5), Literal::Float(f64::NEG_INFINITY))
        );
        assert!(matches!(guess("nan"), Literal::Float(number) if number.is_nan()));
        for text in ["true", "1e", "", "-", "2024-01-01", "a b", "1__0", "_1", "1_", "0x10", "None "] {
            assert_eq!(guess(text), Literal::Text(text.to_owned()), "{text}");
        }
    }

    #[test]
    fn json_keeps_every_digit() {
        let text = r#"{"big":123456789012345678901234567890,"f":1.0,"l":[null,true,"x"]}"#;
        let value = crate::wire::json::parse_lenient(text.as_bytes()).unwrap();
        assert_eq!(Literal::from(value.clone()).to_json(), value);
        assert_eq!(Literal::Float(f64::INFINITY).to_json(), json!("Infinity"));
    }
}
