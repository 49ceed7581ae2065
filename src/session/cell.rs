//! A cell of a session's notebook, and the state of its last execution.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::execution::{ExecutionResult, ExecutionStatus};
use crate::agent_protocol::ExecutionContext;
pub use crate::ids::CellPhase;
use crate::ids::{CellNumber, ExecutionId, Seq};

/// Type of a cell, named as in nbformat and in the HTTP API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellType {
    /// The only type that can be executed.
    Code,
    Markdown,
    /// Text that is passed through to converters.
    Raw,
}

impl CellType {
    pub fn name(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Markdown => "markdown",
            Self::Raw => "raw",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::Code, Self::Markdown, Self::Raw].into_iter().find(|kind| kind.name() == name)
    }
}

/// How a cell is executed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExecutionOptions {
    /// Time limit in seconds; `None` for no limit.
    pub timeout_seconds: Option<f64>,
    /// Whether the code may ask for input. Without it, `input()` raises an error at once.
    pub allow_stdin: bool,
    /// Names a group of cells that were queued together. When one of them fails, those queued behind it are cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Whether an error in this cell leaves the rest of its group queued.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_error: bool,
    #[serde(default, skip_serializing_if = "ExecutionContext::is_default")]
    pub context: ExecutionContext,
}

/// A cell's last execution.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellExecution {
    pub phase: CellPhase,
    pub queued_at: Option<SystemTime>,
    /// W3C `traceparent` of the request that asked for it, where traces are kept.
    pub trace: Option<String>,
    /// The `msg_id` of its `execute_request`.
    pub id: Option<ExecutionId>,
    /// When the kernel was given it.
    pub started_at: Option<SystemTime>,
    pub result: Option<ExecutionResult>,
    /// The cell's events from this number on make up its outputs.
    pub first_seq: Seq,
    /// The cell's last event.
    pub last_seq: Seq,
}

impl CellExecution {
    pub fn status(&self) -> Option<ExecutionStatus> {
        self.result.as_ref().map(|result| result.status)
    }
}

/// Identifies one execution of one cell by the event that queued it.
#[derive(Clone, Copy, Debug)]
pub(in crate::session) struct QueuedExecution {
    pub number: CellNumber,
    pub first_seq: Seq,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Unique in the session, in order of creation, from 1.
    pub number: CellNumber,
    /// The nbformat id.
    pub id: String,
    /// Sort key: cells are ordered by it. New cells get a value between their neighbours.
    pub place: f64,
    pub cell_type: CellType,
    pub source: String,
    pub metadata: Map<String, Value>,
    pub options: ExecutionOptions,
    pub execution: CellExecution,
}

/// A cell to be added.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewCell {
    /// `None` for a fresh id.
    pub id: Option<String>,
    /// `None` for code.
    pub cell_type: Option<CellType>,
    pub source: String,
    pub metadata: Map<String, Value>,
    pub options: ExecutionOptions,
    /// Id of the cell that it follows; `None` for the end of the notebook.
    pub after: Option<String>,
    /// Whether it is queued at once.
    pub run: bool,
    /// Outputs that it already has, as nbformat objects. An execution replaces them.
    pub outputs: Vec<Value>,
}

/// Changes to a cell. `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellEdit {
    pub source: Option<String>,
    pub cell_type: Option<CellType>,
    pub metadata: Option<Map<String, Value>>,
    /// Moves the cell: id of the cell that it then follows, `Some(None)` for the beginning.
    pub after: Option<Option<String>>,
}
