//! A session's runs as traces tell of them: followed in its journal, and told once their end is written down.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::ids::{CellNumber, SessionId};
use crate::session::{Cell, CellChange, CellPhase, EventBody, RunResult, RunStatus, Transaction};
use crate::telemetry::traces;

/// The runs of a session that have not ended.
pub(super) struct Executions {
    session: SessionId,
    kernel: String,
    /// By their cells.
    open: HashMap<String, Open>,
}

#[derive(Debug, Default)]
struct Open {
    parent: Option<String>,
    queued_at: Option<SystemTime>,
    started: bool,
}

impl Executions {
    /// Those of a session, with what an earlier server has left open. `None` where nobody collects traces.
    pub fn of(session: &SessionId, kernel: &str, cells: &[Cell]) -> Option<Self> {
        traces::are_kept().then(|| {
            let open = cells.iter().filter(|cell| cell.run.phase != CellPhase::Finished).map(|cell| {
                let (parent, queued_at) = (cell.run.trace.clone(), cell.run.queued_at);
                (cell.id.clone(), Open { parent, queued_at, started: cell.run.phase == CellPhase::Running })
            });
            Self { session: session.clone(), kernel: kernel.to_owned(), open: open.collect() }
        })
    }

    /// Takes in a transaction that has been written down. `numbers`: those of the cells, by their ids.
    pub fn follow(&mut self, transaction: &Transaction, numbers: &HashMap<String, CellNumber>) {
        for event in &transaction.events {
            let Some(id) = &event.cell else { continue };
            match &event.body {
                EventBody::Queued => {
                    let number = numbers.get(id);
                    let parent = transaction.cells.iter().find_map(|change| match change {
                        CellChange::Run { number: its, run } if Some(its) == number => run.trace.clone(),
                        _ => None,
                    });
                    let open = Open { parent, queued_at: Some(event.time), started: false };
                    self.open.insert(id.clone(), open);
                }
                EventBody::Started => self.open.entry(id.clone()).or_default().started = true,
                EventBody::Finished(result) => {
                    let open = self.open.remove(id).unwrap_or_default();
                    self.tell(id, &open, result);
                }
                _ => {}
            }
        }
    }

    fn tell(&self, cell: &str, open: &Open, result: &RunResult) {
        let ended_at = result.started_at.checked_add(result.wall).unwrap_or(result.started_at);
        traces::tell(&traces::Run {
            parent: open.parent.as_deref(),
            session: self.session.as_str(),
            kernel: &self.kernel,
            cell,
            queued_at: open.queued_at,
            started_at: open.started.then_some(result.started_at),
            ended_at,
            status: result.status.name(),
            failed: !matches!(result.status, RunStatus::Ok | RunStatus::Cancelled),
            used: result.used.as_ref().map(|used| (used.cpu_seconds * 1000.0, used.peak_memory_bytes)),
        });
    }
}
