//! Widgets in a run without a browser: their state for the notebook's metadata, with what Output widgets have captured.
//!
//! The kernel leaves it to its front end to put outputs into an Output widget ([`OutputWidgets`]). A program that runs a notebook must
//! act as that front end, as nbclient does: it keeps the captured outputs in the widget's state and tells the kernel of them.

use super::output_widgets::is_output_widget;
use super::outputs::weight;
use super::{OutputTarget, OutputWidgets, Outputs, StreamStyle, WidgetId};
use crate::wire::Message;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Default memory that the state of all widgets may take, in bytes.
const DEFAULT_MEMORY: usize = 256 << 20;
/// Bytes that a model counts besides its state, which also bounds the number of models.
const MODEL: usize = 4 << 10;
/// Most Output widgets of a run. What others would capture becomes output of the cell.
const MAX_OUTPUT_WIDGETS: usize = 10_000;

/// All widgets of a run.
#[derive(Debug)]
pub struct Widgets {
    style: StreamStyle,
    /// By comm id.
    models: BTreeMap<String, Model>,
    captures: OutputWidgets,
    /// Comm ids of Output widgets.
    output_models: BTreeMap<WidgetId, String>,
    /// Comm ids of Output widgets of whose outputs the kernel does not know yet.
    unsynced: BTreeSet<String>,
    memory: usize,
    weight: usize,
    /// Whether some state was left out.
    is_truncated: bool,
}

#[derive(Debug, Default)]
struct Model {
    state: Map<String, Value>,
    /// Binary parts of the state: the path of each and its entry in the file.
    buffers: Vec<(Value, Value)>,
    output: Option<OutputModel>,
    weight: usize,
}

/// The outputs of an Output widget.
#[derive(Debug)]
struct OutputModel {
    target: OutputTarget,
    /// Outputs that the kernel itself has put in; they come before the captured ones.
    initial: Vec<Value>,
    /// Whether `clear_output(wait=True)` will also remove the initial ones.
    initial_clear_pending: bool,
    captured: Outputs,
    /// The parent header of the last output, which the kernel gets back.
    parent: Bytes,
}

/// What the kernel is to be sent: the content of a `comm_msg`, and its parent header.
#[derive(Debug, Clone, PartialEq)]
pub struct Sync {
    pub content: Value,
    /// Raw JSON.
    pub parent: Bytes,
}

impl Widgets {
    /// In the style of nbclient, widgets that were closed keep their state.
    pub fn new(style: StreamStyle) -> Self {
        let (models, output_models, unsynced) = Default::default();
        let captures = OutputWidgets::new(MAX_OUTPUT_WIDGETS);
        let (memory, weight, is_truncated) = (DEFAULT_MEMORY, 0, false);
        Self { style, models, captures, output_models, unsynced, memory, weight, is_truncated }
    }

    /// Takes in an iopub message. Returns whether it concerns a widget or was captured by one, and so is no output of the cell.
    pub fn take(&mut self, msg_type: &str, message: &Message) -> bool {
        match msg_type {
            "comm_open" | "comm_msg" => self.update(msg_type, &message.content_value(), &message.buffers),
            "comm_close" => self.close(&message.content_value()),
            "stream" | "display_data" | "execute_result" | "error" | "clear_output" => {
                return self.capture(msg_type, message);
            }
            _ => return false,
        }
        true
    }

    /// What the kernel must be sent before the next cell. It would not listen while it executes one, so once at the end is enough;
    /// nbclient sends everything again with every line.
    pub fn take_syncs(&mut self) -> Vec<Sync> {
        self.refresh();
        let unsynced = std::mem::take(&mut self.unsynced);
        let sync = |comm_id: String| {
            let model = self.models.get(&comm_id)?;
            let data = json!({"method": "update", "state": {"outputs": model.state.get("outputs")?}, "buffer_paths": []});
            let parent = model.output.as_ref()?.parent.clone();
            Some(Sync { content: json!({"comm_id": comm_id, "data": data}), parent })
        };
        unsynced.into_iter().filter_map(sync).collect()
    }

    /// Whether some state was left out because of the memory limit.
    pub fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// The notebook's `metadata.widgets`; `None` where there is no widget.
    pub fn metadata(&mut self) -> Option<Value> {
        self.refresh();
        let named = self.models.iter().filter(|(_, model)| model.state.contains_key("_model_name"));
        let state: Map<String, Value> = named.map(|(id, model)| (id.clone(), model.entry())).collect();
        let all = json!({"state": state, "version_major": 2, "version_minor": 0});
        (!self.models.is_empty()).then(|| json!({"application/vnd.jupyter.widget-state+json": all}))
    }

    fn update(&mut self, msg_type: &str, content: &Value, buffers: &[Bytes]) {
        let (Some(comm_id), Some(data)) = (content["comm_id"].as_str(), content["data"].as_object()) else { return };
        let Some(Value::Object(state)) = data.get("state") else { return };
        let more = MODEL + state.values().map(weight).sum::<usize>() + buffers.iter().map(Bytes::len).sum::<usize>() * 4 / 3;
        if self.weight + more > self.memory {
            // Half a state would show something wrong; the state from before is at least whole.
            self.is_truncated = true;
            return;
        }
        self.captures.update(msg_type, content);
        self.is_truncated |= self.captures.has_refused();
        let model = self.models.entry(comm_id.to_owned()).or_default();
        if msg_type == "comm_open"
            && is_output_widget(content)
            && let Some(widget) = self.captures.get(comm_id)
        {
            model.output = Some(OutputModel::new(OutputTarget::Widget(widget)));
            self.output_models.insert(widget, comm_id.to_owned());
        }
        model.state.extend(state.iter().map(|(key, value)| (key.clone(), value.clone())));
        model.put_buffers(data.get("buffer_paths"), buffers);
        if let (Some(output), Some(Value::Array(initial))) = (&mut model.output, state.get("outputs")) {
            output.set_initial(initial);
        }
        self.weight = self.weight - model.weight + model.measure();
    }

    fn capture(&mut self, msg_type: &str, message: &Message) -> bool {
        if self.captures.is_empty() {
            return false;
        }
        let Some(widget) = self.captures.target_of(&message.parent().msg_id) else { return false };
        let Some(comm_id) = self.output_models.get(&widget) else { return false };
        let Some(output) = self.models.get_mut(comm_id).and_then(|model| model.output.as_mut()) else { return false };
        if output.take(msg_type, message) {
            self.unsynced.insert(comm_id.clone());
        }
        true
    }

    /// Brings the state of widgets that have captured something up to date. Not with each message, which would be quadratic.
    fn refresh(&mut self) {
        for comm_id in &self.unsynced {
            let Some(model) = self.models.get_mut(comm_id) else { continue };
            let Some(outputs) = model.output.as_ref().map(OutputModel::all) else { continue };
            model.state.insert("outputs".to_owned(), Value::Array(outputs));
            self.weight = self.weight - model.weight + model.measure();
        }
    }

    fn close(&mut self, content: &Value) {
        let Some(comm_id) = content["comm_id"].as_str().filter(|_| self.style != StreamStyle::Nbclient) else { return };
        let Some(model) = self.models.remove(comm_id) else { return };
        self.weight -= model.weight;
        if let Some(widget) = self.captures.close(comm_id) {
            self.output_models.remove(&widget);
        }
    }
}

impl Model {
    fn put_buffers(&mut self, paths: Option<&Value>, buffers: &[Bytes]) {
        for (path, bytes) in paths.and_then(Value::as_array).into_iter().flatten().zip(buffers) {
            let entry = json!({"data": STANDARD.encode(bytes), "encoding": "base64", "path": path});
            match self.buffers.iter_mut().find(|(known, _)| known == path) {
                Some((_, old)) => *old = entry,
                None => self.buffers.push((path.clone(), entry)),
            }
        }
    }

    fn measure(&mut self) -> usize {
        let state: usize = self.state.values().map(weight).sum();
        self.weight = MODEL + state + self.buffers.iter().map(|(_, entry)| weight(entry)).sum::<usize>();
        self.weight
    }

    /// The model's entry in the notebook's metadata.
    fn entry(&self) -> Value {
        let named = |key: &str| self.state.get(key).cloned().unwrap_or(Value::Null);
        let mut entry = json!({
            "model_name": named("_model_name"), "model_module": named("_model_module"),
            "model_module_version": named("_model_module_version"), "state": self.state,
        });
        if !self.buffers.is_empty() {
            entry["buffers"] = self.buffers.iter().map(|(_, entry)| entry.clone()).collect();
        }
        entry
    }
}

impl OutputModel {
    fn new(target: OutputTarget) -> Self {
        let captured = Outputs::new(StreamStyle::Terminal).with_memory(DEFAULT_MEMORY / 4);
        let parent = Bytes::from_static(b"{}");
        Self { target, initial: Vec::new(), initial_clear_pending: false, captured, parent }
    }

    fn set_initial(&mut self, initial: &[Value]) {
        self.initial = initial.to_vec();
        self.captured.start(self.target);
    }

    /// Takes in an output or a clear. Returns whether that changed the outputs.
    fn take(&mut self, msg_type: &str, message: &Message) -> bool {
        self.parent = message.parent_header.clone();
        let clears = msg_type == "clear_output";
        if clears && message.content_value().get("wait").is_some_and(|wait| *wait != json!(false)) {
            self.initial_clear_pending = true;
        } else if clears || std::mem::take(&mut self.initial_clear_pending) {
            self.initial.clear();
        }
        self.captured.apply(self.target, msg_type, &message.content);
        !(clears && self.initial_clear_pending)
    }

    fn all(&self) -> Vec<Value> {
        self.initial.iter().chain(self.captured.outputs(self.target)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(parent: &str, content: &Value, buffers: &[&'static [u8]]) -> Message {
        let mut message = Message::new_request("s", "x", content);
        message.parent_header = json!({"msg_id": parent}).to_string().into();
        message.buffers = buffers.iter().map(|bytes| Bytes::from_static(bytes)).collect();
        message
    }

    fn open(widgets: &mut Widgets, id: &str) {
        let state =
            json!({"_model_module": "@jupyter-widgets/output", "_model_name": "OutputModel", "outputs": [], "msg_id": ""});
        let content = json!({"comm_id": id, "target_name": "jupyter.widget", "data": {"state": state}});
        assert!(widgets.take("comm_open", &message("run", &content, &[])));
    }

    fn set(widgets: &mut Widgets, id: &str, state: &Value) {
        let content = json!({"comm_id": id, "data": {"method": "update", "state": state}});
        assert!(widgets.take("comm_msg", &message("run", &content, &[])));
    }

    fn print(widgets: &mut Widgets, parent: &str, text: &str) -> bool {
        widgets.take("stream", &message(parent, &json!({"name": "stdout", "text": text}), &[]))
    }

    fn texts(widgets: &mut Widgets, id: &str) -> Vec<String> {
        widgets.refresh();
        let outputs = widgets.models[id].state["outputs"].as_array().unwrap().iter();
        outputs.map(|output| output["text"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn innermost_widget_captures_the_outputs() {
        let mut widgets = Widgets::new(StreamStyle::Terminal);
        open(&mut widgets, "a");
        open(&mut widgets, "b");
        assert!(!print(&mut widgets, "run", "to the cell"));
        set(&mut widgets, "a", &json!({"msg_id": "run"}));
        assert!(print(&mut widgets, "run", "one ") && print(&mut widgets, "run", "line\n"));
        assert!(!print(&mut widgets, "another run", "x"));
        set(&mut widgets, "b", &json!({"msg_id": "run"}));
        assert!(print(&mut widgets, "run", "inner"));
        set(&mut widgets, "b", &json!({"msg_id": ""}));
        assert!(print(&mut widgets, "run", "outer"));
        set(&mut widgets, "a", &json!({"msg_id": ""}));
        assert!(!print(&mut widgets, "run", "x"));
        assert_eq!(
            (texts(&mut widgets, "a"), texts(&mut widgets, "b")),
            (vec!["one line\nouter".to_owned()], vec!["inner".to_owned()])
        );
        let syncs = widgets.take_syncs();
        assert_eq!(syncs.len(), 2, "one for each, whatever went in");
        assert_eq!(syncs[0].content["data"]["state"]["outputs"][0]["text"], "one line\nouter");
        assert_eq!(syncs[0].parent, r#"{"msg_id":"run"}"#);
        assert!(widgets.take_syncs().is_empty());
    }

    #[test]
    fn clear_with_wait_is_deferred() {
        let mut widgets = Widgets::new(StreamStyle::Terminal);
        open(&mut widgets, "a");
        set(
            &mut widgets,
            "a",
            &json!({"msg_id": "run", "outputs": [{"output_type": "stream", "name": "stdout", "text": "given"}]}),
        );
        print(&mut widgets, "run", "x");
        widgets.take("clear_output", &message("run", &json!({"wait": true}), &[]));
        assert_eq!(texts(&mut widgets, "a"), ["given", "x"]);
        print(&mut widgets, "run", "y");
        assert_eq!(texts(&mut widgets, "a"), ["y"]);
        widgets.take("clear_output", &message("run", &json!({"wait": false}), &[]));
        assert_eq!(texts(&mut widgets, "a"), [""; 0]);
    }

    #[test]
    fn state_and_buffers_are_kept_for_file() {
        for (style, closed) in [(StreamStyle::Terminal, 1), (StreamStyle::Nbclient, 2)] {
            let mut widgets = Widgets::new(style);
            assert_eq!(widgets.metadata(), None);
            let state = json!({"_model_name": "M", "_model_module": "mod", "_model_module_version": "1", "value": null});
            let content = json!({"comm_id": "m", "target_name": "jupyter.widget", "data": {"state": state, "buffer_paths": [["value"]]}});
            widgets.take("comm_open", &message("run", &content, &[b"\x00\xff"]));
            let content = json!({"comm_id": "m", "data": {"state": {"b": 1}, "buffer_paths": [["value"]]}});
            widgets.take("comm_msg", &message("run", &content, &[b"new"]));
            open(&mut widgets, "gone");
            widgets.take("comm_close", &message("run", &json!({"comm_id": "gone"}), &[]));
            let metadata = widgets.metadata().unwrap();
            let state = &metadata["application/vnd.jupyter.widget-state+json"]["state"];
            assert_eq!(state.as_object().unwrap().len(), closed);
            assert_eq!(state["m"]["state"]["b"], 1);
            assert_eq!((&state["m"]["model_name"], &state["m"]["model_module_version"]), (&json!("M"), &json!("1")));
            assert_eq!(state["m"]["buffers"], json!([{"data": "bmV3", "encoding": "base64", "path": ["value"]}]));
        }
    }

    #[test]
    fn odd_and_endless_messages_cost_bounded_memory() {
        let mut widgets = Widgets { memory: 100 << 10, ..Widgets::new(StreamStyle::Terminal) };
        for content in [
            json!(null),
            json!({"comm_id": 1}),
            json!({"comm_id": "a", "data": []}),
            json!({"comm_id": "a", "data": {"state": 1}}),
        ] {
            assert!(widgets.take("comm_open", &message("run", &content, &[b"x"])));
        }
        assert!(widgets.models.is_empty());
        for number in 0..100 {
            set(&mut widgets, &format!("m{number}"), &json!({"_model_name": "M"}));
        }
        assert!(widgets.is_truncated() && widgets.models.len() < 30);
        set(&mut widgets, "m1", &json!({"value": "x".repeat(200 << 10)}));
        assert!(!widgets.models["m1"].state.contains_key("value"));
    }
}
