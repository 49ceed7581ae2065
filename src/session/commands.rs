//! What clients ask for: cells and their order, runs, interrupts, answers, restarts. Each is done, or denied with a reason.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::cells::{Cell, CellPhase, CellRun, CellType, Cells, RunOfCell, RunOptions, size};
use super::core::{Core, Effect};
use super::handle::SessionState;
use super::piece::{CellChange, EventBody, NotebookChange, json_size};
use super::run::{Now, RunResult, RunStatus, StopReason};
use crate::agent_protocol::SUBMIT_MAX;
use crate::ids::{self, Generation};
use crate::output::{CellKey, Change};
use crate::wire::{Channel, Message};

/// Cells of one session.
const MAX_CELLS: usize = 100_000;
/// Bytes of all sources and metadata of one session.
const MAX_NOTEBOOK: usize = 256 << 20;
/// Bytes of code in one request to the kernel, as JSON has them; what goes with it takes less than what is left of a request.
const MAX_SOURCE: usize = SUBMIT_MAX - (64 << 10);
/// Bytes of one answer to the code's question.
const MAX_ANSWER: usize = 1 << 20;
/// Cells that wait for their turn.
const MAX_QUEUE: usize = 10_000;

/// Why a session does not do what it is asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// It is over.
    #[error("the session is over: {why}")]
    Gone {
        /// Why.
        why: String,
    },
    /// There is no such cell.
    #[error("there is no cell {id:?} in this session")]
    NoCell {
        /// The id asked for.
        id: String,
    },
    /// Another cell has that id.
    #[error("there is a cell {id:?} already")]
    IdTaken {
        /// The id.
        id: String,
    },
    /// Not an id by nbformat's rules.
    #[error("{id:?} is no cell id: 1 to 64 letters, digits, - and _ are")]
    BadId {
        /// The id.
        id: String,
    },
    /// Only code can be run.
    #[error("cell {id:?} is no code cell")]
    NotCode {
        /// The id.
        id: String,
    },
    /// It is queued or running already.
    #[error("cell {id:?} is {phase} already")]
    InProgress {
        /// The id.
        id: String,
        /// `queued` or `running`.
        phase: &'static str,
    },
    /// It is neither queued nor running.
    #[error("cell {id:?} is not queued or running")]
    NotInProgress {
        /// The id.
        id: String,
    },
    /// Too much: cells, bytes, or a queue that is too long.
    #[error("{what}: at most {limit} are kept in one session")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How much there may be.
        limit: usize,
    },
    /// What the kernel would have to be sent at once, and cannot be.
    #[error("{what} is too large: at most {limit} bytes of it, as JSON has them, reach a kernel")]
    TooLarge {
        /// `source`, `code` or `value`.
        what: &'static str,
        /// How large it may be.
        limit: usize,
    },
    /// The code has not asked for input.
    #[error("nothing in this session waits for input")]
    NotAsking,
    /// The kernel is not there to answer.
    #[error("the kernel is {state} and cannot answer now")]
    NotReady {
        /// The session's state.
        state: &'static str,
    },
    /// The journal cannot be written.
    #[error("nothing can be written down, so nothing is begun: {0}")]
    Storage(String),
}

/// A cell to be made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewCell {
    /// Its id; `None` for a fresh one.
    pub id: Option<String>,
    /// What it is; `None` for code.
    pub cell_type: Option<CellType>,
    /// The source.
    pub source: String,
    /// Its metadata.
    pub metadata: Map<String, Value>,
    /// How it is run.
    pub options: RunOptions,
    /// The cell that it stands behind; `None` for the end.
    pub after: Option<String>,
    /// Whether it is run at once.
    pub run: bool,
    /// Outputs that it has already, as nbformat has them. A run replaces them.
    pub outputs: Vec<Value>,
}

/// Changes to a cell. What is `None` stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellEdit {
    /// The source.
    pub source: Option<String>,
    /// What it is.
    pub cell_type: Option<CellType>,
    /// Its metadata.
    pub metadata: Option<Map<String, Value>>,
    /// The cell that it moves behind; `Some(None)` for the beginning.
    pub after: Option<Option<String>>,
}

impl Core {
    pub(super) fn check_alive(&self) -> Result<(), Denied> {
        match &self.state {
            SessionState::Gone { why } => Err(Denied::Gone { why: why.clone() }),
            _ => Ok(()),
        }
    }

    fn number_of(&self, id: &str) -> Result<u32, Denied> {
        self.cells.number(id).ok_or_else(|| Denied::NoCell { id: id.to_owned() })
    }

    fn view(&self, number: u32) -> Result<Cell, Denied> {
        self.cells.get(number).cloned().ok_or_else(|| Denied::NoCell { id: number.to_string() })
    }

    /// A cell once a run of it has ended; it may have been queued again. `None` before.
    pub fn ended(&self, run: RunOfCell) -> Option<Result<Cell, Denied>> {
        let is_on = |cell: &Cell| cell.run.first_seq == run.first_seq && cell.run.phase != CellPhase::Finished;
        let goes_on = self.cells.get(run.number).is_some_and(is_on);
        (!goes_on).then(|| self.view(run.number))
    }

    /// Adds a cell, and queues it if asked to. `trace`: what asks, as a `traceparent`.
    pub fn add_cell(&mut self, now: Now, new: NewCell, trace: Option<String>) -> Result<Cell, Denied> {
        self.check_alive()?;
        let cell_type = new.cell_type.unwrap_or(CellType::Code);
        let id = self.fresh_id(new.id)?;
        if new.run && cell_type == CellType::Code {
            self.check_queue(1)?;
            check_sent("source", &new.source)?;
        }
        let place = new.after.map(|after| self.place_behind(Some(&after))).transpose()?;
        let (number, last) = self.cells.next_number_and_place();
        let (source, metadata, options) = (new.source, new.metadata, new.options);
        let place = place.unwrap_or(last);
        let cell = Cell { number, id, place, cell_type, source, metadata, options, run: CellRun::default() };
        self.check_size(&cell, None)?;
        self.put(now, cell, NotebookChange::Added);
        if let Some(run) = self.cells.run_mut(number) {
            // What a former cell of this id has shown is not its own.
            run.first_seq = run.last_seq;
        }
        self.put_outputs(now, number, new.outputs);
        if new.run && cell_type == CellType::Code {
            self.enqueue(now, number, trace);
        }
        self.view(number)
    }

    /// Runs a cell again: its former outputs go when it is queued.
    pub fn run_cell(
        &mut self,
        now: Now,
        id: &str,
        options: Option<RunOptions>,
        trace: Option<String>,
    ) -> Result<Cell, Denied> {
        self.check_alive()?;
        let number = self.number_of(id)?;
        let cell = self.view(number)?;
        if cell.cell_type != CellType::Code {
            return Err(Denied::NotCode { id: id.to_owned() });
        }
        if cell.run.phase != CellPhase::Finished {
            return Err(Denied::InProgress { id: id.to_owned(), phase: cell.run.phase.name() });
        }
        self.check_queue(1)?;
        check_sent("source", &cell.source)?;
        let options = options.unwrap_or_else(|| RunOptions { group: None, allow_error: false, ..cell.options.clone() });
        self.set_options(&cell, options);
        self.enqueue(now, number, trace);
        self.view(number)
    }

    /// Runs several cells, one after the other, each with its own options: all of them are queued, or none.
    pub fn run_cells(&mut self, now: Now, runs: Vec<(String, RunOptions)>, trace: Option<&str>) -> Result<(), Denied> {
        self.check_alive()?;
        self.check_queue(runs.len())?;
        let mut cells = Vec::new();
        for (id, options) in runs {
            let cell = self.view(self.number_of(&id)?)?;
            if cell.cell_type != CellType::Code {
                return Err(Denied::NotCode { id });
            }
            if cell.run.phase != CellPhase::Finished {
                return Err(Denied::InProgress { id, phase: cell.run.phase.name() });
            }
            check_sent("source", &cell.source)?;
            cells.push((cell, options));
        }
        for (cell, options) in cells {
            self.set_options(&cell, options);
            self.enqueue(now, cell.number, trace.map(str::to_owned));
        }
        Ok(())
    }

    /// Makes the notebook that of a file: of these cells, and with what it says beside them. Those that were there go. Not while
    /// one of them is queued or running.
    pub fn replace_cells(&mut self, now: Now, new: Vec<NewCell>, notebook: String) -> Result<(), Denied> {
        self.check_alive()?;
        if let Some(cell) = self.cells.iter().find(|cell| cell.run.phase != CellPhase::Finished) {
            return Err(Denied::InProgress { id: cell.id.clone(), phase: cell.run.phase.name() });
        }
        if new.len() > MAX_CELLS {
            return Err(Denied::TooMany { what: "cells", limit: MAX_CELLS });
        }
        let bytes: usize = new.iter().map(|cell| cell.source.len() + json_size(&cell.metadata)).sum();
        if bytes > MAX_NOTEBOOK / 2 {
            return Err(Denied::TooMany { what: "bytes of source", limit: MAX_NOTEBOOK / 2 });
        }
        let mut ids: Vec<(u32, String)> = self.cells.iter().map(|cell| (cell.number, cell.id.clone())).collect();
        ids.sort_unstable();
        for (_, id) in ids {
            self.delete_cell(now, &id)?;
        }
        for cell in new {
            self.add_cell(now, cell, None)?;
        }
        self.piece.notebook = Some(notebook);
        Ok(())
    }

    /// Changes a cell. What runs goes on with the source it had.
    pub fn edit_cell(&mut self, now: Now, id: &str, edit: CellEdit) -> Result<Cell, Denied> {
        self.check_alive()?;
        let number = self.number_of(id)?;
        let mut cell = self.view(number)?;
        let before = size(&cell);
        if let Some(after) = edit.after {
            cell.place = self.place_behind(after.as_deref())?;
        }
        if let Some(cell_type) = edit.cell_type.filter(|kind| *kind != cell.cell_type) {
            if cell.run.phase != CellPhase::Finished {
                return Err(Denied::InProgress { id: id.to_owned(), phase: cell.run.phase.name() });
            }
            cell.cell_type = cell_type;
        }
        if let Some(source) = edit.source {
            if cell.run.phase == CellPhase::Queued {
                check_sent("source", &source)?;
            }
            let former = std::mem::replace(&mut cell.source, source);
            if let Some(active) = self.active.as_mut().filter(|active| active.number == number) {
                // A later server may have to hand it to the kernel once more.
                active.source.get_or_insert(former);
            }
        }
        cell.metadata = edit.metadata.unwrap_or(cell.metadata);
        self.check_size(&cell, Some(before))?;
        self.put(now, cell, NotebookChange::Edited);
        self.view(number)
    }

    /// Removes a cell. One that waits is cancelled first; one that runs stays.
    pub fn delete_cell(&mut self, now: Now, id: &str) -> Result<(), Denied> {
        self.check_alive()?;
        let number = self.number_of(id)?;
        match self.view(number)?.run.phase {
            CellPhase::Running => return Err(Denied::InProgress { id: id.to_owned(), phase: "running" }),
            CellPhase::Queued => self.unqueue(now, number),
            CellPhase::Finished => {}
        }
        self.event(now, Some(number), EventBody::Notebook(NotebookChange::Deleted));
        self.write_cell(CellChange::Delete { number });
        self.cells.remove(number);
        self.forget_outputs(number);
        Ok(())
    }

    /// Takes a cell out of the queue, or interrupts it.
    pub fn cancel_cell(&mut self, now: Now, id: &str) -> Result<Cell, Denied> {
        self.check_alive()?;
        let number = self.number_of(id)?;
        match self.view(number)?.run.phase {
            CellPhase::Queued => self.unqueue(now, number),
            CellPhase::Running => self.stop(now, StopReason::Interrupt),
            CellPhase::Finished => return Err(Denied::NotInProgress { id: id.to_owned() }),
        }
        self.view(number)
    }

    /// Interrupts the running cell, with escalation if it does not heed. Does nothing when none runs.
    pub fn interrupt(&mut self, now: Now) -> Result<(), Denied> {
        self.check_alive()?;
        self.stop(now, StopReason::Interrupt);
        Ok(())
    }

    /// Kills the kernel under the running cell, now.
    pub fn kill(&mut self, now: Now) -> Result<(), Denied> {
        self.interrupt(now)?;
        if let Some(ladder) = self.active.as_mut().and_then(|active| active.ladder.as_mut()) {
            ladder.hurry(now.instant);
        }
        Ok(())
    }

    /// Answers the code's question: the message that the kernel is to be given on its stdin channel. Whoever answered is told only
    /// once the agent has it: it is in no journal.
    pub fn input(&mut self, value: &str) -> Result<(Generation, Message), Denied> {
        self.check_alive()?;
        if value.len() > MAX_ANSWER {
            return Err(Denied::TooLarge { what: "value", limit: MAX_ANSWER });
        }
        let active = self.active.as_mut().filter(|active| !active.answered).ok_or(Denied::NotAsking)?;
        let asked = active.input.clone().ok_or(Denied::NotAsking)?;
        // What is written down keeps the question: the answer goes down with us if we are killed on its way.
        active.answered = true;
        let mut message = Message::new_request(&self.facts.name, "input_reply", &json!({"value": value}));
        message.parent_header = asked;
        Ok((self.generation, message))
    }

    /// The answer did not reach the agent: the question stands.
    pub fn input_failed(&mut self) {
        if let Some(active) = &mut self.active {
            active.answered = false;
        }
    }

    /// Starts the kernel anew in its sandbox. The workspace and the cells stay; what waits is cancelled.
    pub fn restart(&mut self, now: Now) -> Result<(), Denied> {
        self.check_alive()?;
        if let Some(active) = &mut self.active {
            active.run.stop(StopReason::Interrupt);
        }
        self.cancel_queue(now, "the kernel was restarted before it");
        // One that nobody has heard of yet is new already; and asked twice, the new kernel could be ended as well.
        if self.generation != Generation(0) && !self.restart_is_pending() {
            self.restart_kernel(now);
        }
        Ok(())
    }

    /// Sends the kernel a message that it does not answer.
    pub fn tell_kernel(&mut self, msg_type: &str, content: &Value, parent: Bytes) -> Result<(), Denied> {
        self.check_alive()?;
        if !self.kernel_is_there() {
            return Err(Denied::NotReady { state: self.state.name() });
        }
        let mut message = Message::new_request(&self.facts.name, msg_type, content);
        message.parent_header = parent;
        self.effects.push(Effect::Send { channel: Channel::Shell, generation: Some(self.generation), message });
        Ok(())
    }

    // ---- how ---------------------------------------------------------------------------------------------------------

    fn fresh_id(&self, wanted: Option<String>) -> Result<String, Denied> {
        let Some(id) = wanted else {
            // Eight characters, as nbformat makes them; a clash is all but impossible, and cheap to rule out.
            return Ok(std::iter::repeat_with(|| ids::random_uuid()[..8].to_owned())
                .find(|id| self.cells.number(id).is_none())
                .unwrap_or_else(ids::random_uuid));
        };
        let fits = (1..=64).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        match (fits, self.cells.number(&id)) {
            (false, _) => Err(Denied::BadId { id }),
            (true, Some(_)) => Err(Denied::IdTaken { id }),
            (true, None) => Ok(id),
        }
    }

    fn check_queue(&self, more: usize) -> Result<(), Denied> {
        if self.queue.len() + more > MAX_QUEUE {
            return Err(Denied::TooMany { what: "queued cells", limit: MAX_QUEUE });
        }
        Ok(())
    }

    /// Whether a cell fits; `before`: what it takes now.
    fn check_size(&self, cell: &Cell, before: Option<usize>) -> Result<(), Denied> {
        if before.is_none() && self.cells.len() >= MAX_CELLS {
            return Err(Denied::TooMany { what: "cells", limit: MAX_CELLS });
        }
        if self.cells.bytes() - before.unwrap_or(0) + size(cell) > MAX_NOTEBOOK {
            return Err(Denied::TooMany { what: "bytes of source", limit: MAX_NOTEBOOK });
        }
        Ok(())
    }

    /// A place between this cell and the next; `None`: before the first.
    fn place_behind(&mut self, id: Option<&str>) -> Result<f64, Denied> {
        let number = id.map(|id| self.number_of(id)).transpose()?;
        let gap = |cells: &Cells| {
            let from = number.and_then(|number| cells.get(number)).map_or(0.0, |cell| cell.place);
            let next = cells.iter().map(|cell| cell.place).filter(|place| *place > from).fold(from + 2.0, f64::min);
            (from, f64::midpoint(from, next), next)
        };
        let (from, place, next) = gap(&self.cells);
        if from < place && place < next {
            return Ok(place);
        }
        // After fifty insertions at one spot there is no number left between two places.
        for cell in self.cells.spread() {
            self.write_cell(CellChange::Put(Box::new(cell)));
        }
        Ok(gap(&self.cells).1)
    }

    fn put(&mut self, now: Now, cell: Cell, change: NotebookChange) {
        let number = cell.number;
        self.cells.put(cell.clone());
        self.write_cell(CellChange::Put(Box::new(cell)));
        self.event(now, Some(number), EventBody::Notebook(change));
    }

    /// Outputs that came with the cell.
    fn put_outputs(&mut self, now: Now, number: u32, outputs: Vec<Value>) {
        for (index, output) in outputs.into_iter().enumerate() {
            self.write_change(now, number, Change::Append { cell: CellKey(number), index, output });
        }
    }

    /// The source, which may be long, is not written again for it.
    fn set_options(&mut self, cell: &Cell, options: RunOptions) {
        if options != cell.options {
            self.cells.set_options(cell.number, options.clone());
            self.write_cell(CellChange::Options { number: cell.number, options });
        }
    }

    fn enqueue(&mut self, now: Now, number: u32, trace: Option<String>) {
        self.forget_outputs(number);
        let seq = self.event(now, Some(number), EventBody::Queued);
        if let Some(run) = self.cells.run_mut(number) {
            let (phase, queued_at) = (CellPhase::Queued, Some(now.time));
            *run = CellRun { phase, queued_at, trace, first_seq: seq, last_seq: seq, ..CellRun::default() };
        }
        self.queue.push_back(number);
        self.run_next(now);
    }

    /// The cell's outputs are gone: nothing may reach them any more, neither a display id nor what a thread of its former run
    /// still prints.
    fn forget_outputs(&mut self, number: u32) {
        self.captures_leave(number);
        self.fold.forget(CellKey(number));
        self.recents.forget(number);
    }

    fn unqueue(&mut self, now: Now, number: u32) {
        self.queue.retain(|queued| *queued != number);
        self.end_cell(now, number, RunResult::without_run(RunStatus::Cancelled, "it was cancelled", now.time));
    }
}

/// Whether the kernel can be sent this text.
pub(super) fn check_sent(what: &'static str, text: &str) -> Result<(), Denied> {
    // A byte takes six at most, so little has to be counted.
    if text.len() > MAX_SOURCE / 6 && sent_size(text) > MAX_SOURCE {
        return Err(Denied::TooLarge { what, limit: MAX_SOURCE });
    }
    Ok(())
}

/// Bytes of a text within JSON, as serde writes it.
fn sent_size(text: &str) -> usize {
    let size = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..=0x1f => 6,
        _ => 1,
    };
    text.bytes().map(size).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::core_tests::Bench;

    fn changes(bench: &mut Bench) -> Vec<CellChange> {
        bench.out().0.cells
    }

    fn traced(cell: &Cell, who: &str) -> CellChange {
        assert_eq!((cell.run.trace.as_deref(), cell.run.queued_at.is_some()), (Some(who), true));
        CellChange::Run { number: cell.number, run: Box::new(cell.run.clone()) }
    }

    #[test]
    fn a_cell_that_is_run_again_is_not_written_again() {
        let mut bench = Bench::ready();
        let first = bench.run("a");
        bench.replies(&first);
        changes(&mut bench);
        // As before, but for somebody else.
        bench.core.run_cell(bench.now, "a", None, Some("one".to_owned())).unwrap();
        let cell = bench.cell("a").clone();
        assert_eq!(changes(&mut bench), [traced(&cell, "one")]);
        bench.replies(&cell.run.run.unwrap().0);
        changes(&mut bench);
        // Otherwise, and in another way: that is written, and the source is not.
        let options = RunOptions { timeout_seconds: Some(1.5), ..RunOptions::default() };
        bench.core.run_cell(bench.now, "a", Some(options.clone()), Some("two".to_owned())).unwrap();
        let cell = bench.cell("a").clone();
        assert_eq!(cell.options, options);
        assert_eq!(changes(&mut bench), [CellChange::Options { number: cell.number, options }, traced(&cell, "two")]);
        bench.replies(&cell.run.run.unwrap().0);
        changes(&mut bench);
        let group = RunOptions { group: Some("g".to_owned()), ..RunOptions::default() };
        bench.core.run_cells(bench.now, vec![("a".to_owned(), group.clone())], Some("three")).unwrap();
        let cell = bench.cell("a").clone();
        let number = cell.number;
        assert_eq!(changes(&mut bench), [CellChange::Options { number, options: group }, traced(&cell, "three")]);
    }

    #[test]
    fn what_no_kernel_can_be_sent_is_refused() {
        for (text, fits) in
            [("x".repeat(MAX_SOURCE), true), ("x".repeat(MAX_SOURCE + 1), false), ("\n".repeat(MAX_SOURCE / 2 + 1), false)]
        {
            assert_eq!(check_sent("source", &text).is_ok(), fits);
        }
        let content = json!({"code": "x".repeat(MAX_SOURCE)});
        let message = Message::new_request("session", "execute_request", &content);
        assert!(message.pack().iter().map(Bytes::len).sum::<usize>() <= SUBMIT_MAX);
    }

    proptest! {
        #[test]
        fn sizes_are_those_of_serde(text in any::<String>()) {
            prop_assert_eq!(sent_size(&text) + 2, serde_json::to_string(&text).unwrap().len());
        }
    }
}
