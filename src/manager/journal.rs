//! A session's journal in the store, and those who follow it: the backlog from the store, then live.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::executions::Executions;
use crate::artifacts::Blobs;
use crate::ids::{CellNumber, Seq, SessionId};
use crate::mime;
use crate::output::{ArtifactOptions, artifacts_of};
use crate::session::{
    self, Cell, CellChange, CellRun, EventBody, Journal, JournalError, RunOptions, SessionEvent, SessionState, Transaction,
};
use crate::store::{
    self, ArtifactRow, CellRow, CellState, Commit, EventRow, SessionChange, Store, StoreError, from_ms, to_ms,
};
use crate::telemetry;

/// Binary data of more bytes than this is kept as a blob and named by its hash.
const INLINE: usize = 4096;
/// Bytes of the latest events that are held for those who follow live.
const RECENT: usize = 128 << 10;
/// Events and bytes that a follower gets at once.
const PAGE: (usize, usize) = (500, 1 << 20);

/// The latest events of a session, and its last number.
#[derive(Debug)]
pub(super) struct Live {
    recent: Mutex<Recent>,
    last: watch::Sender<Last>,
}

/// How far a session has come.
#[derive(Clone, Copy, Debug)]
struct Last {
    seq: Seq,
    /// Whether it has been deleted: nothing more will come.
    deleted: bool,
}

#[derive(Debug, Default)]
struct Recent {
    events: VecDeque<Arc<EventRow>>,
    bytes: usize,
}

impl Live {
    pub fn new(last: Seq) -> Arc<Self> {
        let last = Last { seq: last, deleted: false };
        Arc::new(Self { recent: Mutex::default(), last: watch::channel(last).0 })
    }

    fn push(&self, events: Vec<EventRow>) {
        let Some(last) = events.last().map(|event| event.seq) else { return };
        {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            for event in events {
                recent.bytes += event.body.len();
                recent.events.push_back(Arc::new(event));
            }
            while recent.bytes > RECENT
                && let Some(old) = recent.events.pop_front()
            {
                recent.bytes -= old.body.len();
            }
        }
        self.last.send_modify(|known| known.seq = last);
    }

    /// Tells followers that the session is no more.
    pub fn close(&self) {
        self.last.send_modify(|last| last.deleted = true);
    }

    pub fn last(&self) -> Seq {
        self.last.borrow().seq
    }

    /// The events after a number, if all of them are held.
    pub fn after(&self, seq: Seq) -> Option<Vec<Arc<EventRow>>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let first = recent.events.front()?.seq;
        let from = recent.events.partition_point(|event| event.seq <= seq);
        (first <= seq.next()).then(|| recent.events.range(from..).cloned().collect())
    }
}

/// Reads a session's events from a number on, for as long as the session is there.
pub struct Follower {
    pub(super) store: Store,
    pub(super) session: SessionId,
    pub(super) live: Arc<Live>,
    pub(super) after: Seq,
}

impl Follower {
    /// Whether there is nothing that the reader has not seen.
    pub fn has_all(&self) -> bool {
        self.live.last() <= self.after
    }

    /// The next events, at least one: waits for it. A slow reader reads from the store, and holds up nobody. `None` when the
    /// session has been deleted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn next(&mut self) -> Result<Option<Vec<Arc<EventRow>>>, StoreError> {
        let mut last = self.live.last.subscribe();
        loop {
            let events = self.now().await?;
            if !events.is_empty() {
                return Ok(Some(events));
            }
            let after = self.after;
            match last.wait_for(|last| last.deleted || last.seq > after).await {
                Ok(last) if !last.deleted => {}
                _ => return Ok(None),
            }
        }
    }

    /// What there is already; empty if nothing is new.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn now(&mut self) -> Result<Vec<Arc<EventRow>>, StoreError> {
        if self.live.last() <= self.after {
            return Ok(Vec::new());
        }
        let events = match self.live.after(self.after) {
            Some(events) => events,
            None => {
                let page = self.store.events_after(&self.session, self.after, PAGE.0, PAGE.1).await?;
                page.into_iter().map(|event| Arc::new(as_seen_after(self.after, event))).collect()
            }
        };
        if let Some(last) = events.last() {
            self.after = last.seq;
        }
        Ok(events)
    }
}

/// Events were merged of which the reader has seen some: for this one the text does not grow, some of it is told again.
fn as_seen_after(after: Seq, event: EventRow) -> EventRow {
    if event.first <= after { EventRow { kind: "output.update".to_owned(), ..event } } else { event }
}

/// Writes transactions into the store, and tells followers of them once they are there.
pub(super) struct StoreJournal {
    pub store: Store,
    pub blobs: Blobs,
    pub session: SessionId,
    pub live: Arc<Live>,
    /// Numbers of cells by their ids, for the names of artifacts.
    pub numbers: std::collections::HashMap<String, CellNumber>,
    /// Its runs for who collects traces, if anybody does.
    pub executions: Option<Executions>,
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
        count(transaction, &events);
        if let Some(executions) = &mut self.executions {
            executions.follow(transaction, &self.numbers);
        }
        if let Some(first) = transaction.events.first() {
            // The clock may have been set back meanwhile.
            metrics::histogram!(telemetry::LAG_SECONDS).record(first.time.elapsed().unwrap_or_default());
        }
        self.live.push(events);
        Ok(())
    }
}

fn count(transaction: &Transaction, events: &[EventRow]) {
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
                self.numbers.insert(cell.id.clone(), cell.number);
            }
        }
        let mut commit = Commit {
            cells: transaction.cells.iter().map(change_row).collect(),
            session: SessionChange {
                state: transaction.state.as_ref().map(state_row),
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
                    let output = self.keep_artifacts(event, *index, output, &mut commit.artifacts).await?;
                    json!({"index": index, "output": output})
                }
                body => body_of(body),
            };
            commit.events.push(EventRow {
                seq: event.seq,
                first: event.seq,
                time: to_ms(event.time),
                cell: event.cell.clone(),
                kind: kind_of(&event.body).to_owned(),
                body: body.to_string(),
            });
        }
        Ok(commit)
    }

    /// Keeps the files in an output as blobs; gives the output with its large binary data named by hash.
    async fn keep_artifacts(
        &self,
        event: &SessionEvent,
        index: usize,
        output: &Value,
        rows: &mut Vec<ArtifactRow>,
    ) -> std::io::Result<Value> {
        let cell = event.cell.clone().unwrap_or_default();
        let number = self.numbers.get(&cell).copied().unwrap_or_default();
        let mut output = output.clone();
        disarm(&mut output);
        for artifact in artifacts_of(&output, index, number.0 as usize, ArtifactOptions::default()) {
            // What cannot be decoded stays as the kernel sent it.
            let Ok(bytes) = artifact.content else { continue };
            let sha256 = self.blobs.put(&bytes).await?;
            let (width, height) = size_of_image(&output, &artifact.mime);
            if mime::is_binary(&artifact.mime)
                && bytes.len() > INLINE
                && let Some(value) = output.get_mut("data").and_then(|data| data.get_mut(&artifact.mime))
            {
                *value = json!({"artifact": sha256});
            }
            let (name, mime, bytes) = (artifact.name, artifact.mime, bytes.len() as i64);
            rows.push(ArtifactRow { sha256, cell: cell.clone(), name, mime, bytes, width, height, seq: event.seq });
        }
        Ok(output)
    }
}

/// Names of blobs are ours to write. What a kernel or a file sends in their form would be filled in with anybody's bytes, as often
/// as it is named: it becomes text, and shows as a broken picture.
fn disarm(output: &mut Value) {
    let Some(Value::Object(data)) = output.get_mut("data") else { return };
    for (_, value) in data.iter_mut().filter(|(mime, value)| mime::is_binary(mime) && value.get("artifact").is_some()) {
        *value = value.to_string().into();
    }
}

/// Width and height as the kernel told them beside the image.
fn size_of_image(output: &Value, mime: &str) -> (Option<i64>, Option<i64>) {
    let metadata = output.get("metadata").and_then(|metadata| metadata.get(mime));
    let number = |key| metadata.and_then(|metadata| metadata.get(key)).and_then(Value::as_i64);
    (number("width"), number("height"))
}

fn kind_of(body: &EventBody) -> &'static str {
    match body {
        EventBody::State { .. } => "session.state",
        EventBody::Queued => "cell.queued",
        EventBody::Started => "cell.started",
        EventBody::Append { .. } | EventBody::Stream { grows: true, .. } => "output.append",
        EventBody::Update { .. } | EventBody::Stream { grows: false, .. } => "output.update",
        EventBody::Clear => "output.clear",
        EventBody::Input { .. } => "input.requested",
        EventBody::Finished(_) => "cell.finished",
        EventBody::Comm { .. } => "comm",
        EventBody::Lost { .. } => "lost",
        EventBody::Notebook(_) => "notebook.changed",
        EventBody::Message { .. } => "message",
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
            json!({"index": index, "keep": keep, "output": {"output_type": "stream", "name": name, "text": text}})
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
        EventBody::Lost { from, to } => json!({"from": from, "to": to}),
        EventBody::Notebook(change) => json!({"change": change}),
        _ => json!({}),
    }
}

fn state_row(state: &SessionState) -> (String, Option<String>) {
    let why = match state {
        SessionState::Gone { why } => Some(why.clone()),
        _ => None,
    };
    (state.name().to_owned(), why)
}

fn change_row(change: &CellChange) -> store::CellChange {
    match change {
        CellChange::Put(cell) => store::CellChange::Put(Box::new(cell_row(cell))),
        CellChange::Options { number, options } => {
            store::CellChange::Options { number: number.0, options: options_text(options) }
        }
        CellChange::Run { number, run } => store::CellChange::State { number: number.0, run: run_row(run) },
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
        run: run_row(&cell.run),
    }
}

fn options_text(options: &RunOptions) -> String {
    serde_json::to_string(options).unwrap_or_default()
}

fn run_row(run: &CellRun) -> CellState {
    CellState {
        state: run.phase.name().to_owned(),
        queued_at: run.queued_at.map(to_ms),
        trace: run.trace.clone(),
        run: run.run.as_ref().map(|run| run.0.clone()),
        started_at: run.started_at.map(to_ms),
        result: run.result.as_ref().and_then(|result| serde_json::to_string(result).ok()),
        first_seq: run.first_seq,
        last_seq: run.last_seq,
    }
}

/// A cell as it was stored, for a driver that goes on.
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
        run: CellRun {
            phase: crate::session::CellPhase::parse(&row.run.state).unwrap_or_default(),
            queued_at: row.run.queued_at.map(from_ms),
            trace: row.run.trace,
            run: row.run.run.map(crate::ids::RunId),
            started_at: row.run.started_at.map(from_ms),
            result: row.run.result.and_then(|text| serde_json::from_str(&text).ok()),
            first_seq: row.run.first_seq,
            last_seq: row.run.last_seq,
        },
    })
}
