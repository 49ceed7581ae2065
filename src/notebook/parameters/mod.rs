//! Parameters are injected into a notebook as papermill does: in a cell tagged `injected-parameters`, which replaces an
//! earlier one, or follows the cell tagged `parameters`, or is the first cell.
//!
//! Values are written as literals of the kernel's language, escaped so that no value can become code.

mod infer;
mod path;
mod syntax;
mod value;

pub use infer::DeclaredParameter;
pub use path::{PathError, expand};
pub use value::{Literal, guess};

use serde_json::{Map, Value};
use thiserror::Error;

use self::syntax::Syntax;
use super::{NewCell, Notebook, NotebookError};
use crate::languages;

/// The tag of the cell with the defaults.
const DEFAULTS: &str = "parameters";
/// The tag of the injected cell.
const INJECTED: &str = "injected-parameters";

/// Why parameters cannot be injected.
#[derive(Debug, Error)]
pub enum ParameterError {
    /// Not a variable's name.
    #[error("{name:?} is not a valid parameter name: use letters, digits and _, and do not begin with a digit")]
    Name { name: String },
    /// The language has no literal for the value.
    #[error("parameter {name}: {language} has no way to write {what}")]
    Value { name: String, language: String, what: &'static str },
    /// The language has no row for parameter syntax.
    #[error(
        "parameters cannot be given to a notebook in {language}; they can in {}",
        languages::with_parameters().collect::<Vec<_>>().join(", ")
    )]
    Language { language: String },
    /// The notebook does not take the cell.
    #[error(transparent)]
    Notebook(#[from] NotebookError),
}

/// Names with values, in the order of their first assignment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(Vec<(String, Literal)>);

impl Parameters {
    /// Sets a value. The position of an existing name is kept.
    pub fn set(&mut self, name: String, value: Literal) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    pub fn extend(&mut self, others: impl IntoIterator<Item = (String, Literal)>) {
        others.into_iter().for_each(|(name, value)| self.set(name, value));
    }

    pub fn get(&self, name: &str) -> Option<&Literal> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl Iterator<Item = &(String, Literal)> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A JSON object, for the record of a run.
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.iter().map(|(name, value)| (name.clone(), value.to_json())).collect::<Map<_, _>>())
    }
}

/// Where the cell with parameters is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectionPoint {
    /// Replaces the injected cell at this index.
    Replace(usize),
    /// Before the cell at this index, which follows the defaults.
    Before(usize),
    /// Before the first cell, since no cell is tagged `parameters`.
    Top,
}

fn tagged(notebook: &Notebook, tag: &str) -> Option<usize> {
    notebook.cells().position(|cell| cell.is_code() && cell.has_tag(tag))
}

pub fn injection_point(notebook: &Notebook) -> InjectionPoint {
    match (tagged(notebook, INJECTED), tagged(notebook, DEFAULTS)) {
        (Some(index), _) => InjectionPoint::Replace(index),
        (None, Some(index)) => InjectionPoint::Before(index + 1),
        (None, None) => InjectionPoint::Top,
    }
}

/// The parameters that the notebook declares. `None` if no cell is tagged, or if the syntax of the language is unknown.
pub fn declared(notebook: &Notebook, language: &str) -> Option<Vec<DeclaredParameter>> {
    let cell = notebook.cell(tagged(notebook, DEFAULTS)?)?;
    Some(infer::infer(Syntax::of(language)?, &cell.source()))
}

/// Injects the parameters. On an error, the notebook is unchanged.
pub fn inject(notebook: &mut Notebook, language: &str, parameters: &Parameters) -> Result<(), ParameterError> {
    if parameters.is_empty() {
        return Ok(());
    }
    let source = source(notebook, language, parameters)?;
    let index = match injection_point(notebook) {
        InjectionPoint::Replace(index) => return Ok(notebook.set_source(index, &source)?),
        InjectionPoint::Before(index) => index,
        InjectionPoint::Top => 0,
    };
    notebook.insert_cell(index, NewCell::code(source).with_tags(&[INJECTED]).with_id(INJECTED));
    Ok(())
}

/// The source of the injected cell.
pub fn source(notebook: &Notebook, language: &str, parameters: &Parameters) -> Result<String, ParameterError> {
    let syntax = Syntax::of(language).ok_or_else(|| ParameterError::Language { language: language.to_owned() })?;
    let declared = declared(notebook, language).unwrap_or_default();
    let mut source = format!("{} Parameters", syntax.comment);
    for (name, value) in parameters.iter() {
        if !syntax.accepts_name(name) {
            return Err(ParameterError::Name { name: name.clone() });
        }
        let literal = syntax.literal(value).map_err(|what| ParameterError::Value {
            name: name.clone(),
            language: language.to_owned(),
            what,
        })?;
        source.push('\n');
        let keyword = declared.iter().find(|one| one.name == *name).map_or("", |one| one.keyword);
        source.push_str(&syntax.assignment(name, &literal, keyword));
    }
    Ok(source)
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

    fn parameters(value: Value) -> Parameters {
        let Literal::Map(entries) = Literal::from(value) else { panic!("no mapping") };
        Parameters(entries)
    }

    fn written(language: &str, parameters: &Parameters) -> Result<String, ParameterError> {
        source(&notebook(&[]), language, parameters)
    }

    #[test]
    fn injected_assignments_keep_their_declaring_keyword() {
        let mut notebook = notebook(&[&["parameters"]]);
        notebook.set_source(0, "let a = 1;\nconst b = 2;\nvar c = 3").unwrap();
        let source = source(&notebook, "typescript", &parameters(json!({"a": 1, "b": 2, "c": 3, "d": 4}))).unwrap();
        assert_eq!(source, "// Parameters\nlet a = 1;\nconst b = 2;\nvar c = 3;\nvar d = 4;");
    }

    #[test]
    fn cell_is_injected_where_papermill_does() {
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
    fn values_become_literals_of_each_language() {
        let value = json!({"a": [1, 2.5, "it's \"$x\"\n", null], "b": {"k": true}});
        let both = |language: &str| written(language, &parameters(value.clone())).unwrap();
        assert_eq!(both("python"), "# Parameters\na = [1, 2.5, \"it's \\\"$x\\\"\\n\", None]\nb = {\"k\": True}");
        assert_eq!(both("R"), "# Parameters\na = list(1, 2.5, \"it's \\\"$x\\\"\\n\", NULL)\nb = list(\"k\" = TRUE)");
        assert_eq!(
            both("julia"),
            "# Parameters\na = Any[1, 2.5, \"it's \\\"\\$x\\\"\\n\", nothing]\nb = Dict(\"k\" => true)"
        );
        assert_eq!(
            both("typescript"),
            "// Parameters\nvar a = [1, 2.5, \"it's \\\"$x\\\"\\n\", null];\nvar b = {\"k\": true};"
        );
        assert_eq!(written("bash", &parameters(json!({"a": ["it's", 1]}))).unwrap(), "# Parameters\na=('it'\\''s' 1)");
        assert_eq!(
            written("bash", &parameters(json!({"a": "a'\n\u{3}\\"}))).unwrap(),
            "# Parameters\na=$'a\\'\\n\\003\\\\'"
        );
        assert!(matches!(written("bash", &parameters(value)), Err(ParameterError::Value { .. })));
        assert!(matches!(written("cobol", &Parameters::default()), Err(ParameterError::Language { .. })));
        for name in ["", "1x", "a b", "x;y", "ä", "a.b"] {
            assert!(
                matches!(written("python", &parameters(json!({name: 1}))), Err(ParameterError::Name { .. })),
                "{name:?}"
            );
        }
        assert!(
            written("r", &parameters(json!({"a.b": 1}))).is_ok() && written("r", &parameters(json!({"_a": 1}))).is_err()
        );
    }

    #[test]
    fn numbers_outside_json_become_literals() {
        let mut values = Parameters::default();
        values.set("big".to_owned(), guess("123456789012345678901234567890"));
        values.set("none".to_owned(), guess("nan"));
        values.set("least".to_owned(), guess("-inf"));
        let all = |language| written(language, &values).unwrap().lines().skip(1).collect::<Vec<_>>().join(" ");
        assert_eq!(all("python"), "big = 123456789012345678901234567890 none = float('nan') least = -float('inf')");
        assert_eq!(all("r"), "big = 123456789012345678901234567890 none = NaN least = -Inf");
        assert_eq!(all("javascript"), "var big = 123456789012345678901234567890n; var none = NaN; var least = -Infinity;");
        let proto = parameters(json!({"a": {"__proto__": 1}}));
        assert!(written("javascript", &proto).unwrap().contains("[\"__proto__\"]: 1"));
    }

    #[test]
    fn declared_parameters_are_inferred() {
        let mut notebook = notebook(&[&["parameters"]]);
        notebook.set_source(0, "x = 1  # how many").unwrap();
        let all = declared(&notebook, "python").unwrap();
        assert_eq!((all[0].name.as_str(), all[0].default.as_str(), all[0].help.as_str()), ("x", "1", "how many"));
        assert_eq!(declared(&Notebook::new("a", "b", "python"), "python"), None);
    }
}
