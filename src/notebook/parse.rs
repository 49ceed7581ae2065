//! Parsing: from bytes to a notebook with the invariants of the model.

use super::error::{NotebookError, NotebookWarning};
use super::lines::join;
use super::{MINOR, Notebook, ids, upgrade};
use crate::wire::json::{self, Bounds};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// See [`Notebook::parse`].
pub(super) fn parse(bytes: &[u8], bounds: Bounds) -> Result<Notebook, NotebookError> {
    let parsed = json::parse_reporting(bytes, bounds).map_err(|source| NotebookError::Json { source, hint: hint(bytes) })?;
    let mut warnings = Vec::new();
    if parsed.repairs.any() {
        warnings.push(NotebookWarning::Json(parsed.repairs));
    }
    let Value::Object(mut root) = parsed.value else {
        return Err(not_a_notebook("the file is not a JSON object"));
    };
    let minor = version(&mut root, &mut warnings)?;
    check_shape(&mut root, &mut warnings)?;
    let mut notebook = Notebook { root, warnings };
    if minor < MINOR {
        notebook.root.insert("nbformat_minor".to_owned(), json!(MINOR));
    }
    repair_ids(&mut notebook, minor >= MINOR);
    Ok(notebook)
}

fn not_a_notebook(reason: impl Into<String>) -> NotebookError {
    NotebookError::NotANotebook { reason: reason.into() }
}

/// What a file that is not JSON seems to be.
fn hint(bytes: &[u8]) -> Option<&'static str> {
    let start = bytes.trim_ascii_start();
    if start.is_empty() {
        return Some("the file is empty");
    }
    if start.starts_with(b"version https://git-lfs") {
        return Some("this is a Git LFS pointer, not the file itself");
    }
    if start.starts_with(b"<") && !start.starts_with(b"<<<<<<<") {
        return Some("this looks like a web page, not a notebook");
    }
    let conflict = bytes.windows(9).any(|window| window == b"\n<<<<<<< " || window == b"\n>>>>>>> ");
    conflict.then_some("the file has unresolved merge conflicts")
}

/// Checks the version and upgrades format 3 to 4. Returns the minor version of format 4 that the cells have.
fn version(root: &mut Map<String, Value>, warnings: &mut Vec<NotebookWarning>) -> Result<u64, NotebookError> {
    let major = match root.get("nbformat") {
        Some(major) => major.as_u64().ok_or_else(|| not_a_notebook("nbformat is not an integer"))?,
        None => return Err(not_a_notebook("nbformat is missing")),
    };
    let minor = root.get("nbformat_minor").and_then(Value::as_u64);
    match major {
        3 => {
            warnings.push(NotebookWarning::Upgraded { major, minor: minor.unwrap_or(0) });
            upgrade::from_v3(root);
            Ok(0)
        }
        4 => {
            let minor = minor.unwrap_or_else(|| {
                warnings.push(NotebookWarning::Field { cell: None, field: "nbformat_minor" });
                0
            });
            if minor < MINOR {
                warnings.push(NotebookWarning::Upgraded { major, minor });
            } else if minor > MINOR {
                warnings.push(NotebookWarning::NewerMinor { minor });
            }
            Ok(minor)
        }
        _ => Err(NotebookError::Unsupported { major }),
    }
}

/// Checks required fields. Where an empty value is obvious, it is inserted with a warning.
fn check_shape(root: &mut Map<String, Value>, warnings: &mut Vec<NotebookWarning>) -> Result<(), NotebookError> {
    require(root, None, "metadata", Value::is_object, || Value::Object(Map::new()), warnings);
    let spec = root.get("metadata").and_then(|metadata| metadata.get("kernelspec"));
    if spec.is_some_and(|spec| !spec["name"].is_string()) {
        warnings.push(NotebookWarning::Ignored { cell: None, field: "metadata.kernelspec" });
    }
    let Some(Value::Array(cells)) = root.get_mut("cells") else {
        return Err(not_a_notebook("cells is missing or not a list"));
    };
    for (index, cell) in cells.iter_mut().enumerate() {
        let Value::Object(cell) = cell else {
            return Err(not_a_notebook(format!("cell {index} is not an object")));
        };
        let Some(kind) = cell.get("cell_type").and_then(Value::as_str) else {
            return Err(not_a_notebook(format!("cell {index} has no cell_type")));
        };
        let (is_code, is_known) = (kind == "code", matches!(kind, "code" | "markdown" | "raw"));
        let position = Some(index);
        require(cell, position, "metadata", Value::is_object, || Value::Object(Map::new()), warnings);
        let tags = cell.get("metadata").and_then(|metadata| metadata.get("tags"));
        if tags.is_some_and(|tags| !tags.as_array().is_some_and(|tags| tags.iter().all(Value::is_string))) {
            warnings.push(NotebookWarning::Ignored { cell: position, field: "metadata.tags" });
        }
        if is_known {
            let is_text = |value: &Value| join(value).is_some();
            require(cell, position, "source", is_text, || Value::String(String::new()), warnings);
        }
        if is_code {
            require(cell, position, "outputs", Value::is_array, || Value::Array(Vec::new()), warnings);
            let is_count = |value: &Value| value.is_null() || value.is_u64();
            require(cell, position, "execution_count", is_count, || Value::Null, warnings);
        }
    }
    Ok(())
}

fn require(
    map: &mut Map<String, Value>,
    cell: Option<usize>,
    field: &'static str,
    is_valid: impl Fn(&Value) -> bool,
    empty: impl Fn() -> Value,
    warnings: &mut Vec<NotebookWarning>,
) {
    if !map.get(field).is_some_and(is_valid) {
        map.insert(field.to_owned(), empty());
        warnings.push(NotebookWarning::Field { cell, field });
    }
}

/// Assigns a new id to every cell without one, with an invalid one, or with that of an earlier cell. In formats without ids,
/// a missing id is no warning.
fn repair_ids(notebook: &mut Notebook, warns_of_missing: bool) {
    let mut taken: HashSet<String> =
        notebook.cells().map(|cell| cell.id().to_owned()).filter(|id| ids::is_valid(id)).collect();
    let mut seen = HashSet::new();
    for index in 0..notebook.len() {
        let Some(cell) = notebook.cell(index) else { continue };
        let old = cell.id();
        let (is_missing, is_valid) = (cell.json().get("id").is_none(), ids::is_valid(old));
        if is_valid && seen.insert(old.to_owned()) {
            continue;
        }
        let id = ids::derive(index, &cell.source(), &|id| taken.contains(id));
        taken.insert(id.clone());
        if !is_missing && is_valid {
            notebook.warnings.push(NotebookWarning::DuplicateId { cell: index, id: id.clone() });
        } else if !is_missing {
            notebook.warnings.push(NotebookWarning::InvalidId { cell: index, id: id.clone() });
        } else if warns_of_missing {
            notebook.warnings.push(NotebookWarning::MissingId { cell: index, id: id.clone() });
        }
        if let Ok(cell) = notebook.cell_mut(index) {
            cell.insert("id".to_owned(), Value::String(id));
        }
    }
}
