//! Errors of notebook files, and warnings about what was repaired.

use crate::wire::json::{JsonError, Repairs};
use std::fmt;

/// Why a file cannot be opened as a notebook, or a change is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotebookError {
    /// The bytes are not JSON.
    #[error("{source}{}", hint.map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Json {
        source: JsonError,
        /// What the file seems to be instead.
        hint: Option<&'static str>,
    },
    /// JSON, but not a notebook.
    #[error("JSON, but not a notebook: {reason}")]
    NotANotebook {
        /// Which part is missing or of the wrong type.
        reason: String,
    },
    /// A major version that we cannot read.
    #[error("notebook format {major} is not supported: only 3 and 4 are{}", version_hint(*major))]
    Unsupported { major: u64 },
    #[error("there is no cell {index}: the notebook has {len}")]
    NoSuchCell {
        /// The requested index, from 0.
        index: usize,
        len: usize,
    },
    /// Only code cells have outputs.
    #[error("cell {index} is not a code cell")]
    NotCode { index: usize },
}

fn version_hint(major: u64) -> &'static str {
    match major {
        0..=2 => "; open it in Jupyter or run `jupyter nbconvert --to notebook` to upgrade it",
        _ => "; it was written by a newer program",
    }
}

/// A deviation from the format, and how it was handled. Cell indexes start at 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotebookWarning {
    /// The text was not strict JSON.
    Json(Repairs),
    /// The file was of an older version.
    Upgraded { major: u64, minor: u64 },
    /// The file is of a newer minor version; its number and unknown parts are kept.
    NewerMinor { minor: u64 },
    /// A cell without an id got one.
    MissingId { cell: usize, id: String },
    /// A cell with an invalid id got another.
    InvalidId { cell: usize, id: String },
    /// A cell with the id of an earlier one got another.
    DuplicateId { cell: usize, id: String },
    /// A required field that was missing or of the wrong type got its empty value.
    Field {
        /// The cell; `None` for the notebook's own fields.
        cell: Option<usize>,
        field: &'static str,
    },
    /// An optional field of the wrong type is kept and ignored.
    Ignored {
        /// The cell; `None` for the notebook's own fields.
        cell: Option<usize>,
        field: &'static str,
    },
}

impl fmt::Display for NotebookWarning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(repairs) => json_warning(repairs, out),
            Self::Upgraded { major, minor } => write!(out, "upgraded from notebook format {major}.{minor}"),
            Self::NewerMinor { minor } => write!(out, "notebook format 4.{minor} is newer than this program"),
            Self::MissingId { cell, id } => write!(out, "cell {cell} had no id, it is now {id}"),
            Self::InvalidId { cell, id } => write!(out, "cell {cell} had an invalid id, it is now {id}"),
            Self::DuplicateId { cell, id } => write!(out, "cell {cell} had the id of another cell, it is now {id}"),
            Self::Field { cell: Some(cell), field } => {
                write!(out, "cell {cell}: {field} was missing or of the wrong type")
            }
            Self::Ignored { cell: Some(cell), field } => {
                write!(out, "cell {cell}: {field} has the wrong type and is ignored")
            }
            Self::Ignored { cell: None, field } => write!(out, "{field} has the wrong type and is ignored"),
            Self::Field { cell: None, field } => write!(out, "{field} was missing or of the wrong type"),
        }
    }
}

fn json_warning(repairs: &Repairs, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let parts = [
        (repairs.non_finite > 0, "NaN or infinite numbers became null"),
        (repairs.surrogates > 0, "lone surrogates became U+FFFD"),
        (repairs.utf8, "bytes that are not UTF-8 became U+FFFD"),
        (repairs.control > 0, "raw control characters in strings"),
        (repairs.bom, "a byte-order mark was skipped"),
        (repairs.utf16, "the text was UTF-16; it is written as UTF-8"),
        (repairs.duplicates > 0, "of duplicate keys, the last one was used"),
    ];
    let texts: Vec<&str> = parts.iter().filter(|(found, _)| *found).map(|(_, text)| *text).collect();
    write!(out, "not strict JSON: {}", texts.join(", "))
}
