//! What papermill adds to executed notebooks: markers of the failed cell, and report mode. Its tags and texts are used as
//! they are, so that either tool removes the other's markers.

use serde_json::json;

use crate::notebook::{NewCell, Notebook};
use crate::runner::RunReport;

/// The tag of the cells that mark a failure.
const ERROR_MARKER_TAG: &str = "papermill-error-cell-tag";

/// Removes the markers of an earlier run.
pub(super) fn remove_error_markers(notebook: &mut Notebook) {
    let next = |notebook: &Notebook| notebook.cells().position(|cell| !cell.is_code() && cell.has_tag(ERROR_MARKER_TAG));
    while let Some(index) = next(notebook) {
        if notebook.remove_cell(index).is_err() {
            return;
        }
    }
}

/// Puts a note on top, which links to the failed cell, and an anchor before that cell.
pub(super) fn mark_failure(notebook: &mut Notebook, report: &RunReport) {
    let Some(cell) = report.failure() else { return };
    let note = |text: String| NewCell::markdown(text).with_tags(&[ERROR_MARKER_TAG]);
    let red = "<span style=\"color:red; font-family:Helvetica Neue, Helvetica, Arial, sans-serif; font-size:2em;\">";
    let anchor = "<span id=\"papermill-error-cell\"></span>";
    notebook.insert_cell(cell.index, note(format!("{anchor}{red}This cell failed:</span>")));
    let number = cell.index + 1;
    notebook.insert_cell(
        0,
        note(format!("{red}This notebook failed in <a href=\"#papermill-error-cell\">cell {number}</a>.</span>")),
    );
}

/// Report mode: hides the code (`jupyter.source_hidden`); other metadata of the cells stays.
pub(super) fn hide_sources(notebook: &mut Notebook) -> anyhow::Result<()> {
    let code: Vec<usize> = notebook.cells().enumerate().filter(|(_, cell)| cell.is_code()).map(|(index, _)| index).collect();
    for index in code {
        let jupyter = notebook.cell_metadata_mut(index)?.entry("jupyter").or_insert_with(|| json!({}));
        if !jupyter.is_object() {
            *jupyter = json!({});
        }
        jupyter["source_hidden"] = json!(true);
    }
    Ok(())
}
