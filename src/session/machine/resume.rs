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
    pub resume: Resume<JournaledWidgets>,
    pub rows: Vec<(OutputTarget, StoredRow)>,
}

/// `None` where some of it cannot be read, for example because another version wrote it.
pub(super) fn read(stored: &Stored) -> Option<StoredState> {
    let resume = serde_json::from_str(stored.resume.as_deref()?).ok()?;
    let rows = stored.outputs.iter().map(|(target, json)| Some((*target, serde_json::from_str(json).ok()?)));
    Some(StoredState { resume, rows: rows.collect::<Option<_>>()? })
}
