//! Runs a notebook on a session: cell after cell, with the rules of nbclient.
//!
//! Code cells run in order; blank ones and those tagged `skip-execution` are left as they are. A cell that fails ends the
//! run, unless errors are allowed for it (tag `raises-exception`) or for all. A kernel that died ends it in any case.
//! Whatever happens, every output that came is in the notebook.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::notebook::{Notebook, NotebookError};
use crate::output::{CellKey, Outputs, StreamStyle, Widgets};
use crate::session::{
    self, EventBody, NewCell, RunResult, RunStatus, SessionError, SessionEvent, SessionEvents, SessionHandle,
};
use crate::wire::Message;
use crate::wire::content::ErrorInfo;

/// How a notebook is run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The time limit of each cell. `None`: none.
    pub timeout: Option<Duration>,
    /// Go on after a failing cell.
    pub allow_errors: bool,
    /// How stream output is stored.
    pub stream_style: StreamStyle,
    /// Memory that the outputs of one cell may take here, bytes. `None`: a default that suits the default limits.
    pub output_memory: Option<usize>,
    /// By which the run can be stopped.
    pub interruption: Interruption,
}

/// A wish that a run should stop. Between two cells a session has nothing to interrupt and forgets that it was asked; this
/// remembers.
#[derive(Clone, Debug, Default)]
pub struct Interruption(Arc<AtomicBool>);

impl Interruption {
    /// Asks. The session must be interrupted besides, for the cell that runs.
    pub fn ask(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it has been asked for.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// What happens during a run, for those who show it.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A cell begins.
    CellStarted {
        /// Its place among all cells, from 0.
        index: usize,
        /// Its place among the cells to be run, from 1.
        number: usize,
        /// How many cells are to be run.
        total: usize,
        /// The first line of its source.
        title: &'a str,
    },
    /// Output as it comes.
    Output {
        /// The message's type.
        msg_type: &'a str,
        /// The message.
        message: &'a Message,
    },
    /// An escalation, a lost stretch and the like.
    Notice(&'a str),
    /// A cell has ended; its outputs are in the notebook.
    CellFinished {
        /// Its place among all cells, from 0.
        index: usize,
        /// How it ended.
        result: &'a RunResult,
        /// The notebook as it stands.
        notebook: &'a Notebook,
    },
}

/// One executed cell.
#[derive(Clone, Debug)]
pub struct CellReport {
    /// Its place among all cells, from 0.
    pub index: usize,
    /// Its id.
    pub id: String,
    /// How it ended.
    pub status: RunStatus,
    /// Whether an error in it was allowed.
    pub allowed: bool,
    /// How long it took.
    pub wall: Duration,
    /// The error, if any.
    pub error: Option<ErrorInfo>,
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// The executed cells, in order.
    pub cells: Vec<CellReport>,
    /// How many were to be run.
    pub total: usize,
    /// From the first cell to the last.
    pub wall: Duration,
    /// Whether it was stopped between two cells.
    pub interrupted: bool,
}

impl RunReport {
    /// The cell that ended the run, if one did.
    pub fn failure(&self) -> Option<&CellReport> {
        self.cells.last().filter(|cell| cell.status != RunStatus::Ok && !cell.allowed)
    }

    /// The worst that happened: the failure's status, else ok.
    pub fn status(&self) -> RunStatus {
        let otherwise = if self.interrupted { RunStatus::Interrupted } else { RunStatus::Ok };
        self.failure().map_or(otherwise, |cell| cell.status)
    }
}

/// Runs the code cells of `notebook` on a session that tells messages in `events`, and puts their outputs into it.
///
/// # Errors
/// [`SessionError`] when the session ends between two cells, and [`NotebookError`] never for a notebook that was parsed.
/// Outputs until then are in the notebook.
pub async fn run_notebook(
    session: &SessionHandle,
    events: &mut SessionEvents,
    notebook: &mut Notebook,
    options: &RunOptions,
    progress: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Result<RunReport, RunError> {
    let started = Instant::now();
    let cells: Vec<usize> = (0..notebook.len()).filter(|index| is_to_be_run(notebook, *index)).collect();
    if let Some(info) = session.kernel_info().get("language_info").filter(|info| info.is_object()) {
        notebook.set_language_info(info.clone());
    }
    let widgets = Widgets::new(options.stream_style);
    let mut run =
        Run { session, events, options, outputs: outputs(options), widgets, widgets_cut: false, indexes: HashMap::new() };
    let mut report = RunReport { cells: Vec::new(), total: cells.len(), wall: Duration::ZERO, interrupted: false };
    for (number, &index) in cells.iter().enumerate() {
        if options.interruption.is_asked() {
            report.interrupted = true;
            break;
        }
        let Some(cell) = notebook.cell(index) else { continue };
        let (source, id) = (cell.source().into_owned(), cell.id().to_owned());
        let tagged = cell.has_tag("raises-exception");
        let title = source.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
        progress(Progress::CellStarted { index, number: number + 1, total: report.total, title: &title });
        let result = match run.cell(source, index, notebook, progress).await {
            Ok(result) => result,
            Err(error) => {
                // What came of the cell before its session went is kept, too.
                notebook.set_outputs(index, run.outputs.outputs(key(index)).to_vec(), Some(number as i64 + 1))?;
                return Err(error);
            }
        };
        // As in nbclient: cells are numbered by the order in which this run executed them.
        record(notebook, index, run.outputs.outputs(key(index)).to_vec(), &result, number as i64 + 1)?;
        progress(Progress::CellFinished { index, result: &result, notebook });
        let allowed = (options.allow_errors || tagged) && result.status == RunStatus::Error;
        let ends = result.status != RunStatus::Ok && !allowed;
        report.cells.push(CellReport { index, id, status: result.status, allowed, wall: result.wall, error: result.error });
        if ends {
            break;
        }
    }
    if let Some(widgets) = run.widgets.metadata() {
        notebook.metadata_mut().insert("widgets".to_owned(), widgets);
    }
    report.wall = started.elapsed();
    Ok(report)
}

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The session ended.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The notebook cannot take an output.
    #[error(transparent)]
    Notebook(#[from] NotebookError),
}

fn is_to_be_run(notebook: &Notebook, index: usize) -> bool {
    notebook
        .cell(index)
        .is_some_and(|cell| cell.is_code() && !cell.source().trim().is_empty() && !cell.has_tag("skip-execution"))
}

fn key(index: usize) -> CellKey {
    CellKey(u32::try_from(index).unwrap_or(u32::MAX))
}

fn outputs(options: &RunOptions) -> Outputs {
    let outputs = Outputs::new(options.stream_style);
    match options.output_memory {
        Some(memory) => outputs.with_memory(memory),
        None => outputs,
    }
}

/// A run in progress.
struct Run<'a> {
    session: &'a SessionHandle,
    events: &'a mut SessionEvents,
    options: &'a RunOptions,
    outputs: Outputs,
    widgets: Widgets,
    /// Whether it has been told that some of their state is missing.
    widgets_cut: bool,
    /// Where the session's cells stand in the notebook.
    indexes: HashMap<String, usize>,
}

impl Run<'_> {
    async fn cell(
        &mut self,
        source: String,
        index: usize,
        notebook: &mut Notebook,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<RunResult, RunError> {
        let timeout_seconds = self.options.timeout.map(|limit| limit.as_secs_f64());
        let options = session::RunOptions { timeout_seconds, ..session::RunOptions::default() };
        let cell = self.session.add_cell(NewCell { source, options, run: true, ..NewCell::default() }).await?;
        self.indexes.insert(cell.id.clone(), index);
        // Asked for just before the session got the cell: it knows nothing of it.
        if self.options.interruption.is_asked() {
            self.session.interrupt().await?;
        }
        self.outputs.start(key(index));
        let mut touched = BTreeSet::new();
        while let Some(event) = self.events.recv().await {
            match event.body {
                EventBody::Finished(result) if event.cell.as_ref() == Some(&cell.id) => {
                    touched.remove(&key(index));
                    rewrite(notebook, &self.outputs, &touched)?;
                    self.tell_widgets(&result, progress).await?;
                    return Ok(*result);
                }
                _ => touched.append(&mut self.take(&event, progress)),
            }
        }
        Err(SessionError::Gone { why: "its driver ended without a word".to_owned() }.into())
    }

    /// Output widgets have caught what the kernel does not know of yet.
    async fn tell_widgets(
        &mut self,
        result: &RunResult,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<(), RunError> {
        let syncs = self.widgets.syncs();
        if self.widgets.is_cut() && !std::mem::replace(&mut self.widgets_cut, true) {
            progress(Progress::Notice(
                "the state of the notebook's widgets takes too much memory; a part of it is left out",
            ));
        }
        if !result.kernel_gone {
            for sync in syncs {
                self.session.comm_msg(sync.content, sync.parent).await?;
            }
        }
        Ok(())
    }

    /// Takes in what a cell says: mostly the running one, but threads go on after their cell's end. Gives the changed cells.
    fn take(&mut self, event: &SessionEvent, progress: &mut (dyn FnMut(Progress<'_>) + Send)) -> BTreeSet<CellKey> {
        match &event.body {
            EventBody::Message { msg_type, message } => {
                progress(Progress::Output { msg_type, message });
                let index = event.cell.as_ref().and_then(|id| self.indexes.get(id));
                let Some(index) = index else { return BTreeSet::new() };
                let msg_type = match self.widgets.take(msg_type, message) {
                    false => msg_type,
                    // Its own place is in the widget; elsewhere it is at most a newer state of a display id.
                    true if matches!(msg_type.as_str(), "display_data" | "execute_result") => "update_display_data",
                    true => return BTreeSet::new(),
                };
                return self.outputs.apply(key(*index), msg_type, &message.content);
            }
            body => {
                if let Some(notice) = body.notice() {
                    progress(Progress::Notice(&notice));
                }
            }
        }
        BTreeSet::new()
    }
}

/// A display id reaches back: cells that have already been written get the new picture too.
fn rewrite(notebook: &mut Notebook, outputs: &Outputs, earlier: &BTreeSet<CellKey>) -> Result<(), NotebookError> {
    for cell in earlier {
        let index = cell.0 as usize;
        let count = notebook.cell(index).and_then(|cell| cell.execution_count()).map(u64::cast_signed);
        notebook.set_outputs(index, outputs.outputs(*cell).to_vec(), count)?;
    }
    Ok(())
}

fn record(
    notebook: &mut Notebook,
    index: usize,
    mut all: Vec<Value>,
    result: &RunResult,
    count: i64,
) -> Result<(), NotebookError> {
    all.extend(result.untold_error());
    notebook.set_outputs(index, all, Some(count))?;
    let times: Vec<(&str, &str)> = result.timing.iter().map(|(name, time)| (name.as_str(), time.as_str())).collect();
    notebook.set_execution_timing(index, &times)
}
