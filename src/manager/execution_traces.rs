//! Trace spans of executions. The journal feeds them; a span is recorded once the end of its execution is committed.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::ids::{CellNumber, SessionId};
use crate::session::{Cell, CellChange, CellPhase, EventBody, ExecutionResult, ExecutionStatus, Transaction};
use crate::telemetry::traces;

/// The unfinished executions of a session, for their spans.
pub(super) struct ExecutionTraces {
    session: SessionId,
    kernel: String,
    /// By cell id.
    unfinished: HashMap<String, Unfinished>,
}

#[derive(Debug, Default)]
struct Unfinished {
    /// The `traceparent` of the request that queued the execution.
    parent: Option<String>,
    queued_at: Option<SystemTime>,
    started: bool,
}

impl ExecutionTraces {
    /// `cells` holds executions that an earlier server left unfinished. `None` if no trace collector is configured.
    pub fn new(session: &SessionId, kernel: &str, cells: &[Cell]) -> Option<Self> {
        traces::is_enabled().then(|| {
            let unfinished = cells.iter().filter(|cell| cell.execution.phase != CellPhase::Finished).map(|cell| {
                let (parent, queued_at) = (cell.execution.trace.clone(), cell.execution.queued_at);
                (cell.id.clone(), Unfinished { parent, queued_at, started: cell.execution.phase == CellPhase::Running })
            });
            Self { session: session.clone(), kernel: kernel.to_owned(), unfinished: unfinished.collect() }
        })
    }

    /// Takes in a committed transaction. `cell_numbers` maps ids of cells to their numbers.
    pub fn follow(&mut self, transaction: &Transaction, cell_numbers: &HashMap<String, CellNumber>) {
        for event in &transaction.events {
            let Some(id) = &event.cell else { continue };
            match &event.body {
                EventBody::Queued => {
                    let number = cell_numbers.get(id);
                    let parent = transaction.cells.iter().find_map(|change| match change {
                        CellChange::Execution { number: its, execution } if Some(its) == number => execution.trace.clone(),
                        _ => None,
                    });
                    let unfinished = Unfinished { parent, queued_at: Some(event.time), started: false };
                    self.unfinished.insert(id.clone(), unfinished);
                }
                EventBody::Started => self.unfinished.entry(id.clone()).or_default().started = true,
                EventBody::Finished(result) => {
                    let unfinished = self.unfinished.remove(id).unwrap_or_default();
                    self.record(id, &unfinished, result);
                }
                _ => {}
            }
        }
    }

    fn record(&self, cell: &str, unfinished: &Unfinished, result: &ExecutionResult) {
        let ended_at = result.started_at.checked_add(result.wall).unwrap_or(result.started_at);
        traces::record_execution(&traces::ExecutionSpan {
            parent: unfinished.parent.as_deref(),
            session: self.session.as_str(),
            kernel: &self.kernel,
            cell,
            queued_at: unfinished.queued_at,
            started_at: unfinished.started.then_some(result.started_at),
            ended_at,
            status: result.status.name(),
            failed: !matches!(result.status, ExecutionStatus::Ok | ExecutionStatus::Cancelled),
            used: result.used.as_ref().map(|used| (used.cpu_seconds * 1000.0, used.peak_memory_bytes)),
        });
    }
}
