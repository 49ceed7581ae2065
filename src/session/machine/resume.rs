//! What a later server needs to go on with a session, besides the rows of cells and outputs.

use serde::{Deserialize, Serialize};

use super::executions::JournaledExecutions;
use super::kernel_lifecycle::JournaledLifecycle;
use super::outputs::{JournaledWidgets, StoredRow};
use crate::ids::Seq;
use crate::link::Position;
use crate::output::OutputTarget;
use crate::session::cell::Cell;

/// A session as an earlier server has stored it.
#[derive(Debug, Default)]
pub struct Stored {
    pub cells: Vec<Cell>,
    /// Number of its last event.
    pub last_seq: Seq,
    /// The agent's last event in the journal.
    pub position: Position,
    /// The last [`Transaction::resume`](crate::session::Transaction::resume).
    pub resume: Option<String>,
    /// The rows of [`Transaction::outputs`](crate::session::Transaction::outputs).
    pub outputs: Vec<(OutputTarget, String)>,
    /// The last [`Transaction::kernel_info`](crate::session::Transaction::kernel_info). It is the kernel's own JSON text, which only
    /// the lenient parser may read.
    pub kernel_info: Option<String>,
}

/// State of the machine's parts. `W` is borrowed when it is written and owned when it is read.
#[derive(Serialize, Deserialize)]
pub(super) struct Resume<W> {
    pub kernel: JournaledLifecycle,
    pub executions: JournaledExecutions,
    pub widgets: W,
    /// Whether events were lost and the kernel must be probed.
    pub needs_probe: bool,
}

/// What a [`Stored`] session holds besides its cells, read.
pub(super) struct StoredState {
    /// `None` if it cannot be read, for example because another version wrote it. Then no row is of use either.
    pub resume: Option<Resume<JournaledWidgets>>,
    pub rows: Vec<(OutputTarget, StoredRow)>,
    /// Targets whose row is of no use, and is to be removed.
    pub useless: Vec<OutputTarget>,
}

pub(super) fn read(stored: &Stored) -> StoredState {
    let resume = stored.resume.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let (mut rows, mut useless) = (Vec::new(), Vec::new());
    for (target, json) in &stored.outputs {
        match serde_json::from_str(json) {
            Ok(row) if resume.is_some() => rows.push((*target, row)),
            _ => useless.push(*target),
        }
    }
    StoredState { resume, rows, useless }
}
