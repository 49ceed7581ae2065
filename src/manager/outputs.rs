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

/// The outputs that a cell's events come to, large binary data named by its hash.
pub fn outputs_of<'a>(events: impl IntoIterator<Item = &'a EventRow>) -> Vec<Value> {
    let mut outputs = BTreeMap::new();
    for event in events {
        apply(&mut outputs, event);
    }
    outputs.into_values().collect()
}

fn apply(outputs: &mut BTreeMap<u64, Value>, event: &EventRow) {
    match event.kind.as_str() {
        "output.append" | "output.update" => {}
        "output.clear" | "cell.queued" => return outputs.clear(),
        _ => return,
    }
    let mut body = read_body(event);
    let index = body.get("index").and_then(Value::as_u64);
    let (Some(index), Some(output)) = (index, body.remove("output")) else { return };
    let keep = body.get("keep").and_then(Value::as_u64).and_then(|keep| usize::try_from(keep).ok());
    match (keep, outputs.get_mut(&index).and_then(|output| output.get_mut("text"))) {
        (Some(keep), Some(Value::String(text))) if text.is_char_boundary(keep) => {
            text.truncate(keep);
            text.push_str(output.get("text").and_then(Value::as_str).unwrap_or_default());
        }
        _ => drop(outputs.insert(index, output)),
    }
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
