//! Widgets in a run without a browser: their state for the notebook's metadata, and the Output widget, which catches outputs.
//!
//! The kernel leaves it to its front end to put outputs into an Output widget (`with out:`): it names the run whose outputs it
//! wants by `msg_id`. So whoever runs a notebook must act as one, as nbclient does.

use super::held::weight;
use super::{CellKey, Outputs, StreamStyle};
use crate::wire::Message;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Memory that all widgets' state may take where nobody says otherwise, bytes.
const DEFAULT_MEMORY: usize = 256 << 20;
/// What a model takes beside its state, bytes. It bounds their number, too.
const MODEL: usize = 4 << 10;
/// The one place in an Output widget's own outputs.
const INSIDE: CellKey = CellKey(0);

/// All widgets of a run.
#[derive(Debug)]
pub struct Widgets {
    style: StreamStyle,
    models: BTreeMap<String, Model>,
    /// The Output widgets that catch the outputs of a run, by its `msg_id`; the last one gets them.
    catching: HashMap<String, Vec<String>>,
    /// Output widgets that the kernel has not been told of yet.
    changed: BTreeSet<String>,
    memory: usize,
    weight: usize,
    full: bool,
}

#[derive(Debug, Default)]
struct Model {
    state: Map<String, Value>,
    /// Binary parts of the state: the path of each and its entry in the file.
    buffers: Vec<(Value, Value)>,
    output: Option<OutputWidget>,
    weight: usize,
}

#[derive(Debug)]
struct OutputWidget {
    msg_id: String,
    /// What the kernel itself has put in.
    given: Vec<Value>,
    given_is_to_go: bool,
    caught: Outputs,
    /// The parent header of the last output, which the kernel gets back.
    parent: Bytes,
}

/// What the kernel is to be told: the content of a `comm_msg`, and its parent header.
#[derive(Debug, Clone, PartialEq)]
pub struct Sync {
    /// The content.
    pub content: Value,
    /// Raw JSON of the parent header.
    pub parent: Bytes,
}

impl Widgets {
    /// None yet. In the style of nbclient, those that were closed keep their state.
    pub fn new(style: StreamStyle) -> Self {
        let (models, catching, changed) = Default::default();
        Self { style, models, catching, changed, memory: DEFAULT_MEMORY, weight: 0, full: false }
    }

    /// Takes in an iopub message. `true` if it is about a widget or was caught by one, so that it is none of the cell's outputs.
    pub fn take(&mut self, msg_type: &str, message: &Message) -> bool {
        match msg_type {
            "comm_open" | "comm_msg" => self.comm(&message.content_value(), &message.buffers, msg_type == "comm_open"),
            "comm_close" => self.close(&message.content_value()),
            "stream" | "display_data" | "execute_result" | "error" | "clear_output" => return self.catch(msg_type, message),
            _ => return false,
        }
        true
    }

    /// What the kernel must be told before it is given the next cell. While it runs one it would not listen, so that once at the
    /// end is enough, where nbclient sends everything again with every line.
    pub fn syncs(&mut self) -> Vec<Sync> {
        self.refresh();
        let changed = std::mem::take(&mut self.changed);
        let sync = |id: String| {
            let model = self.models.get(&id)?;
            let data = json!({"method": "update", "state": {"outputs": model.state.get("outputs")?}, "buffer_paths": []});
            let parent = model.output.as_ref()?.parent.clone();
            Some(Sync { content: json!({"comm_id": id, "data": data}), parent })
        };
        changed.into_iter().filter_map(sync).collect()
    }

    /// Whether some state was left out for want of memory.
    pub fn is_cut(&self) -> bool {
        self.full
    }

    /// What goes into the notebook's `metadata.widgets`. `None` where there is no widget.
    pub fn metadata(&mut self) -> Option<Value> {
        self.refresh();
        let named = self.models.iter().filter(|(_, model)| model.state.contains_key("_model_name"));
        let state: Map<String, Value> = named.map(|(id, model)| (id.clone(), model.entry())).collect();
        let all = json!({"state": state, "version_major": 2, "version_minor": 0});
        (!self.models.is_empty()).then(|| json!({"application/vnd.jupyter.widget-state+json": all}))
    }

    fn comm(&mut self, content: &Value, buffers: &[Bytes], opens: bool) {
        let (Some(id), Some(data)) = (content["comm_id"].as_str(), content["data"].as_object()) else { return };
        let Some(Value::Object(state)) = data.get("state") else { return };
        let more = MODEL + state.values().map(weight).sum::<usize>() + buffers.iter().map(Bytes::len).sum::<usize>() * 4 / 3;
        if self.weight + more > self.memory {
            // Half a state shows something wrong; the state from before is at least whole.
            self.full = true;
            return;
        }
        let model = self.models.entry(id.to_owned()).or_default();
        if opens && content["target_name"] == "jupyter.widget" && is_output_model(state) {
            model.output = Some(OutputWidget::new());
        }
        model.state.extend(state.iter().map(|(key, value)| (key.clone(), value.clone())));
        model.put_buffers(data.get("buffer_paths"), buffers);
        if let (Some(output), Some(Value::Array(given))) = (&mut model.output, state.get("outputs")) {
            output.given.clone_from(given);
            output.caught.start(INSIDE);
        }
        self.weight = self.weight - model.weight + model.measure();
        if let Some(run) = state.get("msg_id").and_then(Value::as_str) {
            self.catch_for(id, run);
        }
    }

    /// An Output widget begins to catch the outputs of a run, or (an empty id) ends it.
    fn catch_for(&mut self, id: &str, run: &str) {
        let Some(output) = self.models.get_mut(id).and_then(|model| model.output.as_mut()) else { return };
        let before = std::mem::replace(&mut output.msg_id, run.to_owned());
        if run.is_empty() {
            self.release(id, &before);
        } else {
            self.catching.entry(run.to_owned()).or_default().push(id.to_owned());
        }
    }

    fn release(&mut self, id: &str, run: &str) {
        let Some(stack) = self.catching.get_mut(run) else { return };
        if let Some(at) = stack.iter().rposition(|other| other == id) {
            stack.remove(at);
        }
        if stack.is_empty() {
            self.catching.remove(run);
        }
    }

    fn catch(&mut self, msg_type: &str, message: &Message) -> bool {
        if self.catching.is_empty() {
            return false;
        }
        let Some(id) = self.catching.get(&message.parent().msg_id).and_then(|stack| stack.last()) else { return false };
        let Some(model) = self.models.get_mut(id) else { return false };
        let Some(output) = &mut model.output else { return false };
        if output.take(msg_type, message) {
            self.changed.insert(id.clone());
        }
        true
    }

    /// Brings the state of those that have caught something up to date. Not with each message: that would be quadratic.
    fn refresh(&mut self) {
        for id in &self.changed {
            let Some(model) = self.models.get_mut(id) else { continue };
            let Some(outputs) = model.output.as_ref().map(OutputWidget::all) else { continue };
            model.state.insert("outputs".to_owned(), Value::Array(outputs));
            self.weight = self.weight - model.weight + model.measure();
        }
    }

    fn close(&mut self, content: &Value) {
        let Some(id) = content["comm_id"].as_str().filter(|_| self.style != StreamStyle::Nbclient) else { return };
        let Some(model) = self.models.remove(id) else { return };
        self.weight -= model.weight;
        if let Some(output) = model.output {
            self.release(id, &output.msg_id);
        }
    }
}

fn is_output_model(state: &Map<String, Value>) -> bool {
    let is = |key: &str, value: &str| state.get(key).is_some_and(|own| own == value);
    is("_model_module", "@jupyter-widgets/output") && is("_model_name", "OutputModel")
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

impl OutputWidget {
    fn new() -> Self {
        let caught = Outputs::new(StreamStyle::Terminal).with_memory(DEFAULT_MEMORY / 4);
        Self { msg_id: String::new(), given: Vec::new(), given_is_to_go: false, caught, parent: Bytes::from_static(b"{}") }
    }

    /// Takes an output or a clearing; `true` if that changed what is in it.
    fn take(&mut self, msg_type: &str, message: &Message) -> bool {
        self.parent = message.parent_header.clone();
        let clears = msg_type == "clear_output";
        if clears && message.content_value().get("wait").is_some_and(|wait| *wait != json!(false)) {
            self.given_is_to_go = true;
        } else if clears || std::mem::take(&mut self.given_is_to_go) {
            self.given.clear();
        }
        self.caught.apply(INSIDE, msg_type, &message.content);
        !(clears && self.given_is_to_go)
    }

    fn all(&self) -> Vec<Value> {
        self.given.iter().chain(self.caught.outputs(INSIDE)).cloned().collect()
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
    fn outputs_go_into_the_innermost_widget_that_asks_for_them() {
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
        let syncs = widgets.syncs();
        assert_eq!(syncs.len(), 2, "one for each, whatever went in");
        assert_eq!(syncs[0].content["data"]["state"]["outputs"][0]["text"], "one line\nouter");
        assert_eq!(syncs[0].parent, r#"{"msg_id":"run"}"#);
        assert!(widgets.syncs().is_empty());
    }

    #[test]
    fn clearing_waits_where_it_is_told_to() {
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
    fn state_and_buffers_are_kept_for_the_file() {
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
    fn odd_and_endless_messages_cost_a_bounded_memory() {
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
        assert!(widgets.is_cut() && widgets.models.len() < 30);
        set(&mut widgets, "m1", &json!({"value": "x".repeat(200 << 10)}));
        assert!(!widgets.models["m1"].state.contains_key("value"));
    }
}
