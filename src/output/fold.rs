//! The state of all outputs, and how each message type changes it.

use super::content::{self, Reading};
use super::terminal::Terminal;
use super::{CellKey, Change, StreamStyle};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};

/// Copies of one display id that are kept up to date. A hostile loop that shows the same id for ever would else cost
/// the square of its messages.
const MAX_COPIES: usize = 1000;

/// The outputs of all cells, built from messages. See the [module](super) text.
#[derive(Debug, Default)]
pub struct Outputs {
    style: StreamStyle,
    cells: BTreeMap<CellKey, CellOutputs>,
    /// Where each display id is shown.
    displays: HashMap<String, Vec<(CellKey, usize)>>,
}

#[derive(Debug, Default)]
struct CellOutputs {
    items: Vec<Item>,
    /// `clear_output(wait=True)` was asked for: the next appended output takes the place of all.
    clear_pending: bool,
    /// Display ids that have a copy here, so that clearing need not look at all ids.
    display_ids: Vec<String>,
}

#[derive(Debug)]
enum Item {
    /// The stream that may still grow; only ever the last item.
    Open {
        name: String,
        terminal: Box<Terminal>,
    },
    Done(Value),
}

impl Item {
    fn value(&self) -> Value {
        match self {
            Self::Open { name, terminal } => stream_output(name, terminal.text()),
            Self::Done(value) => value.clone(),
        }
    }

    fn into_value(self) -> Value {
        match self {
            Self::Open { name, terminal } => stream_output(&name, terminal.into_text()),
            Self::Done(value) => value,
        }
    }
}

fn stream_output(name: &str, text: String) -> Value {
    json!({"output_type": "stream", "name": name, "text": text})
}

impl Outputs {
    /// No outputs yet.
    pub fn new(style: StreamStyle) -> Self {
        Self { style, ..Self::default() }
    }

    /// An execution of the cell starts: its outputs go, a pending clear and its display ids are forgotten.
    pub fn start(&mut self, cell: CellKey) {
        self.forget_displays(cell);
        self.cells.insert(cell, CellOutputs::default());
    }

    /// Takes in one iopub message of the cell. `content` is the raw JSON of the message's content. Types that make no
    /// output (status, execute_input, comms, ...) change nothing, and their content is not read.
    pub fn apply(&mut self, cell: CellKey, msg_type: &str, content: &[u8]) -> Vec<Change> {
        let mut changes = Vec::new();
        match content::read(msg_type, content) {
            Reading::Nothing => {}
            Reading::Stream { name, text } => self.stream(cell, name, &text, &mut changes),
            Reading::Output { output, display_id } => self.display(cell, output, display_id, &mut changes),
            Reading::Update { data, metadata, display_id } => {
                self.update(&display_id, &data, &metadata, &mut changes);
            }
            Reading::Clear { wait } => self.clear(cell, wait, &mut changes),
        }
        changes
    }

    /// The cells that have been started or have outputs, in the order of their keys.
    pub fn cells(&self) -> impl Iterator<Item = CellKey> + '_ {
        self.cells.keys().copied()
    }

    /// Number of outputs of a cell.
    pub fn len(&self, cell: CellKey) -> usize {
        self.cells.get(&cell).map_or(0, |outputs| outputs.items.len())
    }

    /// Whether a cell has no outputs.
    pub fn is_empty(&self, cell: CellKey) -> bool {
        self.len(cell) == 0
    }

    /// The outputs of a cell as nbformat objects. Streams have their text as one string, and MIME values are what
    /// the kernel sent; [`repair_output`](super::repair_output) makes them valid for a file.
    pub fn outputs(&self, cell: CellKey) -> Vec<Value> {
        let items = self.cells.get(&cell).map(|outputs| outputs.items.as_slice()).unwrap_or_default();
        items.iter().map(Item::value).collect()
    }

    /// One output of a cell.
    pub fn output(&self, cell: CellKey, index: usize) -> Option<Value> {
        self.cells.get(&cell)?.items.get(index).map(Item::value)
    }

    /// The text of a stream output without its first `keep` bytes, for [`Change::Stream`]. `None` where there is no
    /// such stream that can still grow.
    pub fn stream_tail(&self, cell: CellKey, index: usize, keep: usize) -> Option<String> {
        match self.cells.get(&cell)?.items.get(index)? {
            Item::Open { terminal, .. } => Some(terminal.text_from(keep)),
            Item::Done(_) => None,
        }
    }

    /// Takes the outputs of a cell out, without a copy. The cell is as if never started.
    pub fn take(&mut self, cell: CellKey) -> Vec<Value> {
        self.forget_displays(cell);
        let outputs = self.cells.remove(&cell).unwrap_or_default();
        outputs.items.into_iter().map(Item::into_value).collect()
    }

    fn stream(&mut self, cell: CellKey, name: String, text: &str, changes: &mut Vec<Change>) {
        if self.style == StreamStyle::Nbclient {
            return self.push(cell, Item::Done(stream_output(&name, text.to_owned())), changes);
        }
        self.clear_if_pending(cell, changes);
        if text.is_empty() {
            return;
        }
        let items = &mut self.cells.entry(cell).or_default().items;
        let index = items.len().saturating_sub(1);
        if let Some(Item::Open { name: open, terminal }) = items.last_mut()
            && *open == name
        {
            let keep = terminal.write(text);
            changes.push(Change::Stream { cell, index, keep });
            return;
        }
        let mut terminal = Box::new(Terminal::new());
        terminal.write(text);
        self.push(cell, Item::Open { name, terminal }, changes);
    }

    fn display(&mut self, cell: CellKey, output: Value, display_id: Option<String>, changes: &mut Vec<Change>) {
        let Some(id) = display_id else { return self.push(cell, Item::Done(output), changes) };
        // Earlier copies show the newest state too; the cell's own go if a clear is pending.
        self.clear_if_pending(cell, changes);
        let part = |key| output.get(key).cloned().unwrap_or_else(|| Value::Object(Map::new()));
        if self.displays.contains_key(&id) {
            self.update(&id, &part("data"), &part("metadata"), changes);
        }
        self.push(cell, Item::Done(output), changes);
        let outputs = self.cells.entry(cell).or_default();
        let copies = self.displays.entry(id.clone()).or_default();
        if copies.len() < MAX_COPIES {
            if !copies.iter().any(|(holder, _)| *holder == cell) {
                outputs.display_ids.push(id);
            }
            copies.push((cell, outputs.items.len() - 1));
        }
    }

    fn update(&mut self, id: &str, data: &Value, metadata: &Value, changes: &mut Vec<Change>) {
        for (cell, index) in self.displays.get(id).into_iter().flatten().copied() {
            let item = self.cells.get_mut(&cell).and_then(|outputs| outputs.items.get_mut(index));
            if let Some(Item::Done(Value::Object(output))) = item {
                output.insert("data".to_owned(), data.clone());
                output.insert("metadata".to_owned(), metadata.clone());
                changes.push(Change::Update { cell, index });
            }
        }
    }

    fn push(&mut self, cell: CellKey, item: Item, changes: &mut Vec<Change>) {
        self.clear_if_pending(cell, changes);
        let items = &mut self.cells.entry(cell).or_default().items;
        // A stream that something follows is finished: its lines need no cursor any more.
        if matches!(items.last(), Some(Item::Open { .. }))
            && let Some(open) = items.pop()
        {
            items.push(Item::Done(open.into_value()));
        }
        items.push(item);
        changes.push(Change::Append { cell, index: items.len() - 1 });
    }

    fn clear(&mut self, cell: CellKey, wait: bool, changes: &mut Vec<Change>) {
        if wait {
            self.cells.entry(cell).or_default().clear_pending = true;
        } else {
            self.clear_now(cell, changes);
        }
    }

    fn clear_if_pending(&mut self, cell: CellKey, changes: &mut Vec<Change>) {
        if self.cells.get(&cell).is_some_and(|outputs| outputs.clear_pending) {
            self.clear_now(cell, changes);
        }
    }

    fn clear_now(&mut self, cell: CellKey, changes: &mut Vec<Change>) {
        self.forget_displays(cell);
        let outputs = self.cells.entry(cell).or_default();
        outputs.clear_pending = false;
        if !outputs.items.is_empty() {
            outputs.items.clear();
            changes.push(Change::Clear { cell });
        }
    }

    fn forget_displays(&mut self, cell: CellKey) {
        let Some(outputs) = self.cells.get_mut(&cell) else { return };
        for id in std::mem::take(&mut outputs.display_ids) {
            let Some(copies) = self.displays.get_mut(&id) else { continue };
            copies.retain(|(holder, _)| *holder != cell);
            if copies.is_empty() {
                self.displays.remove(&id);
            }
        }
    }
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
