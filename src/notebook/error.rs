//! What can be wrong with a notebook file, and what was wrong and could be repaired.

use crate::wire::json::{JsonError, Repairs};
use std::fmt;

/// Why a file is not opened as a notebook, or a change to one is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotebookError {
    /// The bytes are not JSON.
    #[error("{source}{}", hint.map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Json {
        /// What the JSON reader met, and where.
        source: JsonError,
        /// What the file looks like instead.
        hint: Option<&'static str>,
    },
    /// JSON, but not a notebook.
    #[error("JSON, but not a notebook: {reason}")]
    NotANotebook {
        /// What is missing or of the wrong type.
        reason: String,
    },
    /// A notebook of a major version that we do not read.
    #[error("notebook format {major} is not supported: only 3 and 4 are{}", version_hint(*major))]
    Unsupported {
        /// The file's `nbformat`.
        major: u64,
    },
    /// There is no cell with this index.
    #[error("there is no cell {index}: the notebook has {len}")]
    NoSuchCell {
        /// The index asked for, from 0.
        index: usize,
        /// The number of cells.
        len: usize,
    },
    /// The cell is not a code cell and has no outputs.
    #[error("cell {index} is not a code cell")]
    NotCode {
        /// The cell's index, from 0.
        index: usize,
    },
}

fn version_hint(major: u64) -> &'static str {
    match major {
        0..=2 => "; open it in Jupyter or run `jupyter nbconvert --to notebook` to upgrade it",
        _ => "; it was written by a newer program",
    }
}

/// Something in the file that was not as the format says, and what became of it. Cell indexes count from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotebookWarning {
    /// The text was not strict JSON.
    Json(Repairs),
    /// The file was of an older version.
    Upgraded {
        /// Its `nbformat`.
        major: u64,
        /// Its `nbformat_minor`.
        minor: u64,
    },
    /// The file is of a newer minor version; its number and unknown parts are kept.
    NewerMinor {
        /// Its `nbformat_minor`.
        minor: u64,
    },
    /// A cell had no id, and got one.
    MissingId {
        /// The cell.
        cell: usize,
        /// The new id.
        id: String,
    },
    /// A cell's id is not one by the format; it got another.
    InvalidId {
        /// The cell.
        cell: usize,
        /// The new id.
        id: String,
    },
    /// A cell had the id of an earlier one, and got another.
    DuplicateId {
        /// The cell.
        cell: usize,
        /// The new id.
        id: String,
    },
    /// A required field was missing or of the wrong type, and got its empty value.
    Field {
        /// The cell; `None` for the notebook's own fields.
        cell: Option<usize>,
        /// The field.
        field: &'static str,
    },
    /// A field that need not be there is of the wrong type. It is kept as it is, and means nothing.
    Meaningless {
        /// The cell; `None` for the notebook's own fields.
        cell: Option<usize>,
        /// The field.
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
            Self::Meaningless { cell: Some(cell), field } => {
                write!(out, "cell {cell}: {field} is of the wrong type, and is not heeded")
            }
            Self::Meaningless { cell: None, field } => write!(out, "{field} is of the wrong type, and is not heeded"),
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
        (repairs.utf16, "the text was UTF-16, and is written as UTF-8"),
        (repairs.duplicates > 0, "some keys were there twice, and the last of each stands"),
    ];
    let told: Vec<&str> = parts.iter().filter(|(found, _)| *found).map(|(_, text)| *text).collect();
    write!(out, "not strict JSON: {}", told.join(", "))
}
