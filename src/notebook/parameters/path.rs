//! Placeholders in paths, as in papermill: `out/{region}-{pm.run_uuid}.ipynb`.

use super::{Literal, Parameters};
use thiserror::Error;

/// Why a path cannot be expanded.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// A placeholder without a value.
    #[error("{{{name}}} in {path:?} is not a parameter; write {{{{ and }}}} for braces that are part of the path")]
    Unknown { name: String, path: String },
    /// An unmatched brace.
    #[error("a brace in {path:?} is unmatched; write {{{{ and }}}} for braces that are part of the path")]
    Brace { path: String },
}

/// Expands placeholders: `{name}`, `{name[key]}` and `{name.key}` for entries of a mapping, `{{` and `}}` for braces.
pub fn expand(path: &str, parameters: &Parameters) -> Result<String, PathError> {
    let (mut out, mut rest) = (String::new(), path);
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let double = rest.get(..2).filter(|two| matches!(*two, "{{" | "}}"));
        if let Some(double) = double {
            out.push_str(&double[..1]);
            rest = &rest[2..];
            continue;
        }
        let end = rest.find('}').filter(|end| *end > 0).ok_or_else(|| PathError::Brace { path: path.to_owned() })?;
        let name = &rest[1..end];
        let value =
            lookup(name, parameters).ok_or_else(|| PathError::Unknown { name: name.to_owned(), path: path.to_owned() })?;
        out.push_str(&value.to_text());
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn lookup<'a>(name: &str, parameters: &'a Parameters) -> Option<&'a Literal> {
    let mut keys = name.split(['.', '[']).map(|key| key.trim_end_matches(']'));
    let mut value = parameters.get(keys.next()?)?;
    for key in keys {
        value = match value {
            Literal::Map(entries) => entries.iter().find(|(own, _)| own == key).map(|(_, value)| value)?,
            Literal::List(items) => items.get(key.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_expanded() {
        let mut parameters = Parameters::default();
        parameters.set("year".to_owned(), Literal::Integer("2026".to_owned()));
        parameters.set("pm".to_owned(), Literal::Map(vec![("run_uuid".to_owned(), Literal::Text("u".to_owned()))]));
        let ok = |path: &str| expand(path, &parameters).unwrap();
        assert_eq!(ok("a/{year}-{pm.run_uuid}-{pm[run_uuid]}.ipynb"), "a/2026-u-u.ipynb");
        assert_eq!((ok("{{x}}"), ok("plain"), ok("é{year}é")), ("{x}".to_owned(), "plain".to_owned(), "é2026é".to_owned()));
        for path in ["{month}", "{pm.x}", "{year[0]}", "{", "a}", "{}"] {
            assert!(expand(path, &parameters).is_err(), "{path}");
        }
    }
}
