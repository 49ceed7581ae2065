//! Cells as clients see them.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::api_enum;
use super::file_change::FileChangeView;
use super::foreign::Output;
use super::long_text::refer_to_long_text;
use crate::api::error::Problem;
use crate::artifacts::Blobs;
use crate::ids::Seq;
use crate::manager::{EventRow, inline_artifacts, outputs_from_events};
use crate::session::{Cell, CellPhase, CellType, ExecutionResult, ExecutionStatus, FileChanges, metrics};
use crate::wire::content::{ErrorInfo, iso8601};

/// A cell, and the result of its last execution.
#[derive(Serialize, ToSchema)]
#[schema(as = Cell, examples(json!({
    "id": "ae18a2f3", "cell_type": "code", "source": "6*7", "metadata": {}, "state": "finished", "last_seq": 9,
    "status": "ok", "execution_count": 1,
    "metrics": {"wall_ms": 12.4, "cpu_ms": 9.8, "peak_memory_bytes": 78643200},
    "finished_at": "2026-11-30T11:55:05.360000Z", "started_at": "2026-11-30T11:55:05.348000Z",
    "outputs": [{"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": {"text/plain": "42"}}],
    "files": [], "files_truncated": false
})))]
pub(in crate::api) struct CellView {
    pub id: String,
    pub cell_type: CellTypeName,
    pub source: String,
    /// The metadata of the cell in the notebook.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    pub state: CellState,
    /// The number of the last event of the cell.
    #[schema(value_type = u64)]
    pub last_seq: Seq,
    /// Present when an execution has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub status: Option<CellStatus>,
    /// The execution counter of the kernel. Null if the kernel has not counted the execution.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub execution_count: Option<Option<i64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ExecutionMetrics, nullable = false)]
    pub metrics: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = DateTime)]
    pub finished_at: Option<String>,
    /// The error that ended the execution.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error: Option<ExecutionError>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = DateTime)]
    pub started_at: Option<String>,
    /// Absent if the request did not ask for outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Output>, nullable = false)]
    pub outputs: Option<Vec<Value>>,
    /// The regular files of the workspace that changed from the start of the execution until the start of the next one, by path. Absent
    /// if the request did not ask for outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub files: Option<Vec<FileChangeView>>,
    /// Whether more files may have changed than are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub files_truncated: Option<bool>,
}

impl CellView {
    /// Leaves out the changed files: a share does not show the workspace.
    pub fn hide_files(&mut self) {
        (self.files, self.files_truncated) = (None, None);
    }

    /// With outputs and changed files, if they were read.
    pub fn new(cell: &Cell, content: Option<(Vec<Value>, FileChanges)>) -> Self {
        let (outputs, files) = content.unzip();
        let result = cell.execution.result.as_ref();
        let started_at = cell.execution.started_at.filter(|_| cell.execution.phase != CellPhase::Queued);
        Self {
            id: cell.id.clone(),
            cell_type: cell.cell_type.into(),
            source: cell.source.clone(),
            metadata: cell.metadata.clone(),
            state: cell.execution.phase.into(),
            last_seq: cell.execution.last_seq,
            status: result.map(|result| result.status.into()),
            execution_count: result.map(|result| result.execution_count),
            metrics: result.map(metrics),
            finished_at: result.map(|result| iso8601(result.started_at + result.wall)),
            error: result.and_then(error),
            started_at: started_at.map(iso8601),
            outputs,
            files_truncated: files.as_ref().map(|files| files.truncated),
            files: files.map(|files| files.files.into_iter().map(FileChangeView::from).collect()),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(in crate::api) struct CellList {
    /// In the order of the notebook.
    pub cells: Vec<CellView>,
    /// The cursor of the next page; null at the end.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

api_enum! {
    #[schema(as = CellType)]
    CellTypeName for CellType { Code, Markdown, Raw }
}

api_enum! {
    /// The state of a cell. A cell that was never executed is `finished`.
    CellState for CellPhase { Queued, Running, Finished }
}

api_enum! {
    /// How an execution ended. Every execution ends in exactly one of these.
    ///
    /// `error`: the code raised an error. `timeout`, `memory_exceeded`, `output_exceeded`: it was stopped at a limit.
    /// `kernel_died`: the kernel ended during the execution. `cancelled`: it was taken out of the queue before it started.
    #[schema(as = ExecutionStatus)]
    CellStatus for ExecutionStatus {
        Ok, Error, Interrupted, Timeout, MemoryExceeded, OutputExceeded, KernelDied, Cancelled,
    }
}

/// The error that ended an execution: the kernel's, or ours for a death or a limit.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct ExecutionError {
    /// The class of the error, for example `ValueError`.
    pub ename: String,
    /// The message.
    pub evalue: String,
    /// Lines for a terminal, with ANSI colours.
    pub traceback: Vec<String>,
    /// Whether the variables of the session are gone: the kernel has ended, or what it ran the code in.
    pub state_lost: bool,
}

/// The error of an execution, if it failed.
pub(in crate::api) fn error(result: &ExecutionResult) -> Option<ExecutionError> {
    let ErrorInfo { ename, evalue, traceback, state_lost } = result.error.clone()?;
    Some(ExecutionError { ename, evalue, traceback, state_lost })
}

/// The resources that an execution used. Only `wall_ms` is known if the kernel ended during the execution.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of `session::metrics`, which the journal stores as JSON")]
pub(in crate::api) struct ExecutionMetrics {
    /// The duration in milliseconds.
    wall_ms: f64,
    /// The CPU time of all processes of the session during the execution, in milliseconds.
    #[schema(nullable = false)]
    cpu_ms: Option<f64>,
    /// The peak memory of the session up to the end of the execution.
    #[schema(nullable = false)]
    peak_memory_bytes: Option<u64>,
}

/// The outputs of a cell after these events. With `refs`, large binary data and long text are referred to.
pub(in crate::api) async fn outputs<'a>(
    events: impl IntoIterator<Item = &'a EventRow>,
    blobs: &Blobs,
    refs: bool,
) -> Result<Vec<Value>, Problem> {
    let mut outputs = outputs_from_events(events);
    for output in &mut outputs {
        match refs {
            true => refer_to_long_text(output),
            false => inline_artifacts(output, blobs).await?,
        }
    }
    Ok(outputs)
}
