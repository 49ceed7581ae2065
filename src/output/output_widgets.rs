//! Output widgets (`ipywidgets.Output`, used as `with out:`): which of them captures the outputs of which execution.
//!
//! The kernel leaves it to its front end to put outputs into an Output widget. By a comm message the widget names the execution whose
//! outputs it wants (`msg_id`), and by an empty `msg_id` it ends that. `run` and `serve` both act as that front end: `run` keeps what
//! is captured in the widget's state, `serve` shows it in the cell that displays the widget.

use super::MAX_ID;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Number of an Output widget in its kernel's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WidgetId(pub u32);

/// The Output widgets of one kernel.
#[derive(Debug, Serialize, Deserialize)]
pub struct OutputWidgets {
    /// By comm id.
    widgets: BTreeMap<String, Capture>,
    /// The widgets that capture an execution, by its `msg_id`; the last one gets the outputs.
    captures: BTreeMap<String, Vec<WidgetId>>,
    /// Length of all lists in `captures`.
    capture_count: usize,
    next_id: u32,
    /// Most widgets, and most captures: a hostile kernel can open any number. What others would capture is treated as the cell's own.
    limit: usize,
    /// Whether a widget or a capture was refused because of the limit.
    #[serde(skip)]
    has_refused: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Capture {
    id: WidgetId,
    /// The executions that it captures, as `msg_id`s, oldest first.
    executions: Vec<String>,
}

impl OutputWidgets {
    pub fn new(limit: usize) -> Self {
        let (widgets, captures) = Default::default();
        Self { widgets, captures, capture_count: 0, next_id: 0, limit, has_refused: false }
    }

    pub fn is_empty(&self) -> bool {
        self.widgets.is_empty()
    }

    /// The Output widget with this comm id.
    pub fn get(&self, comm_id: &str) -> Option<WidgetId> {
        self.widgets.get(comm_id).map(|capture| capture.id)
    }

    pub fn comm_ids(&self) -> Vec<String> {
        self.widgets.keys().cloned().collect()
    }

    /// The widget that gets the outputs of an execution.
    pub fn target_of(&self, msg_id: &str) -> Option<WidgetId> {
        self.captures.get(msg_id)?.last().copied()
    }

    /// Takes in the content of a `comm_open` or `comm_msg`.
    pub fn update(&mut self, msg_type: &str, content: &Value) {
        let Some(comm_id) = content["comm_id"].as_str().filter(|id| id.len() <= MAX_ID) else { return };
        if msg_type == "comm_open" && is_output_widget(content) {
            self.open(comm_id);
        }
        let msg_id = content["data"]["state"]["msg_id"].as_str().filter(|id| id.len() <= MAX_ID);
        if let Some(msg_id) = msg_id {
            self.capture(comm_id, msg_id);
        }
    }

    /// Whether a widget or a capture was refused because of the limit.
    pub fn has_refused(&self) -> bool {
        self.has_refused
    }

    fn open(&mut self, comm_id: &str) {
        if self.widgets.contains_key(comm_id) {
            return;
        }
        self.has_refused |= self.widgets.len() >= self.limit;
        if self.widgets.len() < self.limit {
            let id = WidgetId(self.next_id);
            // Below the bit by which `OutputTarget::code` marks widgets.
            self.next_id = (self.next_id + 1) % (1 << 31);
            self.widgets.insert(comm_id.to_owned(), Capture { id, executions: Vec::new() });
        }
    }

    /// The widget begins to capture an execution; an empty `msg_id` ends the last capture.
    fn capture(&mut self, comm_id: &str, msg_id: &str) {
        let Some(capture) = self.widgets.get_mut(comm_id) else { return };
        if !msg_id.is_empty() {
            self.has_refused |= self.capture_count >= self.limit;
            if self.capture_count < self.limit {
                capture.executions.push(msg_id.to_owned());
                self.captures.entry(msg_id.to_owned()).or_default().push(capture.id);
                self.capture_count += 1;
            }
        } else if let Some(ended) = capture.executions.pop() {
            let id = capture.id;
            self.end_capture(id, &ended);
        }
    }

    fn end_capture(&mut self, id: WidgetId, msg_id: &str) {
        let Some(stack) = self.captures.get_mut(msg_id) else { return };
        if let Some(at) = stack.iter().rposition(|other| *other == id) {
            stack.remove(at);
            self.capture_count -= 1;
        }
        if stack.is_empty() {
            self.captures.remove(msg_id);
        }
    }

    /// The widget was closed. Returns its id if it was an Output widget.
    pub fn close(&mut self, comm_id: &str) -> Option<WidgetId> {
        let Capture { id, executions } = self.widgets.remove(comm_id)?;
        executions.iter().for_each(|msg_id| self.end_capture(id, msg_id));
        Some(id)
    }
}

/// Whether a `comm_open` opens an Output widget.
pub(super) fn is_output_widget(content: &Value) -> bool {
    let state = &content["data"]["state"];
    content["target_name"] == "jupyter.widget"
        && state["_model_module"] == "@jupyter-widgets/output"
        && state["_model_name"] == "OutputModel"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn open(widgets: &mut OutputWidgets, comm_id: &str) {
        let state = json!({"_model_module": "@jupyter-widgets/output", "_model_name": "OutputModel"});
        widgets.update("comm_open", &json!({"comm_id": comm_id, "target_name": "jupyter.widget", "data": {"state": state}}));
    }

    fn capture(widgets: &mut OutputWidgets, comm_id: &str, msg_id: &str) {
        widgets.update("comm_msg", &json!({"comm_id": comm_id, "data": {"state": {"msg_id": msg_id}}}));
    }

    #[test]
    fn innermost_capture_gets_the_outputs() {
        let mut widgets = OutputWidgets::new(9);
        open(&mut widgets, "a");
        open(&mut widgets, "b");
        let (a, b) = (widgets.get("a"), widgets.get("b"));
        assert!(a != b && a.is_some());
        capture(&mut widgets, "a", "run");
        capture(&mut widgets, "b", "run");
        assert_eq!(widgets.target_of("run"), b);
        capture(&mut widgets, "b", "");
        assert_eq!((widgets.target_of("run"), widgets.target_of("other")), (a, None));
        assert_eq!((widgets.close("a"), widgets.target_of("run")), (a, None));
        assert_eq!(widgets.capture_count, 0);
    }

    #[test]
    fn widgets_and_captures_are_limited() {
        let mut widgets = OutputWidgets::new(3);
        for number in 0..9 {
            open(&mut widgets, &format!("w{number}"));
            capture(&mut widgets, "w0", &format!("run {number}"));
        }
        assert_eq!((widgets.widgets.len(), widgets.captures.len(), widgets.has_refused()), (3, 3, true));
        assert_eq!(widgets.target_of("run 0"), widgets.get("w0"), "what it has, it keeps");
        open(&mut widgets, &"i".repeat(MAX_ID + 1));
        capture(&mut widgets, "not open", "run 0");
        assert_eq!(widgets.target_of("run 0"), widgets.get("w0"));
    }
}
