//! A cell's outputs as its stored events tell them.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde_json::{Map, Value};

use crate::artifacts::Blobs;
use crate::store::EventRow;
use crate::wire::json as wire_json;

/// The fields of an event's own. What was stored was written by us, but holds what kernels said: it is read by our own parser.
pub fn read_body(event: &EventRow) -> Map<String, Value> {
    match wire_json::parse_lenient(event.body.as_bytes()) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// Whether an event may name artifacts; it costs less than to read it.
pub fn names_artifacts(event: &EventRow) -> bool {
    event.body.contains(r#"{"artifact":"#)
}

/// What an event does to its cell's outputs.
#[derive(Debug, PartialEq)]
pub enum OutputEvent {
    /// All of them are gone.
    Cleared,
    /// One of them is new, or otherwise.
    Told {
        /// Its place in the cell's list.
        index: u64,
        /// Where it is a stream that was known: how many bytes of its text stand. What is told here follows them.
        keep: Option<usize>,
        /// The output.
        output: Value,
    },
}

impl OutputEvent {
    /// Reads an event. `None`: it is about something else.
    pub fn read(event: &EventRow) -> Option<Self> {
        match event.kind.as_str() {
            "output.append" | "output.update" => {}
            "output.clear" | "cell.queued" => return Some(Self::Cleared),
            _ => return None,
        }
        let mut body = read_body(event);
        let index = body.get("index")?.as_u64()?;
        let keep = body.get("keep").and_then(Value::as_u64).and_then(|keep| usize::try_from(keep).ok());
        Some(Self::Told { index, keep, output: body.remove("output")? })
    }
}

/// What a stream's text becomes by an edit of it. `None`: what is told is no edit of this text, but stands in its place.
pub fn edited(mut text: String, keep: Option<usize>, output: &Value) -> Option<String> {
    let more = output.get("text")?.as_str()?;
    text.truncate(keep.filter(|keep| text.is_char_boundary(*keep))?);
    text.push_str(more);
    Some(text)
}

/// The outputs that a cell's events come to, large binary data named by its hash.
pub fn outputs_of<'a>(events: impl IntoIterator<Item = &'a EventRow>) -> Vec<Value> {
    outputs_told(events.into_iter().filter_map(OutputEvent::read))
}

/// The same of events that have been read.
pub fn outputs_told(events: impl IntoIterator<Item = OutputEvent>) -> Vec<Value> {
    let mut outputs = BTreeMap::new();
    for event in events {
        match event {
            OutputEvent::Cleared => outputs.clear(),
            OutputEvent::Told { index, keep, output } => put(&mut outputs, index, keep, output),
        }
    }
    outputs.into_values().collect()
}

fn put(outputs: &mut BTreeMap<u64, Value>, index: u64, keep: Option<usize>, output: Value) {
    if let Some(Value::String(text)) = outputs.get_mut(&index).and_then(|known| known.get_mut("text"))
        && let Some(edited) = edited(std::mem::take(text), keep, &output)
    {
        *text = edited;
        return;
    }
    outputs.insert(index, output);
}

/// Puts the bytes of artifacts back to where the kernel had them, as base64.
///
/// # Errors
/// Of reading them.
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
