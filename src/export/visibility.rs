//! Which parts of a cell are shown, by its tags and metadata. Supports the conventions of nbconvert, JupyterLab and Jupyter
//! Book.

use super::ExportOptions;
use crate::notebook::Cell;
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Visibility {
    /// Shown unfolded.
    Open,
    /// Shown folded; the reader can open it.
    Folded,
    Hidden,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CellVisibility {
    pub(super) cell: Visibility,
    pub(super) input: Visibility,
    pub(super) outputs: Visibility,
}

impl CellVisibility {
    pub(super) fn of(cell: Cell<'_>, options: &ExportOptions) -> Self {
        let flag = |path: &[&str]| {
            let found = path.iter().try_fold(cell.json().get("metadata")?, |value, key| value.get(key));
            found.and_then(Value::as_bool)
        };
        let is_set = |path: &[&str]| flag(path) == Some(true);
        let by_tag = |part: &str| tagged(cell.tags(), part);
        let folded = |on: bool| if on { Visibility::Folded } else { Visibility::Open };
        let unless = |on: bool| if on { Visibility::Open } else { Visibility::Hidden };
        Self {
            cell: by_tag("cell"),
            input: by_tag("input")
                .max(folded(is_set(&["jupyter", "source_hidden"]) || is_set(&["hide_input"])))
                .max(unless(options.inputs)),
            outputs: by_tag("output")
                .max(folded(is_set(&["jupyter", "outputs_hidden"]) || is_set(&["collapsed"])))
                .max(unless(options.outputs)),
        }
    }
}

/// The visibility of one output by its own tags (`output.metadata.tags`).
pub(super) fn output(output: &Value) -> Visibility {
    let tags = output.get("metadata").and_then(|metadata| metadata.get("tags")).and_then(Value::as_array);
    tagged(tags.into_iter().flatten().filter_map(Value::as_str), "output")
}

/// `remove-PART` hides and `hide-PART` folds; also with `_` instead of `-`, and in the plural.
fn tagged<'a>(tags: impl Iterator<Item = &'a str>, part: &str) -> Visibility {
    let one = |tag: &str| {
        let tag = tag.trim().replace('_', "-");
        let (verb, object) = tag.split_once('-')?;
        match verb {
            _ if object != part && object.strip_suffix('s') != Some(part) => None,
            "remove" => Some(Visibility::Hidden),
            "hide" => Some(Visibility::Folded),
            _ => None,
        }
    };
    tags.filter_map(one).max().unwrap_or(Visibility::Open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::notebook_of;
    use serde_json::json;

    fn of(metadata: Value) -> (Visibility, Visibility, Visibility) {
        let notebook =
            notebook_of(json!([{"cell_type": "code", "id": "a", "metadata": metadata, "source": "", "outputs": [],
            "execution_count": null}]));
        let visible = CellVisibility::of(notebook.cell(0).unwrap(), &ExportOptions::default());
        (visible.cell, visible.input, visible.outputs)
    }

    #[test]
    fn tags_and_metadata_set_visibility() {
        assert_eq!(of(json!({})), (Visibility::Open, Visibility::Open, Visibility::Open));
        assert_eq!(
            of(json!({"tags": ["hide-input", "remove_output"]})),
            (Visibility::Open, Visibility::Folded, Visibility::Hidden)
        );
        assert_eq!(of(json!({"tags": ["remove-cell", "hide-cell", "x"]})).0, Visibility::Hidden);
        assert_eq!(
            of(json!({"jupyter": {"source_hidden": true, "outputs_hidden": true}})),
            (Visibility::Open, Visibility::Folded, Visibility::Folded)
        );
        assert_eq!(
            of(json!({"collapsed": true, "hide_input": true})),
            (Visibility::Open, Visibility::Folded, Visibility::Folded)
        );
        assert_eq!(
            of(json!({"jupyter": 3, "tags": ["hide-everything", "-", ""]})),
            (Visibility::Open, Visibility::Open, Visibility::Open)
        );
    }
}
