//! What a session writes into its journal: numbered events, and the state that follows from them.

use std::time::SystemTime;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use super::cells::{Cell, CellRun, RunOptions};
use super::handle::SessionState;
use super::run::RunResult;
use crate::ids::Seq;
use crate::link::Position;
use crate::wire::Message;

/// One event of a session, as watchers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionEvent {
    /// Its number: from 1, without gaps.
    pub seq: Seq,
    /// When it was taken in.
    pub time: SystemTime,
    /// The id of the cell that it is about.
    pub cell: Option<String>,
    /// What happened.
    pub body: EventBody,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum EventBody {
    /// The session stands otherwise, or something about it should be known.
    State {
        /// Where it stands.
        state: SessionState,
        /// Something that people should know: an escalation, a process killed for memory.
        notice: Option<String>,
    },
    /// The cell waits for its turn. Its former outputs are gone.
    Queued,
    /// The kernel has been given the cell.
    Started,
    /// A message that is (or may be) an output, for those who fold for themselves ([`Telling::Messages`]).
    Message {
        /// Its type.
        msg_type: String,
        /// The message.
        message: Message,
    },
    /// A new output.
    Append {
        /// Its place in the cell's list.
        index: usize,
        /// The output, as nbformat has it.
        output: Value,
    },
    /// A stream output changed: its first `keep` bytes stand, and `text` follows them.
    Stream {
        /// Its place in the cell's list.
        index: usize,
        /// `stdout` or `stderr`.
        name: String,
        /// Bytes (UTF-8) of the former text that stand.
        keep: usize,
        /// What follows them.
        text: String,
        /// Whether all of the former text stands.
        grows: bool,
    },
    /// An output is replaced: a newer state of its display id.
    Update {
        /// Its place in the cell's list.
        index: usize,
        /// The output.
        output: Value,
    },
    /// All outputs of the cell are gone.
    Clear,
    /// The code asks for input.
    Input {
        /// What it asks.
        prompt: String,
        /// Whether the answer must not be shown.
        password: bool,
    },
    /// The cell has ended; all its outputs came before.
    Finished(Box<RunResult>),
    /// A comm message (widgets), as the kernel sent it.
    Comm {
        /// `comm_open`, `comm_msg` or `comm_close`.
        msg_type: String,
        /// Its content.
        content: Value,
        /// Its binary buffers.
        buffers: Vec<bytes::Bytes>,
    },
    /// Events of the sandbox were lost: its buffer overflowed while nobody took from it.
    Lost {
        /// First number, of the sandbox's own.
        from: Seq,
        /// Last number.
        to: Seq,
    },
    /// The notebook's cells changed.
    Notebook(NotebookChange),
}

/// In which form outputs are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// As changes of the cells' outputs, for a journal that many read.
    Changes,
    /// As the kernel's messages, for one reader who folds in a way of its own and shows messages as they come.
    Messages,
}

impl EventBody {
    /// What people should know of it, in words: escalations, losses.
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
    /// Bytes that it holds, roughly.
    pub fn size(&self) -> usize {
        const SMALL: usize = 256;
        SMALL
            + match &self.body {
                EventBody::Message { message, .. } => message.size(),
                EventBody::Append { output, .. } | EventBody::Update { output, .. } => value_size(output),
                EventBody::Stream { text, .. } => text.len(),
                EventBody::Comm { content, buffers, .. } => {
                    value_size(content) + buffers.iter().map(bytes::Bytes::len).sum::<usize>()
                }
                _ => 0,
            }
    }
}

/// How the notebook changed. The event's cell says where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotebookChange {
    /// A cell was added.
    Added,
    /// A cell's source, type, metadata or place was changed.
    Edited,
    /// A cell was removed.
    Deleted,
}

/// How one cell changes.
#[derive(Clone, Debug, PartialEq)]
pub enum CellChange {
    /// It is new, or edited.
    Put(Box<Cell>),
    /// It is run otherwise from now on.
    Options {
        /// Which cell.
        number: u32,
        /// How.
        options: RunOptions,
    },
    /// Its run stands otherwise.
    Run {
        /// Which cell.
        number: u32,
        /// How.
        run: Box<CellRun>,
    },
    /// It is gone.
    Delete {
        /// Which cell.
        number: u32,
    },
}

/// What of a cell's outputs a driver needs to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoldChange {
    /// The cell's number, or that of an Output widget.
    pub number: u32,
    /// As JSON; nothing any more for none.
    pub json: Option<String>,
}

impl CellChange {
    /// The number of the cell.
    pub fn number(&self) -> u32 {
        match self {
            Self::Put(cell) => cell.number,
            Self::Options { number, .. } | Self::Run { number, .. } | Self::Delete { number } => *number,
        }
    }
}

/// One piece of the journal. It is written whole or not at all, before anything that follows from it is done or told.
#[derive(Debug, Default)]
pub struct Piece {
    /// New events, in order.
    pub events: Vec<SessionEvent>,
    /// Changed cells.
    pub cells: Vec<CellChange>,
    /// Where the session stands, if that changed.
    pub state: Option<SessionState>,
    /// The agent's last event that is in this piece or before.
    pub position: Option<Position>,
    /// What a driver needs to go on from here, as JSON, if that changed. Only where the journal survives us.
    pub resume: Option<String>,
    /// What it needs to go on with the outputs of cells, where that changed. Only where the journal survives us.
    pub folds: Vec<FoldChange>,
    /// What the kernel says of itself, as JSON, if that changed. Only where the journal survives us.
    pub kernel_info: Option<String>,
    /// What a notebook file says beside the cells that came from it, as JSON.
    pub notebook: Option<String>,
}

impl Piece {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.position.is_none() && self.says_nothing()
    }

    /// Whether nothing follows from what was taken in.
    pub(super) fn tells_only_position(&self) -> bool {
        self.position.is_some() && self.says_nothing()
    }

    fn says_nothing(&self) -> bool {
        self.events.is_empty() && self.cells.is_empty() && self.state.is_none() && self.notebook.is_none()
    }
}

/// Why a piece could not be written. It can be tried again.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct JournalError(pub String);

/// Where a session writes.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Waits until whoever reads has taken enough that more may come. Cancel safe.
    async fn room(&self);

    /// Writes a piece down. What is in it survives this process once this returns, and only then is it told to watchers.
    ///
    /// # Errors
    /// [`JournalError`]; nothing was written then, and the same piece comes again.
    async fn append(&mut self, piece: &Piece) -> Result<(), JournalError>;
}

/// Bytes of a JSON object as text, roughly.
pub(super) fn json_size(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| key.len() + value_size(value) + 6).sum()
}

/// Bytes of a JSON value as text, roughly.
pub(super) fn value_size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| value_size(item) + 1).sum(),
        Value::Object(map) => json_size(map),
    }
}
