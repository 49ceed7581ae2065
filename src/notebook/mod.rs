//! A notebook file: read, looked at, changed in places, printed.
//!
//! The model is the file's own JSON. Nothing is rebuilt: fields that we do not know stay where they are, and printing
//! gives, byte for byte, what Python's `nbformat.write` gives for the same notebook. Files of major version 3 are
//! upgraded, 4.0 to 4.4 become 4.5 (cells get ids), 4.5 is repaired where it breaks the format, and newer minors are
//! kept as they are.

mod cell;
mod error;
mod ids;
mod lines;
mod number;
pub mod parameters;
mod parse;
mod print;
mod upgrade;

pub use cell::{Cell, NewCell};
pub use error::{NotebookError, NotebookWarning};

use crate::output::repair_output;
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
    /// An empty notebook for a kernel. `language` is the language's name as kernels give it, as `python`.
    pub fn new(kernel_name: &str, display_name: &str, language: &str) -> Self {
        let kernelspec = json!({"name": kernel_name, "display_name": display_name, "language": language});
        let mut root = Map::new();
        root.insert("cells".to_owned(), Value::Array(Vec::new()));
        root.insert("metadata".to_owned(), json!({"kernelspec": kernelspec, "language_info": {"name": language}}));
        root.insert("nbformat".to_owned(), json!(4));
        root.insert("nbformat_minor".to_owned(), json!(MINOR));
        Self { root, warnings: Vec::new() }
    }

    /// Reads a notebook file. What could be repaired is told in [`Notebook::warnings`].
    ///
    /// # Errors
    /// [`NotebookError`] where the bytes are no JSON, no notebook, or a notebook of a major version other than 3 or 4.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotebookError> {
        parse::parse(bytes)
    }

    /// The file's text, with the final line feed. Linear in the size of the notebook, and without a copy of it.
    pub fn print(&self) -> String {
        print::print(&self.root)
    }

    /// What was repaired or upgraded on reading.
    pub fn warnings(&self) -> &[NotebookWarning] {
        &self.warnings
    }

    /// The JSON as it stands in memory, multi-line strings in either form.
    pub fn as_json(&self) -> &Map<String, Value> {
        &self.root
    }

    /// The minor version of format 4: 5, or what a newer file said.
    pub fn minor(&self) -> u64 {
        self.root.get("nbformat_minor").and_then(Value::as_u64).unwrap_or(MINOR)
    }

    /// Number of cells.
    pub fn len(&self) -> usize {
        self.raw_cells().len()
    }

    /// Whether there is no cell.
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

    /// The metadata of the notebook.
    pub fn metadata(&self) -> Option<&Map<String, Value>> {
        self.root.get("metadata").and_then(Value::as_object)
    }

    /// The metadata of the notebook, for changing keys of our own. Everything else belongs to others.
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

    /// Sets `metadata.language_info`, as kernels send it in `kernel_info_reply`.
    pub fn set_language_info(&mut self, info: Value) {
        self.metadata_mut().insert("language_info".to_owned(), info);
    }

    /// Sets `metadata.kernelspec`. The format asks for `name` and `display_name` in it.
    pub fn set_kernelspec(&mut self, name: &str, display_name: &str, language: &str) {
        let kernelspec = json!({"name": name, "display_name": display_name, "language": language});
        self.metadata_mut().insert("kernelspec".to_owned(), kernelspec);
    }

    /// Replaces the outputs and the execution count of a code cell. Outputs are made valid by the schema first
    /// (see [`repair_output`]).
    ///
    /// # Errors
    /// [`NotebookError::NoSuchCell`], [`NotebookError::NotCode`].
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

    /// Puts outputs back that this notebook, or one that it was made from, had. They may be of kinds that only a later format
    /// knows; nothing of them is changed.
    ///
    /// # Errors
    /// [`NotebookError::NoSuchCell`], [`NotebookError::NotCode`].
    pub fn put_back_outputs(&mut self, index: usize, outputs: Vec<Value>) -> Result<(), NotebookError> {
        self.code_cell_mut(index)?.insert("outputs".to_owned(), Value::Array(outputs));
        Ok(())
    }

    /// Replaces `metadata.execution` of a code cell (nbformat 4.4): pairs of a key such as `iopub.status.busy` and an
    /// ISO 8601 time. No pairs remove it.
    ///
    /// # Errors
    /// [`NotebookError::NoSuchCell`], [`NotebookError::NotCode`].
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

    /// The metadata of a cell, for changing keys of our own.
    ///
    /// # Errors
    /// [`NotebookError::NoSuchCell`].
    pub fn cell_metadata_mut(&mut self, index: usize) -> Result<&mut Map<String, Value>, NotebookError> {
        Ok(object_field(self.cell_mut(index)?, "metadata"))
    }

    /// Replaces the source of a cell.
    ///
    /// # Errors
    /// [`NotebookError::NoSuchCell`].
    pub fn set_source(&mut self, index: usize, source: &str) -> Result<(), NotebookError> {
        self.cell_mut(index)?.insert("source".to_owned(), Value::String(source.to_owned()));
        Ok(())
    }

    /// Inserts a cell before the one at `index` (behind the last for [`Notebook::len`] and more). Returns its id: the
    /// one asked for if it is valid and free, else one derived from place and source, the same every time.
    pub fn insert_cell(&mut self, index: usize, cell: NewCell) -> String {
        let index = index.min(self.len());
        let taken: std::collections::HashSet<&str> = self.cells().map(|cell| cell.id()).collect();
        let wanted = cell.id.clone().filter(|id| ids::is_valid(id) && !taken.contains(id.as_str()));
        let id = wanted.unwrap_or_else(|| ids::derive(index, &cell.source, &|id| taken.contains(id)));
        let value = cell.into_json(&id);
        self.raw_cells_mut().insert(index, value);
        id
    }

    /// Makes these the cells, in this order. Those whose id is there already keep the fields that are not said here, as outputs
    /// and attachments; others go. Ids must be valid and different, as those of a session's cells are.
    pub fn rearrange(&mut self, cells: Vec<NewCell>) {
        let old = std::mem::take(self.raw_cells_mut()).into_iter();
        let id_of = |cell: &Value| cell.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut old: std::collections::HashMap<String, Value> = old.map(|cell| (id_of(&cell), cell)).collect();
        for (index, cell) in cells.into_iter().enumerate() {
            let id = cell.id.clone().unwrap_or_else(|| ids::derive(index, &cell.source, &|_| false));
            let is_same = |old: &Value| match Cell::new(old).cell_type() {
                "code" | "markdown" | "raw" => Cell::new(old).cell_type() == cell.cell_type,
                // A later format's own, which is text to us.
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

    /// Takes a cell out. Returns its JSON.
    ///
    /// # Errors
    /// [`NotebookError::NoSuchCell`].
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

/// The object under a key; made, in place of whatever stood there, if it is none.
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
