//! Notebook files: parse, read, edit and print.
//!
//! The model is the file's own JSON. Nothing is rebuilt: unknown fields are kept, and the printed text is, byte for byte,
//! that of Python's `nbformat.write` for the same notebook. Files of major version 3 are upgraded, 4.0 to 4.4 become 4.5
//! (cells get ids), invalid parts of 4.5 are repaired, and newer minor versions are kept.

mod cell;
mod error;
mod ids;
mod lines;
mod number;
pub mod parameters;
mod parse;
mod print;
mod requirements;
mod upgrade;

pub use cell::{Cell, NewCell};
pub use error::{NotebookError, NotebookWarning};
pub use requirements::requirements;

use crate::output::repair_output;
use crate::wire::json::Bounds;
use serde_json::{Map, Value, json};

/// The minor version of format 4 that we write.
pub const MINOR: u64 = 5;

/// A notebook of format 4.5 or a later minor.
#[derive(Debug, Clone, PartialEq)]
pub struct Notebook {
    /// The file's JSON. Invariants from [`Notebook::parse`]: `cells` is an array of objects, each with a string
    /// `cell_type`, an object `metadata` and a valid unique `id`; `metadata` is an object.
    root: Map<String, Value>,
    warnings: Vec<NotebookWarning>,
}

impl Notebook {
    /// An empty notebook for a kernel. `language`: its name in `kernel_info_reply`, for example `python`.
    pub fn new(kernel_name: &str, display_name: &str, language: &str) -> Self {
        let kernelspec = json!({"name": kernel_name, "display_name": display_name, "language": language});
        let mut root = Map::new();
        root.insert("cells".to_owned(), Value::Array(Vec::new()));
        root.insert("metadata".to_owned(), json!({"kernelspec": kernelspec, "language_info": {"name": language}}));
        root.insert("nbformat".to_owned(), json!(4));
        root.insert("nbformat_minor".to_owned(), json!(MINOR));
        Self { root, warnings: Vec::new() }
    }

    /// Reads a notebook file. [`Notebook::warnings`] lists the repairs.
    ///
    /// # Errors
    /// If the bytes are not JSON, not a notebook, or a notebook of a major version other than 3 or 4.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotebookError> {
        Self::parse_within(bytes, usize::MAX)
    }

    /// As [`Self::parse`], for a file of somebody else: a parsed value takes about a hundred bytes, up to fifty times its text.
    ///
    /// # Errors
    /// Also if the file has more JSON values.
    pub fn parse_within(bytes: &[u8], most_values: usize) -> Result<Self, NotebookError> {
        parse::parse(bytes, Bounds { values: most_values, ..Bounds::default() })
    }

    /// The text of the file, with a final line feed. Linear in the size of the notebook, without a copy of it.
    pub fn print(&self) -> String {
        print::print(&self.root)
    }

    /// What was repaired or upgraded on reading.
    pub fn warnings(&self) -> &[NotebookWarning] {
        &self.warnings
    }

    /// The JSON in memory. Multi-line strings may be strings or lists.
    pub fn as_json(&self) -> &Map<String, Value> {
        &self.root
    }

    /// The minor version of format 4: 5, or that of a newer file.
    pub fn minor(&self) -> u64 {
        self.root.get("nbformat_minor").and_then(Value::as_u64).unwrap_or(MINOR)
    }

    pub fn len(&self) -> usize {
        self.raw_cells().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cells in order.
    pub fn cells(&self) -> impl ExactSizeIterator<Item = Cell<'_>> + DoubleEndedIterator {
        self.raw_cells().iter().map(Cell::new)
    }

    /// The cell at an index from 0.
    pub fn cell(&self, index: usize) -> Option<Cell<'_>> {
        self.raw_cells().get(index).map(Cell::new)
    }

    /// The index of the cell with this id.
    pub fn find(&self, id: &str) -> Option<usize> {
        self.cells().position(|cell| cell.id() == id)
    }

    pub fn metadata(&self) -> Option<&Map<String, Value>> {
        self.root.get("metadata").and_then(Value::as_object)
    }

    /// The metadata of the notebook, to change our own keys. Other keys belong to other programs.
    pub fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        object_field(&mut self.root, "metadata")
    }

    /// The name of the kernel that the notebook was written for (`metadata.kernelspec.name`).
    pub fn kernelspec_name(&self) -> Option<&str> {
        self.metadata()?.get("kernelspec")?.get("name")?.as_str()
    }

    /// The notebook's language (`metadata.language_info.name`, else `metadata.kernelspec.language`).
    pub fn language(&self) -> Option<&str> {
        let metadata = self.metadata()?;
        let named = |object: &str, key: &str| metadata.get(object)?.get(key)?.as_str();
        named("language_info", "name").or_else(|| named("kernelspec", "language"))
    }

    /// Sets `metadata.language_info`, from `kernel_info_reply`.
    pub fn set_language_info(&mut self, info: Value) {
        self.metadata_mut().insert("language_info".to_owned(), info);
    }

    /// Sets `metadata.kernelspec`. The format requires `name` and `display_name`.
    pub fn set_kernelspec(&mut self, name: &str, display_name: &str, language: &str) {
        let kernelspec = json!({"name": name, "display_name": display_name, "language": language});
        self.metadata_mut().insert("kernelspec".to_owned(), kernelspec);
    }

    /// Replaces the outputs and the execution count of a code cell. Outputs are repaired to match the schema first
    /// (see [`repair_output`]).
    pub fn set_outputs(
        &mut self,
        index: usize,
        outputs: Vec<Value>,
        execution_count: Option<i64>,
    ) -> Result<(), NotebookError> {
        let cell = self.code_cell_mut(index)?;
        let outputs = outputs.into_iter().map(repair_output).collect();
        cell.insert("outputs".to_owned(), Value::Array(outputs));
        let count = execution_count.filter(|count| *count >= 0);
        cell.insert("execution_count".to_owned(), json!(count));
        Ok(())
    }

    /// Restores outputs of this notebook, or of the one it was made from. They are not changed: types of a later format are
    /// kept.
    pub fn restore_outputs(&mut self, index: usize, outputs: Vec<Value>) -> Result<(), NotebookError> {
        self.code_cell_mut(index)?.insert("outputs".to_owned(), Value::Array(outputs));
        Ok(())
    }

    /// Replaces `metadata.execution` of a code cell (nbformat 4.4): pairs of a key such as `iopub.status.busy` and an
    /// ISO 8601 time. An empty list removes it.
    pub fn set_execution_timing(&mut self, index: usize, times: &[(&str, &str)]) -> Result<(), NotebookError> {
        let cell = self.code_cell_mut(index)?;
        let metadata = object_field(cell, "metadata");
        if times.is_empty() {
            metadata.shift_remove("execution");
            return Ok(());
        }
        let times: Map<String, Value> = times.iter().map(|(key, time)| ((*key).to_owned(), json!(time))).collect();
        metadata.insert("execution".to_owned(), Value::Object(times));
        Ok(())
    }

    /// The metadata of a cell, to change our own keys.
    pub fn cell_metadata_mut(&mut self, index: usize) -> Result<&mut Map<String, Value>, NotebookError> {
        Ok(object_field(self.cell_mut(index)?, "metadata"))
    }

    pub fn set_source(&mut self, index: usize, source: &str) -> Result<(), NotebookError> {
        self.cell_mut(index)?.insert("source".to_owned(), Value::String(source.to_owned()));
        Ok(())
    }

    /// Inserts a cell before the one at `index` (after the last for [`Notebook::len`] and more). Returns its id: the
    /// requested one if it is valid and unused, otherwise one derived from position and source, so that it is reproducible.
    pub fn insert_cell(&mut self, index: usize, cell: NewCell) -> String {
        let index = index.min(self.len());
        let taken: std::collections::HashSet<&str> = self.cells().map(|cell| cell.id()).collect();
        let requested = cell.id.clone().filter(|id| ids::is_valid(id) && !taken.contains(id.as_str()));
        let id = requested.unwrap_or_else(|| ids::derive(index, &cell.source, &|id| taken.contains(id)));
        let value = cell.into_json(&id);
        self.raw_cells_mut().insert(index, value);
        id
    }

    /// Replaces the cells. A cell whose id exists keeps its other fields, such as outputs and attachments; cells that are
    /// not listed are removed. Ids must be valid and unique, as those of a session's cells are.
    pub fn rearrange(&mut self, cells: Vec<NewCell>) {
        let old = std::mem::take(self.raw_cells_mut()).into_iter();
        let id_of = |cell: &Value| cell.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut old: std::collections::HashMap<String, Value> = old.map(|cell| (id_of(&cell), cell)).collect();
        for (index, cell) in cells.into_iter().enumerate() {
            let id = cell.id.clone().unwrap_or_else(|| ids::derive(index, &cell.source, &|_| false));
            let is_same = |old: &Value| match Cell::new(old).cell_type() {
                "code" | "markdown" | "raw" => Cell::new(old).cell_type() == cell.cell_type,
                // A cell type of a later format, which a session treats as raw text.
                _ => cell.cell_type == "raw",
            };
            let value = match old.remove(&id).filter(is_same) {
                Some(mut same) => {
                    if Cell::new(&same).source() != cell.source {
                        same["source"] = cell.source.into();
                    }
                    same["metadata"] = cell.metadata.into();
                    same
                }
                None => cell.into_json(&id),
            };
            self.raw_cells_mut().push(value);
        }
    }

    /// Removes a cell. Returns its JSON.
    pub fn remove_cell(&mut self, index: usize) -> Result<Value, NotebookError> {
        let len = self.len();
        if index >= len {
            return Err(NotebookError::NoSuchCell { index, len });
        }
        Ok(self.raw_cells_mut().remove(index))
    }

    fn raw_cells(&self) -> &[Value] {
        self.root.get("cells").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    fn raw_cells_mut(&mut self) -> &mut Vec<Value> {
        let cells = self.root.entry("cells").or_insert_with(|| Value::Array(Vec::new()));
        if !cells.is_array() {
            *cells = Value::Array(Vec::new());
        }
        match cells {
            Value::Array(cells) => cells,
            _ => unreachable!("it was just made an array"),
        }
    }

    fn cell_mut(&mut self, index: usize) -> Result<&mut Map<String, Value>, NotebookError> {
        let len = self.len();
        let cell = self.raw_cells_mut().get_mut(index).and_then(Value::as_object_mut);
        cell.ok_or(NotebookError::NoSuchCell { index, len })
    }

    fn code_cell_mut(&mut self, index: usize) -> Result<&mut Map<String, Value>, NotebookError> {
        let cell = self.cell_mut(index)?;
        if cell.get("cell_type").and_then(Value::as_str) == Some("code") {
            return Ok(cell);
        }
        Err(NotebookError::NotCode { index })
    }
}

/// The object under a key. Another value there is replaced by an empty object.
fn object_field<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let field = map.entry(key).or_insert(Value::Null);
    if !field.is_object() {
        *field = Value::Object(Map::new());
    }
    match field {
        Value::Object(object) => object,
        _ => unreachable!("it was just made an object"),
    }
}

#[cfg(test)]
mod tests;
