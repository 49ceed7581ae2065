//! Values as literals of a language, by its row in [`languages`], escaped so that no value can become code.

use super::value::Literal;
use crate::languages::{self, ListSyntax, MapSyntax, ParameterSyntax, StringEscape};
use serde_json::Value;

/// The largest integer that a double holds exactly.
const MAX_SAFE: i64 = (1 << 53) - 1;

/// The parameter syntax of a language.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syntax {
    pub rules: &'static ParameterSyntax,
    pub comment: &'static str,
}

impl Syntax {
    pub fn of(language: &str) -> Option<Self> {
        // By its own name only: aliases are languages that look alike, and a literal of one can be code in the other (bash and sh).
        let name = language.to_ascii_lowercase();
        let language = languages::find(&name).filter(|language| language.name == name)?;
        Some(Self { rules: language.parameters()?, comment: &language.line_comment })
    }

    pub fn accepts_name(self, name: &str) -> bool {
        let is_first = |c: char| c.is_ascii_alphabetic() || c == '_' && self.rules.leading_underscore;
        name.starts_with(is_first) && name.chars().all(|c| c.is_ascii() && self.is_in_name(c))
    }

    /// Whether a name can contain this character; also true for letters outside ASCII.
    pub fn is_in_name(self, c: char) -> bool {
        c.is_alphanumeric() || c == '_' || self.rules.name_characters.contains(c)
    }

    /// An assignment. `word`: the keyword with which the notebook's own cell declares the name; may be empty.
    pub fn assignment(self, name: &str, literal: &str, word: &str) -> String {
        let is_redeclared = self.rules.redeclaration_words.iter().any(|known| known == word);
        let template = if is_redeclared { &self.rules.redeclaration } else { &self.rules.assignment };
        // The value is inserted last, since it may contain a placeholder.
        template.replace("{word}", word).replace("{name}", name).replace("{value}", literal)
    }

    /// The value as code. The error names the kind of value that the language cannot write.
    pub fn literal(self, value: &Literal) -> Result<String, &'static str> {
        let rules = self.rules;
        match value {
            Literal::Null => Ok(rules.null.clone()),
            Literal::Bool(true) => Ok(rules.true_literal.clone()),
            Literal::Bool(false) => Ok(rules.false_literal.clone()),
            Literal::Integer(digits) => Ok(self.integer(digits)),
            Literal::Float(number) => Ok(self.float(*number)),
            Literal::Text(text) => self.text(text),
            Literal::List(items) => {
                let ListSyntax { open, close, separator, nests, mixed_open } = &rules.list;
                let open = mixed_open.as_ref().filter(|_| is_mixed(items)).unwrap_or(open);
                let item = |item: &Literal| match item {
                    Literal::List(_) if !nests => Err("a list in a list"),
                    item => self.literal(item),
                };
                let items = items.iter().map(item).collect::<Result<Vec<_>, _>>()?;
                Ok(format!("{open}{}{close}", items.join(separator)))
            }
            Literal::Map(entries) => self.map(rules.map.as_ref().ok_or("a mapping")?, entries),
        }
    }

    fn integer(self, digits: &str) -> String {
        let is_safe = digits.parse::<i64>().is_ok_and(|number| (-MAX_SAFE..=MAX_SAFE).contains(&number));
        if is_safe { digits.to_owned() } else { format!("{digits}{}", self.rules.big_integer_suffix) }
    }

    fn float(self, number: f64) -> String {
        match number {
            _ if number.is_nan() => self.rules.nan.clone(),
            f64::INFINITY => self.rules.infinity.clone(),
            f64::NEG_INFINITY => format!("-{}", self.rules.infinity),
            // Always with a point or an exponent, so that it is a float.
            _ => format!("{number:?}"),
        }
    }

    fn map(self, syntax: &MapSyntax, entries: &[(String, Literal)]) -> Result<String, &'static str> {
        let MapSyntax { open, close, pair, empty, empty_keys, computed_keys } = syntax;
        if !empty_keys && entries.iter().any(|(key, _)| key.is_empty()) {
            return Err("a mapping with an empty name");
        }
        if let Some(empty) = empty.as_ref().filter(|_| entries.is_empty()) {
            return Ok(empty.clone());
        }
        let entry = |(key, value): &(String, Literal)| {
            let text = self.text(key)?;
            let key = if computed_keys.contains(key) { format!("[{text}]") } else { text };
            Ok(format!("{key}{pair}{}", self.literal(value)?))
        };
        let entries = entries.iter().map(entry).collect::<Result<Vec<_>, &'static str>>()?;
        Ok(format!("{open}{}{close}", entries.join(", ")))
    }

    /// A JSON string is a literal in nearly all languages, except for characters that some interpret.
    fn text(self, text: &str) -> Result<String, &'static str> {
        let json = Value::from(text).to_string();
        match self.rules.strings {
            StringEscape::Json => Ok(json),
            StringEscape::Julia => Ok(json.replace('$', "\\$")),
            StringEscape::Ruby => Ok(json.replace('#', "\\#")),
            StringEscape::R | StringEscape::Bash if text.contains('\0') => Err("a text with a NUL"),
            StringEscape::R => Ok(json),
            StringEscape::Bash => Ok(bash_text(text)),
        }
    }
}

/// Whether items differ in type, at any depth. Integers beyond 64 bits have a type of their own.
fn is_mixed(items: &[Literal]) -> bool {
    items.windows(2).any(|pair| !have_one_type(&pair[0], &pair[1]))
}

fn have_one_type(one: &Literal, other: &Literal) -> bool {
    match (one, other) {
        (Literal::Integer(one), Literal::Integer(other)) => one.parse::<i64>().is_ok() == other.parse::<i64>().is_ok(),
        (Literal::List(one), Literal::List(other)) => match (one.first(), other.first()) {
            (Some(first), Some(second)) => !is_mixed(one) && !is_mixed(other) && have_one_type(first, second),
            (one, other) => one.is_none() && other.is_none(),
        },
        // Julia finds a type for mappings that keeps their values.
        (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
    }
}

/// Single quotes make every character literal. Control characters are escaped: bash reads the cell from a terminal, where
/// some are commands, and the kernel splits the cell into lines as Python does.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_code_where_strings_interpolate() {
        let ruby: &'static _ = Box::leak(Box::new(languages::documented_example()));
        let syntax = Syntax { rules: ruby.parameters().unwrap(), comment: "#" };
        let text = |text: &str| syntax.literal(&Literal::Text(text.to_owned())).unwrap();
        assert_eq!(text("#{`id`} #$x \\"), r##""\#{`id`} \#$x \\""##);
        let julia = Syntax::of("julia").unwrap();
        assert_eq!(julia.literal(&Literal::Text("$(run(`id`))".to_owned())).unwrap(), r#""\$(run(`id`))""#);
    }

    #[test]
    fn mixed_list_keeps_its_types() {
        let literal = |language: &str, json: &str| {
            let value = Literal::from(serde_json::from_str::<Value>(json).unwrap());
            Syntax::of(language).unwrap().literal(&value).unwrap()
        };
        for (json, julia) in [
            ("[]", "[]"),
            ("[1, 2]", "[1, 2]"),
            ("[1, 2.5]", "Any[1, 2.5]"),
            ("[true, 1]", "Any[true, 1]"),
            (r#"[null, "a"]"#, r#"Any[nothing, "a"]"#),
            ("[1, 9223372036854775808]", "Any[1, 9223372036854775808]"),
            ("[[1], [2]]", "[[1], [2]]"),
            ("[[1], [2.5]]", "Any[[1], [2.5]]"),
            ("[[], [1]]", "Any[[], [1]]"),
            (r#"[[1, "a"], [1, "a"]]"#, r#"Any[Any[1, "a"], Any[1, "a"]]"#),
        ] {
            assert_eq!(literal("julia", json), julia, "{json}");
        }
        assert_eq!(literal("python", "[1, 2.5]"), "[1, 2.5]");
    }

    #[test]
    fn aliases_have_no_parameters_of_their_own() {
        for alias in ["sh", "zsh", "sage", "node", "python3"] {
            assert!(Syntax::of(alias).is_none(), "{alias}");
        }
        assert!(["Python", "R", "typescript"].into_iter().all(|name| Syntax::of(name).is_some()));
    }
}
