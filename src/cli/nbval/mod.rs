//! The rules of nbval, which `cellkeep test` follows: cell marks, sanitize files, the comparison of outputs.

mod compare;
mod marks;
mod sanitize;

pub(super) use self::compare::differences;
pub(super) use self::marks::{CellMark, apply_marks};
pub(super) use self::sanitize::SanitizeRules;
