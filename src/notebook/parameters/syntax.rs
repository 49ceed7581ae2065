//! Values as literals of the languages, escaped so that no value can become code.

use super::value::Literal;
use serde_json::Value;

/// The largest integer that JavaScript's numbers hold exactly.
const MAX_SAFE: i64 = (1 << 53) - 1;

/// A language that parameters can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    Python,
    R,
    Julia,
    JavaScript,
    Bash,
}

impl Syntax {
    pub fn of(language: &str) -> Option<Self> {
        match language.to_ascii_lowercase().as_str() {
            "python" => Some(Self::Python),
            "r" => Some(Self::R),
            "julia" => Some(Self::Julia),
            "javascript" | "typescript" => Some(Self::JavaScript),
            "bash" => Some(Self::Bash),
            _ => None,
        }
    }

    pub fn comment(self) -> &'static str {
        if self == Self::JavaScript { "//" } else { "#" }
    }

    /// Whether a variable can have this name.
    pub fn takes_name(self, name: &str) -> bool {
        let first = |c: char| c.is_ascii_alphabetic() || c == '_' && self != Self::R;
        let rest = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.' && self == Self::R;
        name.starts_with(first) && name.chars().all(rest)
    }

    /// `keyword`: the word with which the notebook's own cell declares the name.
    pub fn assignment(self, name: &str, literal: &str, keyword: &str) -> String {
        match self {
            Self::Python | Self::R | Self::Julia => format!("{name} = {literal}"),
            // A name may be declared again, but only with the same word.
            Self::JavaScript if matches!(keyword, "let" | "const") => format!("{keyword} {name} = {literal};"),
            Self::JavaScript => format!("var {name} = {literal};"),
            Self::Bash => format!("{name}={literal}"),
        }
    }

    /// The value as code, or what it is that the language cannot write.
    pub fn literal(self, value: &Literal) -> Result<String, &'static str> {
        match value {
            Literal::Null => Ok(["None", "NULL", "nothing", "null", "''"][self as usize].to_owned()),
            Literal::Bool(true) => Ok(["True", "TRUE", "true", "true", "true"][self as usize].to_owned()),
            Literal::Bool(false) => Ok(["False", "FALSE", "false", "false", "false"][self as usize].to_owned()),
            Literal::Integer(digits) => Ok(self.integer(digits)),
            Literal::Float(number) => Ok(self.float(*number)),
            Literal::Text(text) => self.text(text),
            Literal::List(items) => {
                let items = items.iter().map(|item| self.item(item)).collect::<Result<Vec<_>, _>>()?;
                Ok(match self {
                    Self::R => format!("list({})", items.join(", ")),
                    Self::Bash => format!("({})", items.join(" ")),
                    _ => format!("[{}]", items.join(", ")),
                })
            }
            Literal::Map(entries) => self.map(entries),
        }
    }

    fn item(self, value: &Literal) -> Result<String, &'static str> {
        match value {
            Literal::List(_) if self == Self::Bash => Err("a list in a list"),
            value => self.literal(value),
        }
    }

    fn integer(self, digits: &str) -> String {
        let is_safe = digits.parse::<i64>().is_ok_and(|number| (-MAX_SAFE..=MAX_SAFE).contains(&number));
        if self == Self::JavaScript && !is_safe { format!("{digits}n") } else { digits.to_owned() }
    }

    fn float(self, number: f64) -> String {
        let (nan, infinity) = match self {
            Self::Python => ("float('nan')", "float('inf')"),
            Self::R | Self::Julia => ("NaN", "Inf"),
            Self::JavaScript => ("NaN", "Infinity"),
            Self::Bash => ("nan", "inf"),
        };
        match number {
            _ if number.is_nan() => nan.to_owned(),
            f64::INFINITY => infinity.to_owned(),
            f64::NEG_INFINITY => format!("-{infinity}"),
            // Always with a point or an exponent, so that it stays a float.
            _ => format!("{number:?}"),
        }
    }

    fn map(self, entries: &[(String, Literal)]) -> Result<String, &'static str> {
        let pair = |between: &str| {
            let written =
                entries.iter().map(|(key, value)| Ok(format!("{}{between}{}", self.key(key)?, self.literal(value)?)));
            Ok::<_, &'static str>(written.collect::<Result<Vec<_>, &'static str>>()?.join(", "))
        };
        match self {
            Self::Python => Ok(format!("{{{}}}", pair(": ")?)),
            Self::JavaScript => Ok(format!("{{{}}}", pair(": ")?)),
            Self::Julia => Ok(format!("Dict({})", pair(" => ")?)),
            Self::R if entries.iter().any(|(key, _)| key.is_empty()) => Err("a mapping with an empty name"),
            Self::R if entries.is_empty() => Ok("setNames(list(), character())".to_owned()),
            Self::R => Ok(format!("list({})", pair(" = ")?)),
            Self::Bash => Err("a mapping"),
        }
    }

    fn key(self, key: &str) -> Result<String, &'static str> {
        let text = self.text(key)?;
        // Written plainly, that name would set an object's prototype.
        if self == Self::JavaScript && key == "__proto__" { Ok(format!("[{text}]")) } else { Ok(text) }
    }

    /// A JSON string is a literal of all these languages but bash, with care for what each reads differently.
    fn text(self, text: &str) -> Result<String, &'static str> {
        let json = Value::from(text).to_string();
        match self {
            Self::Python | Self::JavaScript => Ok(json),
            Self::Julia => Ok(json.replace('$', "\\$")),
            Self::R | Self::Bash if text.contains('\0') => Err("a text with a NUL"),
            Self::R => Ok(json),
            Self::Bash => Ok(bash_text(text)),
        }
    }
}

/// In single quotes nothing is special. Control characters are written as escapes: bash reads the cell from a terminal, where
/// some of them are commands, and its kernel cuts the cell into lines as Python sees them.
fn bash_text(text: &str) -> String {
    let is_special = |symbol: char| symbol.is_control() || matches!(symbol, '\u{2028}' | '\u{2029}');
    if !text.chars().any(is_special) {
        return format!("'{}'", text.replace('\'', "'\\''"));
    }
    let mut out = String::from("$'");
    for symbol in text.chars() {
        match symbol {
            '\'' | '\\' => out.extend(['\\', symbol]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            control if is_special(control) => {
                let mut bytes = [0; 4];
                control.encode_utf8(&mut bytes).bytes().for_each(|byte| out.push_str(&format!("\\{byte:03o}")));
            }
            other => out.push(other),
        }
    }
    out.push('\'');
    out
}
