//! Outputs in memory, for programs that write them into a notebook.

use super::{Change, Fold, OutputTarget, Place, StreamStyle};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Default memory that one target's outputs may take, in bytes.
const DEFAULT_MEMORY: usize = 512 << 20;

/// The outputs of all targets, built from messages.
///
/// Parsed JSON takes many times the bytes that came, and one update can reach a thousand copies. So the outputs of each target have a
/// memory limit, and a note names what does not fit.
#[derive(Debug)]
pub struct Outputs {
    fold: Fold,
    targets: BTreeMap<OutputTarget, TargetOutputs>,
    memory: usize,
}

#[derive(Debug, Default)]
struct TargetOutputs {
    items: Vec<Value>,
    /// Estimate of the memory that `items` take, bytes.
    weight: usize,
    /// Whether something did not fit, so that the last item is a note about it.
    full: bool,
}

impl Default for Outputs {
    fn default() -> Self {
        Self::new(StreamStyle::default())
    }
}

impl Outputs {
    pub fn new(style: StreamStyle) -> Self {
        Self { fold: Fold::new(style), targets: BTreeMap::new(), memory: DEFAULT_MEMORY }
    }

    /// Sets the memory that the outputs of one target may take, in bytes.
    pub fn with_memory(self, memory: usize) -> Self {
        Self { memory, ..self }
    }

    /// An execution starts: outputs, a pending clear and display ids of the target are forgotten.
    pub fn start(&mut self, target: OutputTarget) {
        self.fold.start(target);
        self.targets.insert(target, TargetOutputs::default());
    }

    /// Takes in one iopub message, as [`Fold::apply`]. Returns the targets whose outputs it changed.
    pub fn apply(&mut self, target: OutputTarget, msg_type: &str, content: &[u8]) -> BTreeSet<OutputTarget> {
        let mut touched = BTreeSet::new();
        for change in self.fold.apply(target, msg_type, content) {
            self.change(change, &mut touched);
        }
        touched
    }

    /// The targets that were started or have outputs.
    pub fn targets(&self) -> impl Iterator<Item = OutputTarget> + '_ {
        self.targets.keys().copied()
    }

    pub fn len(&self, target: OutputTarget) -> usize {
        self.outputs(target).len()
    }

    pub fn is_empty(&self, target: OutputTarget) -> bool {
        self.len(target) == 0
    }

    /// The outputs as nbformat objects. The text of a stream is one string, and MIME values are what the kernel sent;
    /// [`repair_output`](super::repair_output) makes them valid for a file.
    pub fn outputs(&self, target: OutputTarget) -> &[Value] {
        self.targets.get(&target).map(|held| held.items.as_slice()).unwrap_or_default()
    }

    /// The outputs of a cell whose execution has ended. They stay in memory only if a display id can still change them.
    pub fn finish(&mut self, target: OutputTarget) -> Vec<Value> {
        if self.fold.has_displays(target) {
            return self.outputs(target).to_vec();
        }
        self.fold.forget(target);
        self.targets.remove(&target).unwrap_or_default().items
    }

    fn change(&mut self, change: Change, touched: &mut BTreeSet<OutputTarget>) {
        let memory = self.memory;
        match change {
            Change::Append { target, output, .. } => {
                self.targets.entry(target).or_default().append(output, memory);
                touched.insert(target);
            }
            Change::Stream { target, index, keep, text, .. } => {
                self.targets.entry(target).or_default().edit_stream(index, keep.bytes, &text, memory);
                touched.insert(target);
            }
            Change::Update { places, data, metadata } => {
                for Place { target, index, .. } in places {
                    self.targets.entry(target).or_default().update(index, &data, &metadata, memory);
                    touched.insert(target);
                }
            }
            Change::Clear { target } => {
                self.targets.insert(target, TargetOutputs::default());
                touched.insert(target);
            }
        }
    }
}

impl TargetOutputs {
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

    /// Whether `more` bytes fit. The first refusal appends a note, and nothing is taken after it, so that what is there is the beginning
    /// of what came, without gaps.
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

/// Estimate of the memory that a value takes, in bytes.
pub(super) fn weight(value: &Value) -> usize {
    /// Overhead of the allocator and of a map's table.
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
#[path = "outputs_tests.rs"]
mod tests;
