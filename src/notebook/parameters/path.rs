//! Names in paths: `out/{region}-{pm.run_uuid}.ipynb`, as papermill has them.

use super::{Literal, Parameters};
use thiserror::Error;

/// Why a path cannot be made of what stands in it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// A name that nobody has given a value.
    #[error("{{{name}}} in {path:?} is no parameter; write {{{{ and }}}} for braces that are part of the path")]
    Unknown {
        /// The name.
        name: String,
        /// The path.
        path: String,
    },
    /// A brace without its other.
    #[error("a brace in {path:?} has no other; write {{{{ and }}}} for braces that are part of the path")]
    Brace {
        /// The path.
        path: String,
    },
}

/// Puts values into a path: `{name}`, `{name[key]}` and `{name.key}` for what is in a mapping, `{{` and `}}` for braces.
///
/// # Errors
/// [`PathError`].
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
    fn values_go_into_paths() {
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
