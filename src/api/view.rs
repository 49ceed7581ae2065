//! How sessions, cells and events look on the wire.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::error::Problem;
use crate::artifacts::Blobs;
use crate::ids::SessionId;
use crate::manager::KeptSpec;
use crate::manager::{ArtifactRow, EventRow, SessionRow};
use crate::session::{Cell, CellPhase, metrics};
use crate::wire::{content::iso8601, json as wire_json};

/// Milliseconds since 1970 as the contract writes times.
pub(super) fn time(ms: i64) -> String {
    iso8601(SystemTime::UNIX_EPOCH + Duration::from_millis(ms.max(0).cast_unsigned()))
}

/// A session, without what only its sandbox knows.
pub(super) fn session(row: &SessionRow, state: &str, isolation: Option<Value>, cells: usize, queued: usize) -> Value {
    let spec: KeptSpec = serde_json::from_str(&row.spec).unwrap_or_default();
    json!({
        "id": row.id, "name": row.name, "kernel": row.kernel, "language": row.language, "state": state, "why": row.why,
        "isolation": isolation, "network": if spec.open_network { "open" } else { "none" },
        "created_at": time(row.created_at), "last_active_at": time(row.last_active_at),
        "expires_at": row.expires_at.map(time), "limits": spec.limits, "timeout_seconds": spec.timeout_seconds,
        "ttl_seconds": spec.ttl_seconds, "idle_timeout_seconds": spec.idle_timeout_seconds, "labels": spec.labels,
        "cells": cells, "queue_length": queued, "last_seq": row.last_seq,
    })
}

/// A cell with the outputs given.
pub(super) fn cell(cell: &Cell, outputs: Option<Vec<Value>>) -> Value {
    let result = cell.run.result.as_ref();
    let mut view = json!({
        "id": cell.id, "cell_type": cell.cell_type.name(), "source": cell.source, "metadata": cell.metadata,
        "state": cell.run.phase.name(), "last_seq": cell.run.last_seq,
    });
    let Value::Object(fields) = &mut view else { return view };
    let mut put = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    if let Some(result) = result {
        put("status", result.status.name().into());
        put("execution_count", result.execution_count.into());
        put("metrics", metrics(result));
        put("finished_at", iso8601(result.started_at + result.wall).into());
        if let Some(error) = &result.error {
            put("error", json!({"ename": error.ename, "evalue": error.evalue, "traceback": error.traceback}));
        }
    }
    if let Some(started) = cell.run.started_at.filter(|_| cell.run.phase != CellPhase::Queued) {
        put("started_at", iso8601(started).into());
    }
    if let Some(outputs) = outputs {
        put("outputs", outputs.into());
    }
    view
}

/// An artifact.
pub(super) fn artifact(row: &ArtifactRow) -> Value {
    json!({
        "sha256": row.sha256, "mime": row.mime, "bytes": row.bytes, "cell": row.cell, "name": row.name,
        "width": row.width, "height": row.height,
    })
}

/// An event as JSON text: our own fields, then the event's.
pub(super) async fn event(row: &EventRow, session: &SessionId, blobs: &Blobs, refs: bool) -> Result<String, Problem> {
    let mut body = read_object(&row.body);
    if !refs && let Some(output) = body.get_mut("output") {
        inline(output, blobs).await?;
    }
    let mut fields = Map::new();
    fields.insert("seq".to_owned(), row.seq.0.into());
    if row.first != row.seq {
        fields.insert("first_seq".to_owned(), row.first.0.into());
    }
    fields.insert("time".to_owned(), time(row.time).into());
    fields.insert("session".to_owned(), session.as_str().into());
    if let Some(cell) = &row.cell {
        fields.insert("cell".to_owned(), cell.as_str().into());
    }
    fields.insert("type".to_owned(), row.kind.as_str().into());
    fields.extend(body);
    Ok(Value::Object(fields).to_string())
}

/// What was stored was written by us, but holds what kernels said: it is read by our own parser.
fn read_object(text: &str) -> Map<String, Value> {
    match wire_json::parse_lenient(text.as_bytes()) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// The outputs of a cell, from its events.
pub(super) async fn outputs(events: &[EventRow], blobs: &Blobs, refs: bool) -> Result<Vec<Value>, Problem> {
    let mut outputs = BTreeMap::new();
    for event in events {
        apply(&mut outputs, event);
    }
    let mut outputs: Vec<Value> = outputs.into_values().collect();
    if !refs {
        for output in &mut outputs {
            inline(output, blobs).await?;
        }
    }
    Ok(outputs)
}

fn apply(outputs: &mut BTreeMap<u64, Value>, event: &EventRow) {
    match event.kind.as_str() {
        "output.append" | "output.update" => {}
        "output.clear" | "cell.queued" => return outputs.clear(),
        _ => return,
    }
    let mut body = read_object(&event.body);
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
async fn inline(output: &mut Value, blobs: &Blobs) -> Result<(), Problem> {
    let Some(Value::Object(data)) = output.get_mut("data") else { return Ok(()) };
    for (_, value) in data.iter_mut().filter(|(mime, _)| crate::mime::is_binary(mime)) {
        let Some(hash) = value.get("artifact").and_then(Value::as_str) else { continue };
        if let Some(bytes) = blobs.get(hash).await? {
            *value = base64::engine::general_purpose::STANDARD.encode(bytes).into();
        }
    }
    Ok(())
}
