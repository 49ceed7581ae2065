//! The journal of a session in the store: transactions of the session machine become rows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::event_feed::EventFeed;
use super::execution_traces::ExecutionTraces;
use crate::artifacts::Blobs;
use crate::ids::{CellNumber, SessionId, SessionPhase};
use crate::mime;
use crate::output::{ArtifactOptions, artifacts_of, image_size};
use crate::session::{
    self, Cell, CellChange, CellExecution, EventBody, ExecutionOptions, FileChange, FileChanges, Journal, JournalError,
    SessionEvent, SessionState, Transaction,
};
use crate::store::{
    self, ArtifactRow, CellRow, CellState, Commit, EventKind, EventRow, SessionChange, Store, from_ms, to_ms,
};
use crate::telemetry;

/// Binary data above this size is stored as an artifact and referenced by its hash.
const MAX_INLINE_BYTES: usize = 4096;

/// Commits transactions of a session to the store, and then publishes their events.
pub(super) struct StoreJournal {
    pub store: Store,
    pub blobs: Blobs,
    pub session: SessionId,
    pub feed: Arc<EventFeed>,
    /// The numbers of cells by their ids, for the names of artifacts.
    pub cell_numbers: HashMap<String, CellNumber>,
    /// Makes the spans of executions. `None` if no trace collector is configured.
    pub traces: Option<ExecutionTraces>,
}

#[async_trait]
impl Journal for StoreJournal {
    async fn room(&self) {}

    async fn append(&mut self, transaction: &Transaction) -> Result<(), JournalError> {
        let _putting = self.blobs.putting().await;
        let commit = self.commit_of(transaction).await.map_err(|error| JournalError(error.to_string()))?;
        let events = commit.events.clone();
        let began = Instant::now();
        self.store.commit(&self.session, commit).await.map_err(|error| JournalError(error.to_string()))?;
        metrics::histogram!(telemetry::COMMIT_SECONDS).record(began.elapsed());
        update_metrics(transaction, &events);
        if let Some(traces) = &mut self.traces {
            traces.follow(transaction, &self.cell_numbers);
        }
        if let Some(first) = transaction.events.first() {
            // The clock may have been set back meanwhile, which makes the elapsed time an error.
            metrics::histogram!(telemetry::LAG_SECONDS).record(first.time.elapsed().unwrap_or_default());
        }
        self.feed.publish(events);
        Ok(())
    }
}

fn update_metrics(transaction: &Transaction, events: &[EventRow]) {
    metrics::counter!(telemetry::EVENTS).increment(events.len() as u64);
    metrics::counter!(telemetry::EVENT_BYTES).increment(events.iter().map(|event| event.body.len() as u64).sum());
    for event in &transaction.events {
        if let EventBody::Finished(result) = &event.body {
            metrics::histogram!(telemetry::RUN_SECONDS, "status" => result.status.name()).record(result.wall);
        }
    }
}

impl StoreJournal {
    async fn commit_of(&mut self, transaction: &Transaction) -> std::io::Result<Commit> {
        for change in &transaction.cells {
            if let CellChange::Put(cell) = change {
                self.cell_numbers.insert(cell.id.clone(), cell.number);
            }
        }
        let mut commit = Commit {
            cells: transaction.cells.iter().map(change_row).collect(),
            session: SessionChange {
                phase: transaction.state.as_ref().map(phase_row),
                position: transaction.position.map(|position| (position.epoch, position.seq)),
                last_seq: transaction.events.last().map(|event| event.seq),
                resume: transaction.resume.clone(),
                kernel_info: transaction.kernel_info.clone(),
                last_active_at: Some(store::now_ms()),
            },
            folds: transaction.outputs.iter().map(|change| (change.target.code(), change.json.clone())).collect(),
            notebook: transaction.notebook.clone(),
            ..Commit::default()
        };
        for event in &transaction.events {
            let body = match &event.body {
                EventBody::Append { index, output } | EventBody::Update { index, output } => {
                    let output = self.store_artifacts(event, *index, output, &mut commit.artifacts).await?;
                    json!({"index": index, "output": output})
                }
                EventBody::ArtifactFile { change, data } => {
                    let change = self.store_file(event, change, data, &mut commit.artifacts).await?;
                    files_body(&FileChanges { files: vec![change], truncated: false })
                }
                body => body_of(body),
            };
            commit.events.push(EventRow {
                seq: event.seq,
                first: event.seq,
                time: to_ms(event.time),
                cell: event.cell.clone(),
                kind: kind_of(&event.body),
                body: body.to_string(),
            });
        }
        Ok(commit)
    }

    /// Stores the artifacts in an output as blobs. Returns the output, in which large binary data is replaced by its hash.
    async fn store_artifacts(
        &self,
        event: &SessionEvent,
        index: usize,
        output: &Value,
        rows: &mut Vec<ArtifactRow>,
    ) -> std::io::Result<Value> {
        let cell = event.cell.clone().unwrap_or_default();
        let number = self.cell_numbers.get(&cell).copied().unwrap_or_default();
        let mut output = output.clone();
        escape_artifact_references(&mut output);
        for artifact in artifacts_of(&output, index, number.0 as usize, ArtifactOptions::default()) {
            // Data that cannot be decoded stays in the output as the kernel sent it.
            let Ok(bytes) = artifact.content else { continue };
            let sha256 = self.blobs.put(&bytes).await?;
            let size = image_size(&artifact.mime, &bytes);
            let (width, height) = size.map(|(width, height)| (i64::from(width), i64::from(height))).unzip();
            if mime::is_binary(&artifact.mime)
                && bytes.len() > MAX_INLINE_BYTES
                && let Some(value) = output.get_mut("data").and_then(|data| data.get_mut(&artifact.mime))
            {
                *value = reference(&sha256, bytes.len(), size);
            }
            let (name, mime, bytes) = (artifact.name, artifact.mime, bytes.len() as i64);
            rows.push(ArtifactRow { sha256, cell: cell.clone(), name, mime, bytes, width, height, seq: event.seq });
        }
        Ok(output)
    }

    /// Stores a file that an execution leaves as an artifact. Returns its change with the hash.
    async fn store_file(
        &self,
        event: &SessionEvent,
        change: &FileChange,
        data: &[u8],
        rows: &mut Vec<ArtifactRow>,
    ) -> std::io::Result<FileChange> {
        if !change.artifact {
            return Ok(change.clone());
        }
        let sha256 = self.blobs.put(data).await?;
        let mime = mime::of_name(&change.path).unwrap_or_else(|| mime::of_content(data)).to_owned();
        let size = image_size(&mime, data);
        let (width, height) = size.map(|(width, height)| (i64::from(width), i64::from(height))).unzip();
        let (cell, name, bytes) = (event.cell.clone().unwrap_or_default(), change.path.clone(), data.len() as i64);
        rows.push(ArtifactRow { sha256: sha256.clone(), cell, name, mime, bytes, width, height, seq: event.seq });
        Ok(FileChange { sha256: Some(sha256), size: data.len() as u64, ..change.clone() })
    }
}

/// Turns artifact references that came from a kernel or a file into text, which shows as a broken image. Only the journal
/// may write references: otherwise an output could include the bytes of any artifact of any session, any number of times.
fn escape_artifact_references(output: &mut Value) {
    let Some(Value::Object(data)) = output.get_mut("data") else { return };
    for (_, value) in data.iter_mut().filter(|(mime, value)| mime::is_binary(mime) && value.get("artifact").is_some()) {
        *value = value.to_string().into();
    }
}

/// What stands for the data of an artifact in an output. `artifact` is the first field, by which references are found.
fn reference(sha256: &str, bytes: usize, size: Option<(u32, u32)>) -> Value {
    let mut reference = json!({"artifact": sha256, "bytes": bytes});
    if let Some((width, height)) = size {
        reference["width"] = width.into();
        reference["height"] = height.into();
    }
    reference
}

fn kind_of(body: &EventBody) -> EventKind {
    match body {
        EventBody::State { .. } => EventKind::SessionState,
        EventBody::Queued => EventKind::CellQueued,
        EventBody::Started => EventKind::CellStarted,
        EventBody::Append { .. } | EventBody::Stream { grows: true, .. } => EventKind::OutputAppend,
        EventBody::Update { .. } | EventBody::Stream { grows: false, .. } => EventKind::OutputUpdate,
        EventBody::Clear => EventKind::OutputClear,
        EventBody::Input { .. } => EventKind::InputRequested,
        EventBody::Finished(_) => EventKind::CellFinished,
        EventBody::Comm { .. } => EventKind::Comm,
        EventBody::Lost { .. } => EventKind::Lost,
        EventBody::Notebook(_) => EventKind::NotebookChanged,
        EventBody::Files(_) | EventBody::ArtifactFile { .. } => EventKind::FilesChanged,
        EventBody::Message { .. } => EventKind::Message,
    }
}

fn body_of(body: &EventBody) -> Value {
    match body {
        EventBody::State { state, notice } => {
            let mut fields = Map::new();
            fields.insert("state".to_owned(), state.name().into());
            if let SessionState::Gone { why } = state {
                fields.insert("why".to_owned(), why.as_str().into());
            }
            if let Some(notice) = notice {
                fields.insert("notice".to_owned(), notice.as_str().into());
            }
            Value::Object(fields)
        }
        EventBody::Stream { index, name, keep, text, .. } => {
            let output = json!({"output_type": "stream", "name": name, "text": text});
            json!({"index": index, "keep": keep.bytes, "keep_utf16": keep.utf16, "output": output})
        }
        EventBody::Input { prompt, password } => json!({"prompt": prompt, "password": password}),
        EventBody::Finished(result) => json!({
            "status": result.status.name(), "execution_count": result.execution_count, "error": result.error,
            "metrics": session::metrics(result),
        }),
        EventBody::Comm { msg_type, content, buffers } => {
            use base64::Engine as _;
            let encoded = |bytes: &bytes::Bytes| base64::engine::general_purpose::STANDARD.encode(bytes);
            json!({"msg_type": msg_type, "content": content, "buffers": buffers.iter().map(encoded).collect::<Vec<_>>()})
        }
        EventBody::Files(changes) => files_body(changes),
        EventBody::Lost { from, to } => json!({"from": from, "to": to}),
        EventBody::Notebook(change) => json!({"change": change}),
        _ => json!({}),
    }
}

/// The changes with what is known of each file by its name.
fn files_body(changes: &FileChanges) -> Value {
    let described = |change: &FileChange| {
        let mut file = json!(change);
        file["media_type"] = mime::of_name_or_bytes(&change.path).into();
        file
    };
    json!({"files": changes.files.iter().map(described).collect::<Vec<_>>(), "truncated": changes.truncated})
}

fn phase_row(state: &SessionState) -> (SessionPhase, Option<String>) {
    let why = match state {
        SessionState::Gone { why } => Some(why.clone()),
        _ => None,
    };
    (state.phase(), why)
}

fn change_row(change: &CellChange) -> store::CellChange {
    match change {
        CellChange::Put(cell) => store::CellChange::Put(Box::new(cell_row(cell))),
        CellChange::Options { number, options } => {
            store::CellChange::Options { number: number.0, options: options_text(options) }
        }
        CellChange::Execution { number, execution } => {
            store::CellChange::State { number: number.0, execution: execution_row(execution) }
        }
        CellChange::Delete { number } => store::CellChange::Delete { number: number.0 },
    }
}

fn cell_row(cell: &Cell) -> CellRow {
    CellRow {
        number: cell.number.0,
        id: cell.id.clone(),
        place: cell.place,
        cell_type: cell.cell_type.name().to_owned(),
        source: cell.source.clone(),
        metadata: Value::Object(cell.metadata.clone()).to_string(),
        options: options_text(&cell.options),
        execution: execution_row(&cell.execution),
    }
}

fn options_text(options: &ExecutionOptions) -> String {
    serde_json::to_string(options).unwrap_or_default()
}

fn execution_row(execution: &CellExecution) -> CellState {
    CellState {
        phase: execution.phase,
        queued_at: execution.queued_at.map(to_ms),
        trace: execution.trace.clone(),
        id: execution.id.as_ref().map(|id| id.0.clone()),
        started_at: execution.started_at.map(to_ms),
        result: execution.result.as_ref().and_then(|result| serde_json::to_string(result).ok()),
        first_seq: execution.first_seq,
        last_seq: execution.last_seq,
    }
}

/// Reads a stored cell. `None` if its cell type is unknown.
pub(super) fn restore_cell(row: CellRow) -> Option<Cell> {
    let metadata = match crate::wire::json::parse_lenient(row.metadata.as_bytes()) {
        Ok(Value::Object(metadata)) => metadata,
        _ => Map::new(),
    };
    Some(Cell {
        number: CellNumber(row.number),
        id: row.id,
        place: row.place,
        cell_type: crate::session::CellType::parse(&row.cell_type)?,
        source: row.source,
        metadata,
        options: serde_json::from_str(&row.options).unwrap_or_default(),
        execution: CellExecution {
            phase: row.execution.phase,
            queued_at: row.execution.queued_at.map(from_ms),
            trace: row.execution.trace,
            id: row.execution.id.map(crate::ids::ExecutionId),
            started_at: row.execution.started_at.map(from_ms),
            result: row.execution.result.and_then(|text| serde_json::from_str(&text).ok()),
            first_seq: row.execution.first_seq,
            last_seq: row.execution.last_seq,
        },
    })
}
