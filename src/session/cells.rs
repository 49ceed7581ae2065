//! A session's notebook: its cells in order, with how the last run of each stands. Pure.

use std::collections::HashMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::run::{RunResult, RunStatus};
use crate::ids::{self, RunId, Seq};

/// What a cell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellType {
    /// Code, which can be run.
    Code,
    /// Text between.
    Markdown,
    /// Text for other programs.
    Raw,
}

impl CellType {
    /// Its name in nbformat and in the contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Markdown => "markdown",
            Self::Raw => "raw",
        }
    }

    /// The type of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Code, Self::Markdown, Self::Raw].into_iter().find(|kind| kind.name() == name)
    }
}

/// How a cell is to be run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunOptions {
    /// Seconds until it is stopped. `None`: never.
    pub timeout_seconds: Option<f64>,
    /// Whether the code may ask for input. Without, `input()` raises an error at once.
    pub allow_stdin: bool,
    /// Cells that were queued together: once one of them fails, those behind it are cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Whether an error in it leaves the rest of its group alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_error: bool,
}

/// Where a cell's last run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellPhase {
    /// Waits for its turn.
    Queued,
    /// The kernel works on it.
    Running,
    /// It has ended, or was never run.
    #[default]
    Finished,
}

impl CellPhase {
    /// Its name in the contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Finished => "finished",
        }
    }

    /// The phase of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Queued, Self::Running, Self::Finished].into_iter().find(|phase| phase.name() == name)
    }
}

/// How a cell's last run stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellRun {
    /// Where it stands.
    pub phase: CellPhase,
    /// When it was queued.
    pub queued_at: Option<SystemTime>,
    /// What asked for it, as a `traceparent`, where traces are kept.
    pub trace: Option<String>,
    /// The `msg_id` of its request.
    pub run: Option<RunId>,
    /// When the kernel was given it.
    pub started_at: Option<SystemTime>,
    /// Its end.
    pub result: Option<RunResult>,
    /// Its outputs are told by the cell's events from this number on.
    pub first_seq: Seq,
    /// The cell's last event.
    pub last_seq: Seq,
}

/// Which cell, and which of its runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunOfCell {
    /// The cell's number.
    pub number: u32,
    /// The event with which the run was queued.
    pub first_seq: Seq,
}

/// A cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Its number in the session, in the order of making, from 1.
    pub number: u32,
    /// Its nbformat id.
    pub id: String,
    /// Cells are ordered by this.
    pub place: f64,
    /// What it is.
    pub cell_type: CellType,
    /// The source.
    pub source: String,
    /// Its metadata.
    pub metadata: Map<String, Value>,
    /// How it is run.
    pub options: RunOptions,
    /// How its last run stands.
    pub run: CellRun,
}

/// The runs of a session. Their ids are counted, so each is known by its own, however long ago it was and whatever became of its cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Runs {
    /// What their ids begin with: drawn at random, so that none is another's.
    name: String,
    count: u64,
}

impl Default for Runs {
    fn default() -> Self {
        let mut name = ids::random_uuid();
        name.truncate(name.rfind('-').unwrap_or(name.len()));
        Self { name, count: 0 }
    }
}

impl Runs {
    /// A new one. Its id has the form of a UUID, as those of Jupyter's own front ends.
    pub fn begin(&mut self) -> RunId {
        self.count += 1;
        self.id(self.count)
    }

    fn id(&self, number: u64) -> RunId {
        RunId(format!("{}-{number:012x}", self.name))
    }

    /// Whether there was such a run.
    pub fn had(&self, id: &str) -> bool {
        let number = id.rsplit_once('-').and_then(|(_, number)| u64::from_str_radix(number, 16).ok());
        number.is_some_and(|number| (1..=self.count).contains(&number) && self.id(number).0 == id)
    }
}

/// All cells of a session.
#[derive(Debug, Default)]
pub(super) struct Cells {
    cells: HashMap<u32, Cell>,
    by_id: HashMap<String, u32>,
    next: u32,
    /// No cell's place is larger.
    last_place: f64,
    bytes: usize,
}

impl Cells {
    /// Cells as they were stored.
    pub fn restore(stored: Vec<Cell>) -> Self {
        let mut cells = Self::default();
        for cell in stored {
            cells.next = cells.next.max(cell.number);
            cells.put(cell);
        }
        cells
    }

    /// A run begins.
    pub fn begin(&mut self, number: u32, run: &RunId, now: SystemTime) {
        if let Some(cell) = self.cells.get_mut(&number) {
            (cell.run.phase, cell.run.run, cell.run.started_at) = (CellPhase::Running, Some(run.clone()), Some(now));
        }
    }

    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Bytes of all sources and metadata, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn number(&self, id: &str) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    pub fn get(&self, number: u32) -> Option<&Cell> {
        self.cells.get(&number)
    }

    pub fn set_options(&mut self, number: u32, options: RunOptions) {
        if let Some(cell) = self.cells.get_mut(&number) {
            cell.options = options;
        }
    }

    pub fn run_mut(&mut self, number: u32) -> Option<&mut CellRun> {
        self.cells.get_mut(&number).map(|cell| &mut cell.run)
    }

    /// The number and place of a cell to be appended.
    pub fn next_number_and_place(&mut self) -> (u32, f64) {
        self.next += 1;
        (self.next, self.last_place.floor() + 1.0)
    }

    /// Puts a cell in, new or edited.
    pub fn put(&mut self, cell: Cell) {
        self.remove(cell.number);
        self.last_place = self.last_place.max(cell.place);
        self.bytes += size(&cell);
        self.by_id.insert(cell.id.clone(), cell.number);
        self.cells.insert(cell.number, cell);
    }

    pub fn remove(&mut self, number: u32) -> Option<Cell> {
        let cell = self.cells.remove(&number)?;
        self.by_id.remove(&cell.id);
        self.bytes -= size(&cell);
        Some(cell)
    }

    /// Gives all cells whole numbers as places, in their order; returns them.
    pub fn spread(&mut self) -> Vec<Cell> {
        // What is appended next stands behind them.
        self.last_place = self.cells.len() as f64;
        let mut cells: Vec<&mut Cell> = self.cells.values_mut().collect();
        cells.sort_by(|a, b| a.place.total_cmp(&b.place).then(a.number.cmp(&b.number)));
        let spread = cells.into_iter().enumerate().map(|(index, cell)| {
            cell.place = index as f64 + 1.0;
            cell.clone()
        });
        spread.collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Cell> {
        self.cells.values()
    }
}

/// Bytes that a cell takes beside its run.
pub(super) fn size(cell: &Cell) -> usize {
    const OVERHEAD: usize = 512;
    OVERHEAD + cell.id.len() + cell.source.len() + super::piece::json_size(&cell.metadata)
}

impl CellRun {
    /// How it ended.
    pub fn status(&self) -> Option<RunStatus> {
        self.result.as_ref().map(|result| result.status)
    }
}
