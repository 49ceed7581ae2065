//! What clients ask for: cells and their order, executions, interrupts, input, restarts. Each is done, or denied with a reason.

use bytes::Bytes;

use super::cells::{MAX_CELLS, MAX_NOTEBOOK, Placement, size_of_cell};
use super::denied::check_sendable;
use super::outbox::Effect;
use super::{Context, Denied, Machine, Query};
use crate::ids::{CellNumber, Generation};
use crate::session::cell::{Cell, CellEdit, CellExecution, CellPhase, CellType, ExecutionOptions, NewCell};
use crate::session::execution::StopReason;
use crate::session::state::SessionState;
use crate::session::transaction::{CellChange, EventBody, NotebookChange};
use crate::wire::json;
use crate::wire::requests::KernelRequest;
use crate::wire::{Channel, Message};

/// Most bytes of one answer to the code's question.
const MAX_ANSWER: usize = 1 << 20;

impl Machine {
    // ---- cells ----------------------------------------------------------------------------------------------------------

    /// Adds a cell, and queues it if it is to be run. `trace` is the `traceparent` of the request.
    pub fn add_cell(&mut self, cx: Context, new: NewCell, trace: Option<String>) -> Result<Cell, Denied> {
        self.kernel.check_alive()?;
        let runs = new.run && new.cell_type.unwrap_or(CellType::Code) == CellType::Code;
        if runs {
            self.executions.check_queue_room(1)?;
            check_sendable("source", &new.source)?;
        }
        let mut new = new;
        let outputs = std::mem::take(&mut new.outputs);
        let (cell, renumbered) = self.cells.prepare(cx, new)?;
        let number = cell.number;
        self.journal_places(renumbered);
        self.put_cell(cell);
        self.event(cx, Some(number), EventBody::Notebook(NotebookChange::Added));
        if let Some(execution) = self.cells.execution_mut(number) {
            // What a deleted cell of this id has shown is not part of this one.
            execution.first_seq = execution.last_seq;
        }
        let events = self.outputs.import(number, outputs);
        self.cell_events(cx, events);
        if runs {
            self.enqueue(cx, number, trace);
        }
        self.cells.view(number)
    }

    /// Makes the notebook that of a file: these cells replace all others, and `notebook` is what the file holds besides. Denied while
    /// a cell is queued or running.
    pub fn replace_cells(&mut self, cx: Context, new: Vec<NewCell>, notebook: String) -> Result<(), Denied> {
        self.kernel.check_alive()?;
        if let Some(cell) = self.cells.iter().find(|cell| cell.execution.phase != CellPhase::Finished) {
            return Err(Denied::InProgress { id: cell.id.clone(), phase: cell.execution.phase.as_str() });
        }
        if new.len() > MAX_CELLS {
            return Err(Denied::TooMany { what: "cells", limit: MAX_CELLS });
        }
        let bytes: usize = new.iter().map(|cell| cell.source.len() + json::map_size(&cell.metadata)).sum();
        if bytes > MAX_NOTEBOOK / 2 {
            return Err(Denied::TooMany { what: "bytes of source", limit: MAX_NOTEBOOK / 2 });
        }
        let mut numbers: Vec<CellNumber> = self.cells.iter().map(|cell| cell.number).collect();
        numbers.sort_unstable();
        numbers.into_iter().for_each(|number| self.remove_cell(cx, number));
        for cell in new {
            self.add_cell(cx, cell, None)?;
        }
        self.outbox.set_notebook(notebook);
        Ok(())
    }

    /// Changes a cell. An execution that is running goes on with the source that it was given.
    pub fn edit_cell(&mut self, cx: Context, id: &str, edit: CellEdit) -> Result<Cell, Denied> {
        self.kernel.check_alive()?;
        let mut cell = self.cells.find(id)?.clone();
        let (number, size_before) = (cell.number, size_of_cell(&cell));
        if let Some(cell_type) = edit.cell_type.filter(|kind| *kind != cell.cell_type) {
            if cell.execution.phase != CellPhase::Finished {
                return Err(Denied::InProgress { id: id.to_owned(), phase: cell.execution.phase.as_str() });
            }
            cell.cell_type = cell_type;
        }
        let mut former = None;
        if let Some(source) = edit.source {
            if cell.execution.phase == CellPhase::Queued {
                check_sendable("source", &source)?;
            }
            former = Some(std::mem::replace(&mut cell.source, source));
        }
        cell.metadata = edit.metadata.unwrap_or(cell.metadata);
        self.cells.check_fits(&cell, Some(size_before))?;
        if let Some(after) = edit.after {
            // Last, since it may renumber all cells: nothing can be denied after that.
            let Placement { place, renumbered } = self.cells.place_after(after.as_deref())?;
            self.journal_places(renumbered);
            cell.place = place;
        }
        if let (Some(former), Some(active)) = (former, self.executions.active_of(number)) {
            active.keep_source(former);
        }
        self.put_cell(cell);
        self.event(cx, Some(number), EventBody::Notebook(NotebookChange::Edited));
        self.cells.view(number)
    }

    /// Deletes a cell. A queued one is cancelled first; a running one cannot be deleted.
    pub fn delete_cell(&mut self, cx: Context, id: &str) -> Result<(), Denied> {
        self.kernel.check_alive()?;
        let cell = self.cells.find(id)?;
        let (number, phase) = (cell.number, cell.execution.phase);
        match phase {
            CellPhase::Running => return Err(Denied::InProgress { id: id.to_owned(), phase: phase.as_str() }),
            CellPhase::Queued => self.cancel_queued(cx, number),
            CellPhase::Finished => {}
        }
        self.remove_cell(cx, number);
        Ok(())
    }

    fn remove_cell(&mut self, cx: Context, number: CellNumber) {
        self.event(cx, Some(number), EventBody::Notebook(NotebookChange::Deleted));
        self.outbox.add_cell_change(CellChange::Delete { number });
        self.cells.remove(number);
        self.discard_outputs(number);
    }

    fn journal_places(&mut self, renumbered: Vec<Cell>) {
        for cell in renumbered {
            self.outbox.add_cell_change(CellChange::Put(Box::new(cell)));
        }
    }

    // ---- executions -------------------------------------------------------------------------------------------------------

    /// Executes a cell again. Its former outputs go when it is queued. Without `options` the cell's own are used, outside any group.
    pub fn run_cell(
        &mut self,
        cx: Context,
        id: &str,
        options: Option<ExecutionOptions>,
        trace: Option<String>,
    ) -> Result<Cell, Denied> {
        self.kernel.check_alive()?;
        let cell = self.cells.find_runnable(id)?;
        self.executions.check_queue_room(1)?;
        check_sendable("source", &cell.source)?;
        let number = cell.number;
        let options =
            options.unwrap_or_else(|| ExecutionOptions { group: None, allow_error: false, ..cell.options.clone() });
        self.set_options(number, options);
        self.enqueue(cx, number, trace);
        self.cells.view(number)
    }

    /// Executes several cells in order, each with its own options. Either all of them are queued or none.
    pub fn run_cells(
        &mut self,
        cx: Context,
        runs: Vec<(String, ExecutionOptions)>,
        trace: Option<&str>,
    ) -> Result<(), Denied> {
        self.kernel.check_alive()?;
        self.executions.check_queue_room(runs.len())?;
        let mut checked = Vec::new();
        for (id, options) in runs {
            let cell = self.cells.find_runnable(&id)?;
            check_sendable("source", &cell.source)?;
            checked.push((cell.number, options));
        }
        for (number, options) in checked {
            self.set_options(number, options);
            self.enqueue(cx, number, trace.map(str::to_owned));
        }
        Ok(())
    }

    /// Takes a cell out of the queue, or interrupts it.
    pub fn cancel_cell(&mut self, cx: Context, id: &str) -> Result<Cell, Denied> {
        self.kernel.check_alive()?;
        let cell = self.cells.find(id)?;
        let number = cell.number;
        match cell.execution.phase {
            CellPhase::Queued => self.cancel_queued(cx, number),
            CellPhase::Running => self.stop(cx, StopReason::Interrupt),
            CellPhase::Finished => return Err(Denied::NotInProgress { id: id.to_owned() }),
        }
        self.cells.view(number)
    }

    /// Only the options are journaled: the source may be long.
    fn set_options(&mut self, number: CellNumber, options: ExecutionOptions) {
        if self.cells.get(number).is_some_and(|cell| cell.options != options) {
            self.cells.set_options(number, options.clone());
            self.outbox.add_cell_change(CellChange::Options { number, options });
        }
    }

    fn enqueue(&mut self, cx: Context, number: CellNumber, trace: Option<String>) {
        self.discard_outputs(number);
        let seq = self.event(cx, Some(number), EventBody::Queued);
        if let Some(execution) = self.cells.execution_mut(number) {
            let (phase, queued_at) = (CellPhase::Queued, Some(cx.time));
            *execution =
                CellExecution { phase, queued_at, trace, first_seq: seq, last_seq: seq, ..CellExecution::default() };
        }
        self.executions.enqueue(number);
        self.run_next(cx);
    }

    fn cancel_queued(&mut self, cx: Context, number: CellNumber) {
        self.executions.dequeue(number);
        self.cancel(cx, number, "it was cancelled");
    }

    /// The cell's outputs are gone: neither a display id nor late output of its former execution reaches them any more.
    fn discard_outputs(&mut self, number: CellNumber) {
        self.outputs.discard(number);
        self.executions.forget_recent(number);
    }

    // ---- the kernel -------------------------------------------------------------------------------------------------------

    /// Interrupts the running cell; the interrupt escalates if it has no effect. Does nothing when no cell runs.
    pub fn interrupt(&mut self, cx: Context) -> Result<(), Denied> {
        self.kernel.check_alive()?;
        self.stop(cx, StopReason::Interrupt);
        Ok(())
    }

    /// Kills the kernel that executes the running cell, at once. Does nothing when no cell runs.
    pub fn kill(&mut self, cx: Context) -> Result<(), Denied> {
        self.interrupt(cx)?;
        if let Some(active) = self.executions.active_mut() {
            active.skip_to_kill(cx);
        }
        Ok(())
    }

    /// Tells the clients something that concerns the owner of the session.
    pub fn notify(&mut self, cx: Context, text: String) -> Result<(), Denied> {
        self.kernel.check_alive()?;
        self.notice(cx, text);
        Ok(())
    }

    /// Answers the code's question. Returns the message for the kernel's stdin channel. The caller reports success only once the agent
    /// has it, because the answer is in no journal.
    pub fn input(&mut self, cx: Context, value: &str) -> Result<(Generation, Message), Denied> {
        self.kernel.check_alive()?;
        if value.len() > MAX_ANSWER {
            return Err(Denied::TooLarge { what: "value", limit: MAX_ANSWER });
        }
        let question = self.executions.active_mut().and_then(|active| active.answer_input()).ok_or(Denied::NotAsking)?;
        let mut message = cx.message(&self.config.session, KernelRequest::input_reply(value));
        message.parent_header = question;
        Ok((self.kernel.generation(), message))
    }

    /// The answer did not reach the agent, so the question is open again.
    pub fn input_failed(&mut self) {
        if let Some(active) = self.executions.active_mut() {
            active.reopen_input();
        }
    }

    /// Restarts the kernel in its sandbox. Workspace and cells stay; the queue is cancelled.
    pub fn restart(&mut self, cx: Context) -> Result<(), Denied> {
        self.kernel.check_alive()?;
        if let Some(active) = self.executions.active_mut() {
            active.progress.stop(StopReason::Interrupt);
        }
        self.cancel_queue(cx, "the kernel was restarted before it");
        // A kernel that has sent nothing yet is new already. A second restart request could also end the new kernel.
        if self.kernel.generation() != Generation(0) && !self.kernel.restart_is_pending() {
            self.restart_kernel(cx);
        }
        Ok(())
    }

    /// Sends the kernel a query. Returns its id: [`Effect::Answer`] names it.
    pub fn query(&mut self, cx: Context, query: &Query) -> Result<String, Denied> {
        self.kernel.check_ready()?;
        // Behind a running cell, silent code would be taken for its execution.
        if matches!(query, Query::Execute { .. }) && *self.kernel.state() != SessionState::Idle {
            return Err(Denied::NotReady { state: self.kernel.state().name() });
        }
        check_sendable("code", query.code())?;
        let (request, outgoing) = self.introspection.ask(cx, &self.config.session, self.kernel.info(), query)?;
        self.send_all(outgoing);
        Ok(request)
    }

    /// Sends the kernel a message that it does not answer. `parent` is the raw header of the message that it answers itself.
    pub fn send(&mut self, cx: Context, request: KernelRequest, parent: Bytes) -> Result<(), Denied> {
        self.kernel.check_ready()?;
        let mut message = cx.message(&self.config.session, request);
        message.parent_header = parent;
        self.outbox.add_effect(Effect::Send {
            channel: Channel::Shell,
            generation: Some(self.kernel.generation()),
            message,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::session::machine::bench::Bench;
    use crate::session::{Cell, CellChange, ExecutionOptions};

    fn changes(bench: &mut Bench) -> Vec<CellChange> {
        bench.out().0.cells
    }

    fn traced(cell: &Cell, trace: &str) -> CellChange {
        assert_eq!((cell.execution.trace.as_deref(), cell.execution.queued_at.is_some()), (Some(trace), true));
        CellChange::Execution { number: cell.number, execution: Box::new(cell.execution.clone()) }
    }

    #[test]
    fn executing_again_does_not_journal_the_source() {
        let mut bench = Bench::ready();
        let first = bench.run("a");
        bench.replies(&first);
        changes(&mut bench);
        // With the same options, for another request.
        bench.machine.run_cell(bench.cx, "a", None, Some("one".to_owned())).unwrap();
        let cell = bench.cell("a").clone();
        assert_eq!(changes(&mut bench), [traced(&cell, "one")]);
        bench.replies(&cell.execution.id.unwrap().0);
        changes(&mut bench);
        // With other options: they are journaled without the source.
        let options = ExecutionOptions { timeout_seconds: Some(1.5), ..ExecutionOptions::default() };
        bench.machine.run_cell(bench.cx, "a", Some(options.clone()), Some("two".to_owned())).unwrap();
        let cell = bench.cell("a").clone();
        assert_eq!(cell.options, options);
        assert_eq!(changes(&mut bench), [CellChange::Options { number: cell.number, options }, traced(&cell, "two")]);
        bench.replies(&cell.execution.id.unwrap().0);
        changes(&mut bench);
        let group = ExecutionOptions { group: Some("g".to_owned()), ..ExecutionOptions::default() };
        bench.machine.run_cells(bench.cx, vec![("a".to_owned(), group.clone())], Some("three")).unwrap();
        let cell = bench.cell("a").clone();
        let number = cell.number;
        assert_eq!(changes(&mut bench), [CellChange::Options { number, options: group }, traced(&cell, "three")]);
    }
}
