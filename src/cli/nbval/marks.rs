//! How nbval's marks of cells are found and applied.

use serde_json::json;

use crate::notebook::{Cell, Notebook};

/// A mark that nbval reads: a tag, or a comment on a line of its own.
#[derive(Clone, Copy)]
pub(in crate::cli) enum CellMark {
    Skip,
    Raises,
    Ignore,
    Check,
}

impl CellMark {
    pub fn is_on(self, cell: Cell<'_>) -> bool {
        let (tags, words): (&[&str], &[&str]) = match self {
            Self::Skip => (&["nbval-skip", "skip-execution"], &["NBVAL_SKIP"]),
            Self::Raises => (&["nbval-raises-exception", "raises-exception"], &["NBVAL_RAISES_EXCEPTION"]),
            Self::Ignore => (&["nbval-ignore-output"], &["NBVAL_IGNORE_OUTPUT", "PYTEST_VALIDATE_IGNORE_OUTPUT"]),
            Self::Check => (&["nbval-check-output"], &["NBVAL_CHECK_OUTPUT"]),
        };
        let is_comment = |line: &str| {
            let comment = line.trim_start().strip_prefix('#').or_else(|| line.trim_start().strip_prefix("//"));
            comment.is_some_and(|comment| words.contains(&comment.trim()))
        };
        tags.iter().any(|tag| cell.has_tag(tag)) || cell.source().lines().any(is_comment)
    }
}

/// Translates nbval's marks that affect execution into the tags that the runner knows.
pub(in crate::cli) fn apply_marks(notebook: &mut Notebook) -> anyhow::Result<()> {
    for index in 0..notebook.len() {
        let Some(cell) = notebook.cell(index).filter(|cell| cell.is_code()) else { continue };
        let mut tags: Vec<String> = cell.tags().map(str::to_owned).collect();
        for (mark, tag) in [(CellMark::Skip, "skip-execution"), (CellMark::Raises, "raises-exception")] {
            if mark.is_on(cell) && !tags.iter().any(|own| own == tag) {
                tags.push(tag.to_owned());
            }
        }
        notebook.cell_metadata_mut(index)?.insert("tags".to_owned(), json!(tags));
    }
    Ok(())
}
