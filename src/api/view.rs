//! The JSON representations of sessions, cells, artifacts and events.

use serde_json::{Map, Value, json};

use super::error::Problem;
use crate::artifacts::Blobs;
use crate::ids::{SessionId, SessionPhase};
use crate::manager::{
    ArtifactRow, EventRow, SessionConfig, SessionRow, from_ms, inline_artifacts, may_reference_artifacts,
    outputs_from_events, parse_body,
};
use crate::session::{Cell, CellPhase, metrics};
use crate::wire::content::iso8601;

/// A time in milliseconds since 1970 as ISO 8601.
pub(super) fn time(ms: i64) -> String {
    iso8601(from_ms(ms))
}

/// A session without the usage of its sandbox. `idle_timeout` is the default of the server in seconds.
pub(super) fn session(
    row: &SessionRow,
    phase: SessionPhase,
    isolation: Option<Value>,
    (cells, queued): (usize, usize),
    idle_timeout: u64,
) -> Value {
    let config = SessionConfig::of_row(row);
    json!({
        "id": row.id, "name": row.name, "kernel": row.kernel, "language": row.language, "state": phase.as_str(), "why": row.why,
        "isolation": isolation, "network": if config.open_network { "open" } else { "none" },
        "created_at": time(row.created_at), "last_active_at": time(row.last_active_at),
        "expires_at": row.expires_at.map(time), "limits": config.limits, "timeout_seconds": config.timeout_seconds,
        "ttl_seconds": config.ttl_seconds, "idle_timeout_seconds": config.idle_timeout_seconds.unwrap_or(idle_timeout), "labels": config.labels,
        "cells": cells, "queue_length": queued, "last_seq": row.last_seq,
    })
}

/// A cell, with outputs if they are given.
pub(super) fn cell(cell: &Cell, outputs: Option<Vec<Value>>) -> Value {
    let result = cell.execution.result.as_ref();
    let mut view = json!({
        "id": cell.id, "cell_type": cell.cell_type.name(), "source": cell.source, "metadata": cell.metadata,
        "state": cell.execution.phase.name(), "last_seq": cell.execution.last_seq,
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
    if let Some(started) = cell.execution.started_at.filter(|_| cell.execution.phase != CellPhase::Queued) {
        put("started_at", iso8601(started).into());
    }
    if let Some(outputs) = outputs {
        put("outputs", outputs.into());
    }
    view
}

pub(super) fn artifact(row: &ArtifactRow) -> Value {
    json!({
        "sha256": row.sha256, "mime": row.mime, "bytes": row.bytes, "cell": row.cell, "name": row.name,
        "width": row.width, "height": row.height,
    })
}

/// An event as JSON text: the common fields, then the body. With `refs`, large binary data stays a reference.
pub(super) async fn event(row: &EventRow, session: &SessionId, blobs: &Blobs, refs: bool) -> Result<String, Problem> {
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
    if refs || !may_reference_artifacts(row) {
        return Ok(join_objects(&Value::Object(fields).to_string(), &row.body));
    }
    let mut body = parse_body(row);
    if let Some(output) = body.get_mut("output") {
        inline_artifacts(output, blobs).await?;
    }
    fields.extend(body);
    Ok(Value::Object(fields).to_string())
}

/// The text of an object with the fields of both. The first object has at least one field.
fn join_objects(first: &str, second: &str) -> String {
    match (first.strip_suffix('}'), second.strip_prefix('{')) {
        (Some(first), Some(second)) if second != "}" => format!("{first},{second}"),
        _ => first.to_owned(),
    }
}

/// The outputs of a cell after these events.
pub(super) async fn outputs<'a>(
    events: impl IntoIterator<Item = &'a EventRow>,
    blobs: &Blobs,
    refs: bool,
) -> Result<Vec<Value>, Problem> {
    let mut outputs = outputs_from_events(events);
    if !refs {
        for output in &mut outputs {
            inline_artifacts(output, blobs).await?;
        }
    }
    Ok(outputs)
}
