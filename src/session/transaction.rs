//! What a session commits: numbered events, and the rows that follow from them.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cell::{Cell, CellExecution, ExecutionOptions};
use super::execution::ExecutionResult;
use super::state::SessionState;
use crate::agent_protocol::{FileChange, FileChanges};
use crate::ids::{CellNumber, Seq};
use crate::link::Position;
use crate::output::{OutputTarget, TextOffset};
use crate::wire::{Message, json};

/// One event of a session, as subscribers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionEvent {
    /// From 1, without gaps.
    pub seq: Seq,
    /// When the machine took it in.
    pub time: SystemTime,
    /// The id of the cell that it is about.
    pub cell: Option<String>,
    pub body: EventBody,
}

#[derive(Clone, Debug, PartialEq)]
pub enum EventBody {
    /// The session's state changed, or people should know something about it.
    State {
        state: SessionState,
        /// An escalation, a process killed for memory and the like, in words.
        notice: Option<String>,
    },
    /// The cell was queued. Its former outputs are gone.
    Queued,
    /// The kernel has been given the cell.
    Started,
    /// A message that is or may be an output, in [`OutputMode::Messages`].
    Message { msg_type: String, message: Message },
    /// A new output at the end of the cell's list.
    Append {
        index: usize,
        /// As an nbformat object.
        output: Value,
    },
    /// A stream output changed: its text before `keep` stays, and `text` follows it.
    Stream {
        /// Index in the cell's list of outputs.
        index: usize,
        /// `stdout` or `stderr`.
        name: String,
        keep: TextOffset,
        text: String,
        /// Whether all of the former text stays.
        grows: bool,
    },
    /// An output is replaced, mostly by a newer state of its display id.
    Update { index: usize, output: Value },
    /// All outputs of the cell are gone.
    Clear,
    /// The code asks for input.
    Input {
        prompt: String,
        /// Whether the answer must not be echoed.
        password: bool,
    },
    /// The execution has ended. All its outputs came before, except late ones.
    Finished(Box<ExecutionResult>),
    /// A comm message (widgets), as the kernel sent it.
    Comm {
        /// `comm_open`, `comm_msg` or `comm_close`.
        msg_type: String,
        content: Value,
        buffers: Vec<bytes::Bytes>,
    },
    /// Files of the workspace have changed.
    Files(FileChanges),
    /// A file that the execution leaves as an artifact, with its content, or empty if it is not kept.
    ArtifactFile { change: FileChange, data: bytes::Bytes },
    /// Events of the agent were lost: its buffer overflowed while no server took from it. The numbers are the agent's.
    Lost {
        from: Seq,
        /// Inclusive.
        to: Seq,
    },
    /// The notebook's cells changed.
    Notebook(NotebookChange),
}

/// The form in which a session reports outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputMode {
    /// As changes of the cells' outputs, for a journal with many readers.
    Changes,
    /// As the kernel's messages, for one reader that folds them itself.
    Messages,
}

impl EventBody {
    /// The notice in it, in words: an escalation, a loss.
    pub fn notice(&self) -> Option<String> {
        match self {
            Self::State { notice, .. } => notice.clone(),
            Self::Lost { from, to } => {
                Some(format!("events {from} to {to} of the sandbox were lost: its buffer overflowed"))
            }
            _ => None,
        }
    }
}

impl SessionEvent {
    /// Estimate of the memory that it takes, in bytes.
    pub fn size(&self) -> usize {
        const SMALL: usize = 256;
        SMALL
            + match &self.body {
                EventBody::Message { message, .. } => message.size(),
                EventBody::Append { output, .. } | EventBody::Update { output, .. } => json::size(output),
                EventBody::Stream { text, .. } => text.len(),
                EventBody::Files(changes) => changes.size(),
                EventBody::ArtifactFile { change, data } => change.path.len() + data.len(),
                EventBody::Comm { content, buffers, .. } => {
                    json::size(content) + buffers.iter().map(bytes::Bytes::len).sum::<usize>()
                }
                _ => 0,
            }
    }
}

/// How the event's cell changed in the notebook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotebookChange {
    Added,
    /// Source, type, metadata or place changed.
    Edited,
    Deleted,
}

/// A change of one cell's row.
#[derive(Clone, Debug, PartialEq)]
pub enum CellChange {
    /// New, or edited.
    Put(Box<Cell>),
    /// Without the source, which may be long.
    Options {
        number: CellNumber,
        options: ExecutionOptions,
    },
    Execution {
        number: CellNumber,
        execution: Box<CellExecution>,
    },
    Delete {
        number: CellNumber,
    },
}

/// What a later server needs to go on with the outputs of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputState {
    pub target: OutputTarget,
    /// JSON; `None` removes the row.
    pub json: Option<String>,
}

impl CellChange {
    pub fn number(&self) -> CellNumber {
        match self {
            Self::Put(cell) => cell.number,
            Self::Options { number, .. } | Self::Execution { number, .. } | Self::Delete { number } => *number,
        }
    }
}

/// Changes that are committed together, before any effect of them is visible.
#[derive(Debug, Default)]
pub struct Transaction {
    /// In order of their numbers.
    pub events: Vec<SessionEvent>,
    pub cells: Vec<CellChange>,
    pub state: Option<SessionState>,
    /// The agent's last event that is in this transaction or before.
    pub position: Option<Position>,
    /// What a later server needs to go on, as JSON, if that changed. Only for journals that outlive the process.
    pub resume: Option<String>,
    /// The same for outputs, a row for each target that changed.
    pub outputs: Vec<OutputState>,
    /// Content of the `kernel_info_reply` as JSON, if that changed. Only for journals that outlive the process.
    pub kernel_info: Option<String>,
    /// What an imported notebook file holds besides its cells, as JSON.
    pub notebook: Option<String>,
}

impl Transaction {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.position.is_none() && self.has_no_change()
    }

    /// Whether it only acknowledges messages without effect.
    pub(super) fn is_position_only(&self) -> bool {
        self.position.is_some() && self.has_no_change()
    }

    fn has_no_change(&self) -> bool {
        self.events.is_empty() && self.cells.is_empty() && self.state.is_none() && self.notebook.is_none()
    }
}
