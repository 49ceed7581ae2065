//! Parameters, put into a notebook as papermill does it: a cell tagged `injected-parameters` behind the one tagged `parameters`,
//! in the place of an earlier injected one, or on top.
//!
//! Values are written as literals of the kernel's language, escaped so that no value can become code.

use serde_json::{Map, Value};
use thiserror::Error;

use super::{NewCell, Notebook, NotebookError};

/// The tag of the cell with the defaults.
const DEFAULTS: &str = "parameters";
/// The tag of the cell that we put in.
const INJECTED: &str = "injected-parameters";

/// Why a parameter cannot be given to a notebook.
#[derive(Debug, Error)]
pub enum ParameterError {
    /// Not a variable's name.
    #[error("{name:?} is not a name that a parameter can have: letters, digits and _, not beginning with a digit")]
    Name {
        /// The name.
        name: String,
    },
    /// The language has no literal for the value.
    #[error("parameter {name}: {language} has no way to write {what}")]
    Value {
        /// The name.
        name: String,
        /// The language.
        language: String,
        /// The kind of value.
        what: &'static str,
    },
    /// We do not know how the language writes values.
    #[error(
        "parameters cannot be given to a notebook in {language}: they can in Python, R, Julia, JavaScript, TypeScript and bash"
    )]
    Language {
        /// The language.
        language: String,
    },
    /// The notebook does not take the cell.
    #[error(transparent)]
    Notebook(#[from] NotebookError),
}

/// The value that `text` means on a command line, as papermill guesses: `True`, `False`, `None`, an integer, a float, else text.
pub fn guess(text: &str) -> Value {
    match text {
        "True" => Value::Bool(true),
        "False" => Value::Bool(false),
        "None" => Value::Null,
        _ => {
            let looks_like_a_number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '.');
            let number = text.parse::<i64>().map(Value::from).ok().or_else(|| text.parse::<f64>().ok().map(Value::from));
            number.filter(|value| looks_like_a_number && value.is_number()).unwrap_or_else(|| Value::from(text))
        }
    }
}

/// Puts the parameters into the notebook.
///
/// # Errors
/// [`ParameterError`]; the notebook is then unchanged.
pub fn inject(notebook: &mut Notebook, language: &str, parameters: &Map<String, Value>) -> Result<(), ParameterError> {
    if parameters.is_empty() {
        return Ok(());
    }
    let source = source(language, parameters)?;
    let tagged = |notebook: &Notebook, tag: &str| notebook.cells().position(|cell| cell.is_code() && cell.has_tag(tag));
    if let Some(index) = tagged(notebook, INJECTED) {
        return Ok(notebook.set_source(index, &source)?);
    }
    let index = tagged(notebook, DEFAULTS).map_or(0, |index| index + 1);
    notebook.insert_cell(index, NewCell::code(source).with_tags(&[INJECTED]).with_id(INJECTED));
    Ok(())
}

fn source(language: &str, parameters: &Map<String, Value>) -> Result<String, ParameterError> {
    let syntax = Syntax::of(language).ok_or_else(|| ParameterError::Language { language: language.to_owned() })?;
    let mut source = format!("{} Parameters", syntax.comment());
    for (name, value) in parameters {
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            return Err(ParameterError::Name { name: name.clone() });
        }
        let literal = syntax.literal(value).map_err(|what| ParameterError::Value {
            name: name.clone(),
            language: language.to_owned(),
            what,
        })?;
        source.push('\n');
        source.push_str(&syntax.assignment(name, &literal));
    }
    Ok(source)
}

#[derive(Clone, Copy, PartialEq)]
enum Syntax {
    Python,
    R,
    Julia,
    JavaScript,
    Bash,
}

impl Syntax {
    fn of(language: &str) -> Option<Self> {
        match language.to_ascii_lowercase().as_str() {
            "python" => Some(Self::Python),
            "r" => Some(Self::R),
            "julia" => Some(Self::Julia),
            "javascript" | "typescript" => Some(Self::JavaScript),
            "bash" => Some(Self::Bash),
            _ => None,
        }
    }

    fn comment(self) -> &'static str {
        if self == Self::JavaScript { "//" } else { "#" }
    }

    fn assignment(self, name: &str, literal: &str) -> String {
        match self {
            Self::Python | Self::R | Self::Julia => format!("{name} = {literal}"),
            // `var` may be said again for a name that the notebook's own cell has declared.
            Self::JavaScript => format!("var {name} = {literal};"),
            Self::Bash => format!("{name}={literal}"),
        }
    }

    fn literal(self, value: &Value) -> Result<String, &'static str> {
        match value {
            Value::Null => Ok(["None", "NULL", "nothing", "null", "''"][self as usize].to_owned()),
            Value::Bool(true) => Ok(["True", "TRUE", "true", "true", "true"][self as usize].to_owned()),
            Value::Bool(false) => Ok(["False", "FALSE", "false", "false", "false"][self as usize].to_owned()),
            Value::Number(number) => Ok(number.to_string()),
            Value::String(text) => self.text(text),
            Value::Array(items) => {
                let items = items.iter().map(|item| self.literal(item)).collect::<Result<Vec<_>, _>>()?;
                Ok(match self {
                    Self::R => format!("list({})", items.join(", ")),
                    Self::Bash => format!("({})", items.join(" ")),
                    _ => format!("[{}]", items.join(", ")),
                })
            }
            Value::Object(entries) => self.map(entries),
        }
    }

    fn map(self, entries: &Map<String, Value>) -> Result<String, &'static str> {
        let (open, between, close) = match self {
            Self::Python | Self::JavaScript => ("{", ": ", "}"),
            Self::R => ("list(", " = ", ")"),
            Self::Julia => ("Dict(", " => ", ")"),
            Self::Bash => return Err("a mapping"),
        };
        let mut written = Vec::new();
        for (key, value) in entries {
            written.push(format!("{}{between}{}", self.text(key)?, self.literal(value)?));
        }
        Ok(format!("{open}{}{close}", written.join(", ")))
    }

    /// A JSON string is a literal of all these languages but bash, with care for what each reads differently.
    fn text(self, text: &str) -> Result<String, &'static str> {
        let json = Value::from(text).to_string();
        match self {
            Self::Python | Self::JavaScript => Ok(json),
            Self::Julia => Ok(json.replace('$', "\\$")),
            Self::R if text.contains('\0') => Err("a text with a NUL"),
            Self::R => Ok(json),
            Self::Bash if text.contains('\0') => Err("a text with a NUL"),
            Self::Bash => Ok(format!("'{}'", text.replace('\'', "'\\''"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn notebook(tags: &[&[&str]]) -> Notebook {
        let mut notebook = Notebook::new("python3", "Python 3", "python");
        for (index, tags) in tags.iter().enumerate() {
            notebook.insert_cell(index, NewCell::code(format!("cell {index}")).with_tags(tags));
        }
        notebook
    }

    fn parameters(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn guesses() {
        assert_eq!(guess("True"), json!(true));
        assert_eq!(guess("None"), json!(null));
        assert_eq!(guess("-3"), json!(-3));
        assert_eq!(guess("0.5"), json!(0.5));
        for text in ["true", "1e", "nan", "inf", "", "-", "2024-01-01", "a b"] {
            assert_eq!(guess(text), json!(text), "{text}");
        }
    }

    #[test]
    fn the_cell_goes_behind_the_defaults_or_over_an_earlier_one_or_on_top() {
        let values = parameters(json!({"x": 1}));
        for (tags, place, count) in [
            (&[&[][..], &["parameters"][..], &[][..]][..], 2, 4),
            (&[&["parameters"][..], &["injected-parameters"][..]][..], 1, 2),
            (&[&[][..]][..], 0, 2),
        ] {
            let mut notebook = notebook(tags);
            inject(&mut notebook, "python", &values).unwrap();
            assert_eq!(notebook.len(), count);
            let cell = notebook.cell(place).unwrap();
            assert_eq!(cell.source(), "# Parameters\nx = 1");
            assert!(cell.has_tag("injected-parameters"));
        }
    }

    #[test]
    fn literals() {
        let value = json!({"a": [1, 2.5, "it's \"$x\"\n", null], "b": {"k": true}});
        let both = |language: &str| source(language, &parameters(value.clone())).unwrap();
        assert_eq!(both("python"), "# Parameters\na = [1, 2.5, \"it's \\\"$x\\\"\\n\", None]\nb = {\"k\": True}");
        assert_eq!(both("R"), "# Parameters\na = list(1, 2.5, \"it's \\\"$x\\\"\\n\", NULL)\nb = list(\"k\" = TRUE)");
        assert_eq!(both("julia"), "# Parameters\na = [1, 2.5, \"it's \\\"\\$x\\\"\\n\", nothing]\nb = Dict(\"k\" => true)");
        assert_eq!(
            both("typescript"),
            "// Parameters\nvar a = [1, 2.5, \"it's \\\"$x\\\"\\n\", null];\nvar b = {\"k\": true};"
        );
        assert_eq!(source("bash", &parameters(json!({"a": ["it's", 1]}))).unwrap(), "# Parameters\na=('it'\\''s' 1)");
        assert!(matches!(source("bash", &parameters(value)), Err(ParameterError::Value { .. })));
        assert!(matches!(source("cobol", &Map::new()), Err(ParameterError::Language { .. })));
        for name in ["", "1x", "a b", "x;y", "ä"] {
            assert!(matches!(source("python", &parameters(json!({name: 1}))), Err(ParameterError::Name { .. })), "{name:?}");
        }
    }
}
