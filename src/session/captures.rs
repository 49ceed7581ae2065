//! Output widgets (`with out:`), as far as a session without a browser can have them: what one catches is shown in the cell that shows
//! the widget.
//!
//! The kernel leaves it to its front end to put outputs into such a widget: it names the run whose outputs it wants, by a `comm`
//! message. What is caught is folded as the outputs of a cell of its own, whose places are then places among the outputs of the cell that
//! shows the widget; before any does, of the one that runs. A place that is cleared shows an empty text until something else is put there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::core::Core;
use super::messages::rest_of_stream;
use super::piece::EventBody;
use super::run::Now;
use crate::output::{CellKey, Change};
use crate::wire::Message;

/// Output widgets of one kernel that are followed. What others would catch is shown where it is made.
const MOST: usize = 200;
/// Places of one widget that are known, and can be cleared.
const PLACES: usize = 256;
/// Where their numbers in the fold begin: no cell's is as large.
const FIRST: u32 = 1 << 31;
/// What shows a widget.
const VIEW: &str = "application/vnd.jupyter.widget-view+json";

/// The Output widgets of a kernel.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Captures {
    widgets: BTreeMap<String, Capture>,
    /// Runs whose outputs are caught, and the widget that does; the last one gets them.
    catching: Vec<(String, String)>,
    made: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Capture {
    /// Its outputs, in the fold.
    key: CellKey,
    /// The cell that shows it.
    shown_in: Option<u32>,
    /// Where its outputs are: in which cell, and there by their order in the widget.
    cell: Option<u32>,
    places: Vec<usize>,
    /// The last of them, where there are more than are known.
    last: Option<(usize, usize)>,
}

impl Capture {
    fn place(&self, at: usize) -> Option<usize> {
        let last = self.last.filter(|(last, _)| *last == at).map(|(_, place)| place);
        self.places.get(at).copied().or(last)
    }

    fn is_in(&self, cell: u32) -> bool {
        self.shown_in == Some(cell) || self.cell == Some(cell)
    }

    fn leave(&mut self) {
        (self.cell, self.last) = (None, None);
        self.places.clear();
    }
}

impl Captures {
    /// Where in the fold the outputs of a run go.
    fn catcher(&self, run: &str) -> Option<CellKey> {
        let (_, id) = self.catching.iter().rev().find(|(caught, _)| caught == run)?;
        self.widgets.get(id).map(|capture| capture.key)
    }

    fn by_key(&mut self, key: CellKey) -> Option<&mut Capture> {
        if key.0 < FIRST { None } else { self.widgets.values_mut().find(|capture| capture.key == key) }
    }

    /// Whether outputs of the cell can still be changed by one.
    pub fn are_in(&self, cell: u32) -> bool {
        self.widgets.values().any(|capture| capture.is_in(cell))
    }

    fn open(&mut self, id: &str) {
        if self.widgets.len() < MOST && !self.widgets.contains_key(id) {
            let key = CellKey(FIRST | self.made);
            self.made = self.made.wrapping_add(1) % FIRST;
            let capture = Capture { key, shown_in: None, cell: None, places: Vec::new(), last: None };
            self.widgets.insert(id.to_owned(), capture);
        }
    }

    /// A widget begins to catch what a run says, or (an empty id) ends that.
    fn catch(&mut self, id: &str, run: &str) {
        if !run.is_empty() && self.catching.len() < MOST {
            self.catching.push((run.to_owned(), id.to_owned()));
        } else if let Some(at) = self.catching.iter().rposition(|(_, widget)| widget == id) {
            self.catching.remove(at);
        }
    }
}

/// Whether a widget that is opened is an Output widget.
fn is_output_widget(content: &Value) -> bool {
    let state = &content["data"]["state"];
    content["target_name"] == "jupyter.widget"
        && state["_model_module"] == "@jupyter-widgets/output"
        && state["_model_name"] == "OutputModel"
}

impl Core {
    /// Takes in what a widget's own message says of catching outputs.
    pub(super) fn capture_comm(&mut self, msg_type: &str, content: &Value) {
        let Some(id) = content["comm_id"].as_str() else { return };
        match msg_type {
            "comm_open" if is_output_widget(content) => self.captures.open(id),
            "comm_close" => return self.end_capture(id),
            _ => {}
        }
        if let Some(run) = content["data"]["state"]["msg_id"].as_str().filter(|_| self.captures.widgets.contains_key(id)) {
            self.captures.catch(id, run);
        }
    }

    /// Where in the fold a message of a cell belongs. Also notes which cell shows a widget.
    pub(super) fn folded_as(&mut self, number: u32, msg_type: &str, message: &Message) -> CellKey {
        if self.captures.widgets.is_empty() {
            return CellKey(number);
        }
        let catcher = self.captures.catcher(&message.parent().msg_id);
        if matches!(msg_type, "display_data" | "execute_result") {
            let cell = catcher.and_then(|key| self.captures.by_key(key)?.cell).unwrap_or(number);
            self.note_view(cell, message);
        }
        catcher.unwrap_or(CellKey(number))
    }

    fn note_view(&mut self, cell: u32, message: &Message) {
        // It is read once more only if it may show a widget.
        if !message.content.windows(VIEW.len()).any(|text| text == VIEW.as_bytes()) {
            return;
        }
        let content = message.content_value();
        let Some(capture) = content["data"][VIEW]["model_id"].as_str().and_then(|id| self.captures.widgets.get_mut(id))
        else {
            return;
        };
        let before = capture.shown_in.replace(cell);
        if capture.cell.is_some_and(|other| other != cell) {
            // What it has caught elsewhere stays there.
            capture.leave();
            self.fold.start(capture.key);
        }
        before.into_iter().for_each(|cell| self.settle(cell));
    }

    /// Writes down what has changed in a widget. Gives back what is about no widget.
    pub(super) fn write_captured(&mut self, now: Now, from: u32, change: Change) -> Option<Change> {
        let key = match &change {
            Change::Append { cell, .. } | Change::Stream { cell, .. } | Change::Clear { cell } => *cell,
            Change::Update { .. } => return Some(change),
        };
        let Some(capture) = self.captures.by_key(key) else { return Some(change) };
        let cell = *capture.cell.get_or_insert(capture.shown_in.unwrap_or(from));
        match change {
            Change::Append { index: at, output, .. } => self.put_captured(now, (from, cell), key, at, output),
            Change::Stream { index: at, name, keep, text, grows, .. } => {
                if let Some(index) = capture.place(at) {
                    self.write_text(now, cell, EventBody::Stream { index, name, keep, text, grows });
                }
            }
            Change::Clear { .. } => {
                for index in capture.places.clone() {
                    let output = json!({"output_type": "stream", "name": "stdout", "text": ""});
                    self.event(now, Some(cell), EventBody::Update { index, output });
                }
            }
            Change::Update { .. } => {}
        }
        None
    }

    /// Puts an output into a place that was cleared, or into a new one.
    fn put_captured(&mut self, now: Now, (from, cell): (u32, u32), key: CellKey, at: usize, mut output: Value) {
        let rest = rest_of_stream(&mut output);
        let place = self.captures.by_key(key).and_then(|capture| capture.place(at));
        let index = match place {
            Some(index) => {
                self.event(now, Some(cell), EventBody::Update { index, output });
                index
            }
            None => {
                let (index, changes) = self.fold.reserve(CellKey(cell));
                // A clearing that the cell has asked for: what was there goes, also what was caught.
                changes.into_iter().for_each(|change| self.write_change(now, from, change));
                if let Some(capture) = self.captures.by_key(key) {
                    capture.cell = Some(cell);
                    if capture.places.len() == at && at < PLACES {
                        capture.places.push(index);
                    } else {
                        capture.last = Some((at, index));
                    }
                }
                self.event(now, Some(cell), EventBody::Append { index, output });
                index
            }
        };
        if let Some((name, keep, text)) = rest {
            self.write_text(now, cell, EventBody::Stream { index, name, keep, text, grows: true });
        }
    }

    /// A place in the fold as a cell's. `None`: it is in a widget, and shown nowhere any more.
    pub(super) fn shown_place(&mut self, cell: CellKey, index: usize) -> Option<(u32, usize)> {
        if cell.0 < FIRST {
            return Some((cell.0, index));
        }
        let capture = self.captures.by_key(cell)?;
        Some((capture.cell?, capture.place(index)?))
    }

    /// The outputs of a cell are gone, those of widgets among them.
    pub(super) fn captures_leave(&mut self, cell: u32) {
        for capture in self.captures.widgets.values_mut().filter(|capture| capture.is_in(cell)) {
            if capture.cell == Some(cell) {
                capture.leave();
                self.fold.start(capture.key);
            }
            capture.shown_in.take_if(|shown_in| *shown_in == cell);
        }
    }

    fn end_capture(&mut self, id: &str) {
        let Some(capture) = self.captures.widgets.remove(id) else { return };
        self.captures.catching.retain(|(_, widget)| widget != id);
        self.fold.forget(capture.key);
        [capture.cell, capture.shown_in].into_iter().flatten().for_each(|cell| self.settle(cell));
    }

    /// The kernel has ended, and with it all widgets. What they have caught stays where it is.
    pub(super) fn end_captures(&mut self) {
        let ids: Vec<String> = self.captures.widgets.keys().cloned().collect();
        ids.iter().for_each(|id| self.end_capture(id));
    }
}
