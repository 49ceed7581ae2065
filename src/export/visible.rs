//! What of a notebook is to be seen: tags and metadata, in the words of nbconvert, JupyterLab and Jupyter Book.

use super::ExportOptions;
use crate::notebook::Cell;
use serde_json::Value;

/// Whether a part is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Show {
    /// As it is.
    Open,
    /// Folded up: readers may open it.
    Folded,
    /// Not at all.
    No,
}

/// What is shown of one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Visible {
    pub(super) cell: Show,
    pub(super) input: Show,
    pub(super) outputs: Show,
}

impl Visible {
    /// By the cell's tags and metadata, and the options.
    pub(super) fn of(cell: Cell<'_>, options: &ExportOptions) -> Self {
        let flag = |path: &[&str]| {
            let found = path.iter().try_fold(cell.json().get("metadata")?, |value, key| value.get(key));
            found.and_then(Value::as_bool)
        };
        let is_set = |path: &[&str]| flag(path) == Some(true);
        let by_tag = |part: &str| tagged(cell.tags(), part);
        let folded = |on: bool| if on { Show::Folded } else { Show::Open };
        let unless = |on: bool| if on { Show::Open } else { Show::No };
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

/// Whether one output is shown, by tags of its own (`output.metadata.tags`).
pub(super) fn output(output: &Value) -> Show {
    let tags = output.get("metadata").and_then(|metadata| metadata.get("tags")).and_then(Value::as_array);
    tagged(tags.into_iter().flatten().filter_map(Value::as_str), "output")
}

/// `remove-PART` takes away, `hide-PART` folds; with either hyphen, and in the plural.
fn tagged<'a>(tags: impl Iterator<Item = &'a str>, part: &str) -> Show {
    let one = |tag: &str| {
        let tag = tag.trim().replace('_', "-");
        let (verb, object) = tag.split_once('-')?;
        match verb {
            _ if object != part && object.strip_suffix('s') != Some(part) => None,
            "remove" => Some(Show::No),
            "hide" => Some(Show::Folded),
            _ => None,
        }
    };
    tags.filter_map(one).max().unwrap_or(Show::Open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::notebook_of;
    use serde_json::json;

    fn of(metadata: Value) -> (Show, Show, Show) {
        let notebook =
            notebook_of(json!([{"cell_type": "code", "id": "a", "metadata": metadata, "source": "", "outputs": [],
            "execution_count": null}]));
        let visible = Visible::of(notebook.cell(0).unwrap(), &ExportOptions::default());
        (visible.cell, visible.input, visible.outputs)
    }

    #[test]
    fn tags_and_metadata() {
        assert_eq!(of(json!({})), (Show::Open, Show::Open, Show::Open));
        assert_eq!(of(json!({"tags": ["hide-input", "remove_output"]})), (Show::Open, Show::Folded, Show::No));
        assert_eq!(of(json!({"tags": ["remove-cell", "hide-cell", "x"]})).0, Show::No);
        assert_eq!(
            of(json!({"jupyter": {"source_hidden": true, "outputs_hidden": true}})),
            (Show::Open, Show::Folded, Show::Folded)
        );
        assert_eq!(of(json!({"collapsed": true, "hide_input": true})), (Show::Open, Show::Folded, Show::Folded));
        assert_eq!(of(json!({"jupyter": 3, "tags": ["hide-everything", "-", ""]})), (Show::Open, Show::Open, Show::Open));
    }
}
