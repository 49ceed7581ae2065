//! The outputs of a cell, computed from its stored events.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde_json::{Map, Value};

use crate::artifacts::Blobs;
use crate::store::{EventKind, EventRow};
use crate::wire::json as wire_json;

/// The fields of an event's body. The body holds text from kernels, so it is read by our own parser.
pub fn parse_body(event: &EventRow) -> Map<String, Value> {
    match wire_json::parse_lenient(event.body.as_bytes()) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// Whether an event may reference artifacts. A text search, which costs less than parsing.
pub fn may_reference_artifacts(event: &EventRow) -> bool {
    event.body.contains(r#"{"artifact":"#)
}

/// The effect of an event on the outputs of its cell.
#[derive(Debug, PartialEq)]
pub enum OutputEvent {
    /// All outputs are removed.
    Clear,
    /// One output is added or replaced.
    Set {
        /// The position in the list of outputs.
        index: u64,
        /// For the edit of a stream: how many bytes of its text stay. The text of `output` follows them.
        keep: Option<usize>,
        output: Value,
    },
}

impl OutputEvent {
    /// `None` if the event does not change outputs.
    pub fn parse(event: &EventRow) -> Option<Self> {
        match event.kind {
            EventKind::OutputAppend | EventKind::OutputUpdate => {}
            EventKind::OutputClear | EventKind::CellQueued => return Some(Self::Clear),
            _ => return None,
        }
        let mut body = parse_body(event);
        let index = body.get("index")?.as_u64()?;
        let keep = body.get("keep").and_then(Value::as_u64).and_then(|keep| usize::try_from(keep).ok());
        Some(Self::Set { index, keep, output: body.remove("output")? })
    }
}

/// Applies the edit of a stream to its text. `None` if the output is no edit of this text and replaces it.
pub fn apply_edit(mut text: String, keep: Option<usize>, output: &Value) -> Option<String> {
    let added = output.get("text")?.as_str()?;
    text.truncate(keep.filter(|keep| text.is_char_boundary(*keep))?);
    text.push_str(added);
    Some(text)
}

/// The outputs of a cell after its events. Large binary data is referenced by its hash.
pub fn outputs_from_events<'a>(events: impl IntoIterator<Item = &'a EventRow>) -> Vec<Value> {
    fold_outputs(events.into_iter().filter_map(OutputEvent::parse))
}

/// The outputs of a cell after these parsed events.
pub fn fold_outputs(events: impl IntoIterator<Item = OutputEvent>) -> Vec<Value> {
    let mut outputs = BTreeMap::new();
    for event in events {
        match event {
            OutputEvent::Clear => outputs.clear(),
            OutputEvent::Set { index, keep, output } => put(&mut outputs, index, keep, output),
        }
    }
    outputs.into_values().collect()
}

fn put(outputs: &mut BTreeMap<u64, Value>, index: u64, keep: Option<usize>, output: Value) {
    if let Some(Value::String(text)) = outputs.get_mut(&index).and_then(|known| known.get_mut("text"))
        && let Some(edited) = apply_edit(std::mem::take(text), keep, &output)
    {
        *text = edited;
        return;
    }
    outputs.insert(index, output);
}

/// Replaces references to artifacts by their bytes as base64, as the kernel sent them.
pub async fn inline_artifacts(output: &mut Value, blobs: &Blobs) -> std::io::Result<()> {
    let Some(Value::Object(data)) = output.get_mut("data") else { return Ok(()) };
    for (_, value) in data.iter_mut().filter(|(mime, _)| crate::mime::is_binary(mime)) {
        let Some(hash) = value.get("artifact").and_then(Value::as_str) else { continue };
        if let Some(bytes) = blobs.get(hash).await? {
            *value = base64::engine::general_purpose::STANDARD.encode(bytes).into();
        }
    }
    Ok(())
}
