//! Outputs held in memory, for those who write them into a notebook.

use super::{CellKey, Change, Fold, Place, StreamStyle};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Memory that one cell's outputs may take where nobody says otherwise, bytes.
const DEFAULT_MEMORY: usize = 512 << 20;

/// The outputs of all cells, built from messages.
///
/// Parsed JSON takes many times the bytes that came, and one update can reach a thousand copies; so each cell's outputs
/// have a memory of their own, and what does not fit is left out and named.
#[derive(Debug)]
pub struct Outputs {
    fold: Fold,
    cells: BTreeMap<CellKey, Held>,
    memory: usize,
}

#[derive(Debug, Default)]
struct Held {
    items: Vec<Value>,
    /// Estimate of the memory that `items` take, bytes.
    weight: usize,
    /// Whether something did not fit, and a note about it stands at the end.
    full: bool,
}

impl Default for Outputs {
    fn default() -> Self {
        Self::new(StreamStyle::default())
    }
}

impl Outputs {
    /// No outputs yet.
    pub fn new(style: StreamStyle) -> Self {
        Self { fold: Fold::new(style), cells: BTreeMap::new(), memory: DEFAULT_MEMORY }
    }

    /// The same with another bound, in bytes, for what one cell's outputs may take.
    pub fn with_memory(self, memory: usize) -> Self {
        Self { memory, ..self }
    }

    /// An execution of the cell starts: its outputs go, a pending clear and its display ids are forgotten.
    pub fn start(&mut self, cell: CellKey) {
        self.fold.start(cell);
        self.cells.insert(cell, Held::default());
    }

    /// Takes in one iopub message of the cell, as [`Fold::apply`]. Gives the cells whose outputs it changed.
    pub fn apply(&mut self, cell: CellKey, msg_type: &str, content: &[u8]) -> BTreeSet<CellKey> {
        let mut touched = BTreeSet::new();
        for change in self.fold.apply(cell, msg_type, content) {
            self.change(change, &mut touched);
        }
        touched
    }

    /// The cells that have been started or have outputs, in the order of their keys.
    pub fn cells(&self) -> impl Iterator<Item = CellKey> + '_ {
        self.cells.keys().copied()
    }

    /// Number of outputs of a cell.
    pub fn len(&self, cell: CellKey) -> usize {
        self.outputs(cell).len()
    }

    /// Whether a cell has no outputs.
    pub fn is_empty(&self, cell: CellKey) -> bool {
        self.len(cell) == 0
    }

    /// The outputs of a cell as nbformat objects. Streams have their text as one string, and MIME values are what
    /// the kernel sent; [`repair_output`](super::repair_output) makes them valid for a file.
    pub fn outputs(&self, cell: CellKey) -> &[Value] {
        self.cells.get(&cell).map(|held| held.items.as_slice()).unwrap_or_default()
    }

    /// The outputs of a cell that has ended. They are held on only where a display id can still change them.
    pub fn finish(&mut self, cell: CellKey) -> Vec<Value> {
        if self.fold.has_displays(cell) {
            return self.outputs(cell).to_vec();
        }
        self.fold.forget(cell);
        self.cells.remove(&cell).unwrap_or_default().items
    }

    fn change(&mut self, change: Change, touched: &mut BTreeSet<CellKey>) {
        let memory = self.memory;
        match change {
            Change::Append { cell, output, .. } => {
                self.cells.entry(cell).or_default().append(output, memory);
                touched.insert(cell);
            }
            Change::Stream { cell, index, keep, text, .. } => {
                self.cells.entry(cell).or_default().edit_stream(index, keep, &text, memory);
                touched.insert(cell);
            }
            Change::Update { places, data, metadata } => {
                for Place { cell, index, .. } in places {
                    self.cells.entry(cell).or_default().update(index, &data, &metadata, memory);
                    touched.insert(cell);
                }
            }
            Change::Clear { cell } => {
                self.cells.insert(cell, Held::default());
                touched.insert(cell);
            }
        }
    }
}

impl Held {
    fn append(&mut self, output: Value, memory: usize) {
        let weight = weight(&output);
        if self.has_room(weight, memory) {
            self.weight += weight;
            self.items.push(output);
        }
    }

    fn edit_stream(&mut self, index: usize, keep: usize, tail: &str, memory: usize) {
        if !self.has_room(tail.len(), memory) {
            return;
        }
        if let Some(Value::String(text)) = self.items.get_mut(index).and_then(|output| output.get_mut("text")) {
            self.weight += tail.len();
            self.weight -= text.len().saturating_sub(keep);
            text.truncate(keep);
            text.push_str(tail);
        }
    }

    fn update(&mut self, index: usize, data: &Value, metadata: &Value, memory: usize) {
        let weight = weight(data) + weight(metadata);
        if !self.has_room(weight, memory) {
            return;
        }
        if let Some(Value::Object(output)) = self.items.get_mut(index) {
            let before: usize = ["data", "metadata"].iter().filter_map(|key| output.get(*key)).map(self::weight).sum();
            output.insert("data".to_owned(), data.clone());
            output.insert("metadata".to_owned(), metadata.clone());
            self.weight = (self.weight + weight).saturating_sub(before);
        }
    }

    /// Whether so much more may be held. The first refusal is noted behind the outputs; after it nothing is taken any
    /// more, so that what is there is the beginning of what came, without holes.
    fn has_room(&mut self, more: usize, memory: usize) -> bool {
        if !self.full && self.weight + more > memory {
            self.full = true;
            let text = format!(
                "cellkeep: the outputs of this cell take more than {} MB of memory; what follows was left out\n",
                memory >> 20
            );
            self.items.push(json!({"output_type": "stream", "name": "stderr", "text": text}));
        }
        !self.full
    }
}

/// Roughly the memory that a value takes, bytes.
pub(super) fn weight(value: &Value) -> usize {
    /// What the allocator and the map's table take beside the bytes themselves.
    const ENTRY: usize = 32;
    size_of::<Value>()
        + match value {
            Value::Null | Value::Bool(_) => 0,
            Value::Number(_) => ENTRY,
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(weight).sum(),
            Value::Object(map) => map_weight(map, ENTRY),
        }
}

fn map_weight(map: &Map<String, Value>, entry: usize) -> usize {
    map.iter().map(|(key, value)| key.len() + size_of::<String>() + entry + weight(value)).sum()
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
