//! How each message type changes the outputs. Holds no outputs: only what later messages need to know of earlier ones.

use super::content::{self, Reading};
use super::terminal::{Edit, Terminal};
use super::{CellKey, Change, Place, StreamStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Copies of one display id that are kept up to date. A hostile loop that shows the same id for ever would else cost
/// the square of its messages.
const MAX_COPIES: usize = 1000;

/// Turns messages into changes of outputs. See the [module](super) text.
///
/// It can be written down cell by cell ([`Fold::folded`]), for another to go on from there ([`Fold::restore`]).
#[derive(Debug, Default)]
pub struct Fold {
    style: StreamStyle,
    cells: BTreeMap<CellKey, CellState>,
    /// Where each display id is shown.
    displays: BTreeMap<String, Vec<Place>>,
    /// Cells that are not as they were when that was last asked.
    changed: BTreeSet<CellKey>,
}

/// What has to be known of a cell to go on with it, to be written down.
#[derive(Debug, Serialize)]
pub struct FoldedCell<'a> {
    state: &'a CellState,
    /// Where it shows display ids.
    places: Vec<(&'a str, &'a Place)>,
}

/// A [`FoldedCell`] as it was written down.
#[derive(Debug, Deserialize)]
pub struct StoredCell {
    state: CellState,
    places: Vec<(String, Place)>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct CellState {
    /// Number of outputs.
    len: usize,
    /// The stream that may still grow; only ever the last output.
    open: Option<Open>,
    /// `clear_output(wait=True)` was asked for: the next appended output takes the place of all.
    clear_pending: bool,
    /// Display ids that have a copy here, so that clearing need not look at all ids.
    #[serde(skip)]
    display_ids: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Open {
    name: String,
    terminal: Box<Terminal>,
}

fn stream_output(name: &str, text: &str) -> Value {
    json!({"output_type": "stream", "name": name, "text": text})
}

impl Fold {
    /// No outputs yet.
    pub fn new(style: StreamStyle) -> Self {
        Self { style, ..Self::default() }
    }

    /// An execution of the cell starts: its outputs go, a pending clear and its display ids are forgotten.
    pub fn start(&mut self, cell: CellKey) {
        self.forget_displays(cell);
        *self.cell(cell) = CellState::default();
    }

    /// Takes in one iopub message of the cell. `content` is the raw JSON of the message's content. Types that make no
    /// output (status, execute_input, comms, ...) change nothing, and their content is not read.
    pub fn apply(&mut self, cell: CellKey, msg_type: &str, content: &[u8]) -> Vec<Change> {
        let mut changes = Vec::new();
        match content::read(msg_type, content) {
            Reading::Nothing => {}
            Reading::Stream { name, text } => self.stream(cell, name, &text, &mut changes),
            Reading::Output { output, display_id } => self.display(cell, output, display_id, &mut changes),
            // nbclient drops them.
            Reading::Pages(_) if self.style == StreamStyle::Nbclient => {}
            Reading::Pages(pages) => pages.into_iter().for_each(|page| self.push(cell, page, &mut changes)),
            Reading::Update { data, metadata, display_id } => self.update(&display_id, data, metadata, &mut changes),
            Reading::Clear { wait } => self.clear(cell, wait, &mut changes),
        }
        changes
    }

    /// Whether a later message can still change outputs of this cell by a display id.
    pub fn has_displays(&self, cell: CellKey) -> bool {
        self.cells.get(&cell).is_some_and(|state| !state.display_ids.is_empty())
    }

    /// Forgets a cell, as if it had never been started.
    pub fn forget(&mut self, cell: CellKey) {
        self.forget_displays(cell);
        self.cells.remove(&cell);
        self.changed.insert(cell);
    }

    /// The cells that have changed since this was last asked.
    pub fn take_changed(&mut self) -> BTreeSet<CellKey> {
        std::mem::take(&mut self.changed)
    }

    /// What is to be written down of a cell. `None` if it has no outputs, and nothing is to be known of it.
    pub fn folded(&self, cell: CellKey) -> Option<FoldedCell<'_>> {
        let state = self.cells.get(&cell).filter(|state| state.len > 0 || state.clear_pending)?;
        let places = state.display_ids.iter().flat_map(|id| {
            let copies = self.displays.get(id).into_iter().flatten();
            copies.filter(|copy| copy.cell == cell).map(|copy| (id.as_str(), copy))
        });
        Some(FoldedCell { state, places: places.collect() })
    }

    /// Goes on with a cell as it was written down.
    pub fn restore(&mut self, cell: CellKey, stored: StoredCell) {
        let StoredCell { mut state, places } = stored;
        for (id, place) in places {
            if state.display_ids.last() != Some(&id) {
                state.display_ids.push(id.clone());
            }
            self.displays.entry(id).or_default().push(Place { cell, ..place });
        }
        self.cells.insert(cell, state);
    }

    fn cell(&mut self, cell: CellKey) -> &mut CellState {
        self.changed.insert(cell);
        self.cells.entry(cell).or_default()
    }

    /// Carries out a clearing that waits for the cell's next output.
    pub fn clear_pending(&mut self, cell: CellKey) -> Vec<Change> {
        let mut changes = Vec::new();
        self.clear_if_pending(cell, &mut changes);
        changes
    }

    /// Gives away the place at the end of the cell's list, for an output that somebody else follows. What waits to be cleared there is
    /// to be cleared before.
    pub fn reserve(&mut self, cell: CellKey) -> usize {
        let state = self.cell(cell);
        state.open = None;
        state.len += 1;
        state.len - 1
    }

    fn stream(&mut self, cell: CellKey, name: String, text: &str, changes: &mut Vec<Change>) {
        if self.style == StreamStyle::Nbclient {
            return self.push(cell, stream_output(&name, text), changes);
        }
        self.clear_if_pending(cell, changes);
        if text.is_empty() {
            return;
        }
        let state = self.cell(cell);
        if let Some(open) = state.open.as_mut().filter(|open| open.name == name) {
            let before = open.terminal.len();
            let Edit { keep, tail } = open.terminal.write(text);
            let (index, grows) = (state.len - 1, keep == before);
            changes.push(Change::Stream { cell, index, name, keep, text: tail, grows });
            return;
        }
        let mut terminal = Box::new(Terminal::new());
        let shown = terminal.write(text).tail;
        self.push(cell, stream_output(&name, &shown), changes);
        self.cell(cell).open = Some(Open { name, terminal });
    }

    fn display(&mut self, cell: CellKey, output: Value, display_id: Option<String>, changes: &mut Vec<Change>) {
        let Some(id) = display_id else { return self.push(cell, output, changes) };
        // Earlier copies show the newest state too; the cell's own go if a clear is pending.
        self.clear_if_pending(cell, changes);
        if self.displays.contains_key(&id) {
            let part = |key| output.get(key).cloned().unwrap_or_else(|| Value::Object(Map::new()));
            self.update(&id, part("data"), part("metadata"), changes);
        }
        let is_result = output.get("output_type").is_some_and(|kind| kind == "execute_result");
        let execution_count = output.get("execution_count").and_then(Value::as_u64);
        self.push(cell, output, changes);
        let state = self.cells.entry(cell).or_default();
        let copies = self.displays.entry(id.clone()).or_default();
        if copies.len() < MAX_COPIES {
            if !copies.iter().any(|copy| copy.cell == cell) {
                state.display_ids.push(id);
            }
            copies.push(Place { cell, index: state.len - 1, is_result, execution_count });
        }
    }

    fn update(&mut self, id: &str, data: Value, metadata: Value, changes: &mut Vec<Change>) {
        if let Some(places) = self.displays.get(id) {
            changes.push(Change::Update { places: places.clone(), data, metadata });
        }
    }

    fn push(&mut self, cell: CellKey, output: Value, changes: &mut Vec<Change>) {
        self.clear_if_pending(cell, changes);
        let state = self.cell(cell);
        // A stream that something follows is finished: its lines need no cursor any more.
        state.open = None;
        state.len += 1;
        changes.push(Change::Append { cell, index: state.len - 1, output });
    }

    fn clear(&mut self, cell: CellKey, wait: bool, changes: &mut Vec<Change>) {
        if wait {
            self.cell(cell).clear_pending = true;
        } else {
            self.clear_now(cell, changes);
        }
    }

    fn clear_if_pending(&mut self, cell: CellKey, changes: &mut Vec<Change>) {
        if self.cells.get(&cell).is_some_and(|state| state.clear_pending) {
            self.clear_now(cell, changes);
        }
    }

    fn clear_now(&mut self, cell: CellKey, changes: &mut Vec<Change>) {
        self.forget_displays(cell);
        let state = self.cell(cell);
        let had_any = std::mem::take(state).len > 0;
        if had_any {
            changes.push(Change::Clear { cell });
        }
    }

    fn forget_displays(&mut self, cell: CellKey) {
        let Some(state) = self.cells.get_mut(&cell) else { return };
        for id in std::mem::take(&mut state.display_ids) {
            let Some(copies) = self.displays.get_mut(&id) else { continue };
            copies.retain(|copy| copy.cell != cell);
            if copies.is_empty() {
                self.displays.remove(&id);
            }
        }
    }
}
