//! Runs a notebook on a session, cell by cell, with the rules of nbclient.
//!
//! Code cells run in order; blank cells and cells tagged `skip-execution` are left unchanged. A failed cell ends the run,
//! unless errors are allowed for it (tag `raises-exception`) or for all cells. A dead kernel always ends the run. Every
//! output that arrived is in the notebook, whatever happens.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::notebook::{Notebook, NotebookError};
use crate::output::{OutputTarget, Outputs, StreamStyle, Widgets};
use crate::session::{
    self, EventBody, ExecutionResult, ExecutionStatus, NewCell, SessionError, SessionEvent, SessionEvents, SessionHandle,
};
use crate::wire::Message;
use crate::wire::content::ErrorInfo;

#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The time limit of each cell; `None` is unlimited.
    pub timeout: Option<Duration>,
    /// Continue after a failed cell.
    pub allow_errors: bool,
    pub stream_style: StreamStyle,
    /// Cap of the outputs of one cell in this process's memory, bytes. `None` is a default that fits the default limits.
    pub output_memory: Option<usize>,
    pub interrupt: InterruptFlag,
}

/// A request to stop a run. Between two cells a session has nothing to interrupt and ignores an interrupt; this flag
/// remembers it.
#[derive(Clone, Debug, Default)]
pub struct InterruptFlag(Arc<AtomicBool>);

impl InterruptFlag {
    /// Requests the stop. The caller must also interrupt the session, for the cell that is running.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Progress of a run, for display.
#[derive(Debug)]
pub enum Progress<'a> {
    CellStarted {
        /// Among all cells, from 0.
        index: usize,
        /// Among the cells that will run, from 1.
        number: usize,
        /// How many cells will run.
        total: usize,
        /// The first line of its source.
        title: &'a str,
    },
    Output {
        msg_type: &'a str,
        message: &'a Message,
    },
    /// An interrupt escalation, lost events and the like, for people.
    Notice(&'a str),
    /// The outputs of the finished cell are in the notebook.
    CellFinished {
        /// Among all cells, from 0.
        index: usize,
        result: &'a ExecutionResult,
        notebook: &'a Notebook,
    },
}

/// One executed cell.
#[derive(Clone, Debug)]
pub struct CellReport {
    /// Among all cells, from 0.
    pub index: usize,
    pub id: String,
    pub status: ExecutionStatus,
    /// Whether the cell failed and errors were allowed for it.
    pub allowed: bool,
    pub wall: Duration,
    pub error: Option<ErrorInfo>,
}

#[derive(Clone, Debug)]
pub struct RunReport {
    /// The executed cells, in order.
    pub cells: Vec<CellReport>,
    /// How many cells would have run without a failure.
    pub total: usize,
    pub wall: Duration,
    /// Whether the run was stopped between two cells.
    pub interrupted: bool,
}

impl RunReport {
    /// The cell whose failure ended the run.
    pub fn failure(&self) -> Option<&CellReport> {
        self.cells.last().filter(|cell| cell.status != ExecutionStatus::Ok && !cell.allowed)
    }

    /// The status of the failure, else `Interrupted` if the run was stopped, else `Ok`.
    pub fn status(&self) -> ExecutionStatus {
        let otherwise = if self.interrupted { ExecutionStatus::Interrupted } else { ExecutionStatus::Ok };
        self.failure().map_or(otherwise, |cell| cell.status)
    }
}

/// Runs the code cells of `notebook` on a session, whose `events` it consumes, and stores their outputs in the notebook.
///
/// # Errors
/// [`SessionError`] when the session ends; outputs until then are in the notebook. [`NotebookError`] never happens for a
/// notebook that was parsed.
pub async fn run_notebook(
    session: &SessionHandle,
    events: &mut SessionEvents,
    notebook: &mut Notebook,
    options: &RunOptions,
    progress: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Result<RunReport, RunError> {
    let started = Instant::now();
    let cells: Vec<usize> = (0..notebook.len()).filter(|index| is_runnable(notebook, *index)).collect();
    if let Some(info) = session.kernel_info().get("language_info").filter(|info| info.is_object()) {
        notebook.set_language_info(info.clone());
    }
    let widgets = Widgets::new(options.stream_style);
    let mut run =
        Run { session, events, options, outputs: outputs(options), widgets, widgets_cut: false, indexes: HashMap::new() };
    let mut report = RunReport { cells: Vec::new(), total: cells.len(), wall: Duration::ZERO, interrupted: false };
    for (number, &index) in cells.iter().enumerate() {
        if options.interrupt.is_requested() {
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
                // Keep the outputs that arrived before the session ended.
                notebook.set_outputs(index, run.outputs.outputs(key(index)).to_vec(), Some(number as i64 + 1))?;
                return Err(error);
            }
        };
        // As in nbclient: cells are numbered by the order in which this run executed them.
        record(notebook, index, run.outputs.outputs(key(index)).to_vec(), &result, number as i64 + 1)?;
        progress(Progress::CellFinished { index, result: &result, notebook });
        let allowed = (options.allow_errors || tagged) && result.status == ExecutionStatus::Error;
        let ends_run = result.status != ExecutionStatus::Ok && !allowed;
        report.cells.push(CellReport { index, id, status: result.status, allowed, wall: result.wall, error: result.error });
        if ends_run {
            break;
        }
    }
    if let Some(widgets) = run.widgets.metadata() {
        notebook.metadata_mut().insert("widgets".to_owned(), widgets);
    }
    report.wall = started.elapsed();
    Ok(report)
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Notebook(#[from] NotebookError),
}

fn is_runnable(notebook: &Notebook, index: usize) -> bool {
    notebook
        .cell(index)
        .is_some_and(|cell| cell.is_code() && !cell.source().trim().is_empty() && !cell.has_tag("skip-execution"))
}

fn key(index: usize) -> OutputTarget {
    OutputTarget::cell(u32::try_from(index).unwrap_or(u32::MAX))
}

fn outputs(options: &RunOptions) -> Outputs {
    let outputs = Outputs::new(options.stream_style);
    match options.output_memory {
        Some(memory) => outputs.with_memory(memory),
        None => outputs,
    }
}

struct Run<'a> {
    session: &'a SessionHandle,
    events: &'a mut SessionEvents,
    options: &'a RunOptions,
    outputs: Outputs,
    widgets: Widgets,
    /// Whether it has been told that some of their state is missing.
    widgets_cut: bool,
    /// Session cell id → index in the notebook.
    indexes: HashMap<String, usize>,
}

impl Run<'_> {
    async fn cell(
        &mut self,
        source: String,
        index: usize,
        notebook: &mut Notebook,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<ExecutionResult, RunError> {
        let timeout_seconds = self.options.timeout.map(|limit| limit.as_secs_f64());
        let options = session::ExecutionOptions { timeout_seconds, ..session::ExecutionOptions::default() };
        let cell = self.session.add_cell(NewCell { source, options, run: true, ..NewCell::default() }).await?;
        self.indexes.insert(cell.id.clone(), index);
        // An interrupt that was requested before the cell was queued found nothing to interrupt.
        if self.options.interrupt.is_requested() {
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
                _ => touched.append(&mut self.apply(&event, progress)),
            }
        }
        Err(SessionError::Gone { why: "its driver ended unexpectedly".to_owned() }.into())
    }

    /// Output widgets have caught what the kernel does not know of yet.
    async fn tell_widgets(
        &mut self,
        result: &ExecutionResult,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<(), RunError> {
        let syncs = self.widgets.take_syncs();
        if self.widgets.is_truncated() && !std::mem::replace(&mut self.widgets_cut, true) {
            progress(Progress::Notice(
                "the state of the notebook's widgets takes too much memory; a part of it is left out",
            ));
        }
        if !result.kernel_gone {
            for sync in syncs {
                self.session.comm_msg(&sync.content, sync.parent).await?;
            }
        }
        Ok(())
    }

    /// Applies one event: mostly of the running cell, but threads outlive their cell. Returns the cells whose outputs
    /// changed.
    fn apply(&mut self, event: &SessionEvent, progress: &mut (dyn FnMut(Progress<'_>) + Send)) -> BTreeSet<OutputTarget> {
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

/// Stores cells again whose outputs changed after their end, for example by an update of their display id.
fn rewrite(notebook: &mut Notebook, outputs: &Outputs, changed: &BTreeSet<OutputTarget>) -> Result<(), NotebookError> {
    for cell in changed {
        let Some(index) = cell.cell_index() else { continue };
        let count = notebook.cell(index).and_then(|cell| cell.execution_count()).map(u64::cast_signed);
        notebook.set_outputs(index, outputs.outputs(*cell).to_vec(), count)?;
    }
    Ok(())
}

fn record(
    notebook: &mut Notebook,
    index: usize,
    mut all: Vec<Value>,
    result: &ExecutionResult,
    count: i64,
) -> Result<(), NotebookError> {
    all.extend(result.unsent_error());
    notebook.set_outputs(index, all, Some(count))?;
    let times: Vec<(&str, &str)> = result.timing.iter().map(|(name, time)| (name.as_str(), time.as_str())).collect();
    notebook.set_execution_timing(index, &times)
}
