//! The session machine: how each input changes a session. Pure: [`Context`] holds all that it knows of time and chance, and it does
//! no I/O. What is to be committed collects in a [`Transaction`], what is to be done after the commit in [`Effect`]s.
//!
//! ```text
//!   commands  ──▶ commands.rs ────┐     ┌─ cells              order, sources, limits
//!   link      ──▶ agent_events.rs ├──▶  ├─ executions         queue, active and recent ones, interrupts
//!   time, end ──▶ mod.rs ─────────┘     ├─ kernel_lifecycle   state, generations, restarts
//!                                       ├─ link_state         position, replay, probe
//!                                       ├─ introspection      requests besides cells
//!                                       ├─ outputs            folds, Output widgets
//!                                       └─ outbox  ──▶ Transaction, Effects
//! ```
//!
//! Each part owns its fields and knows no other part but the cells; what it finds out it returns. `Machine` owns the parts, has one
//! method per kind of input, and hands on what parts return.

mod active_execution;
mod agent_events;
#[cfg(test)]
pub(in crate::session) mod bench;
mod cells;
mod commands;
mod context;
mod denied;
mod executions;
mod interrupt_escalation;
mod introspection;
mod kernel_lifecycle;
mod link_state;
mod outbox;
mod outputs;
mod progress;
mod recent_executions;
mod resume;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use cells::Cells;
pub(in crate::session) use context::Context;
pub use denied::Denied;
use executions::{Executions, Submission};
use interrupt_escalation::{Step, describe_step};
pub(in crate::session) use introspection::Query;
use introspection::{Introspection, Outgoing};
use kernel_lifecycle::KernelLifecycle;
use link_state::LinkState;
pub(in crate::session) use outbox::Effect;
use outbox::Outbox;
pub use outputs::CLEARED;
use outputs::{CellOutputs, Shown};
pub use resume::Stored;
use resume::{Resume, StoredState};

use super::cell::{Cell, CellPhase, QueuedExecution};
use super::execution::{ExecutionResult, ExecutionStatus, StopReason};
use super::state::SessionState;
use super::transaction::{CellChange, EventBody, OutputMode, OutputState, Transaction};
use crate::ids::{CellNumber, ExecutionId, Generation, Seq};
use crate::link::{LinkError, Position};
use crate::output::OutputTarget;
use crate::policy::Limits;
use crate::sandbox::SandboxState;

/// What stays the same through a session's life.
#[derive(Clone, Debug)]
pub(in crate::session) struct MachineConfig {
    /// Id of the session, which is its name in the headers of its requests.
    pub session: String,
    pub limits: Limits,
    /// Whether the journal outlives this process, so that a later server can go on.
    pub durable: bool,
    pub output_mode: OutputMode,
}

/// See the [module](self) text.
pub(in crate::session) struct Machine {
    config: MachineConfig,
    cells: Cells,
    executions: Executions,
    kernel: KernelLifecycle,
    link: LinkState,
    introspection: Introspection,
    outputs: CellOutputs,
    outbox: Outbox,
}

impl Machine {
    pub fn new(config: MachineConfig, cx: Context) -> Self {
        Self {
            executions: Executions::new(cx, &config.limits),
            config,
            cells: Cells::default(),
            kernel: KernelLifecycle::new(cx),
            link: LinkState::default(),
            introspection: Introspection::default(),
            outputs: CellOutputs::default(),
            outbox: Outbox::default(),
        }
    }

    /// Goes on where an earlier server's machine was cut off. Where its state cannot be read, the cells are kept and the active
    /// execution ends as lost.
    pub fn restore(config: MachineConfig, stored: Stored, cx: Context) -> Self {
        let mut machine = Self::new(config, cx);
        let StoredState { resume, rows, useless } = resume::read(&stored);
        machine.cells = Cells::restore(stored.cells);
        machine.executions.restore_queue(&machine.cells);
        machine.outbox = Outbox::restore(stored.last_seq);
        machine.link = LinkState::restore(stored.position, false);
        machine.kernel.restore_info(stored.kernel_info.as_deref());
        useless.into_iter().for_each(|target| machine.outputs.discard_row(target));
        if let Some(resume) = resume {
            let restore_row = |(target, row)| machine.outputs.restore_row(target, row);
            let recent = rows.into_iter().filter_map(restore_row).collect();
            machine.executions.restore(resume.executions, recent, &machine.cells, cx);
            machine.kernel.restore(&resume.kernel);
            machine.outputs.restore_widgets(resume.widgets);
            machine.link = LinkState::restore(stored.position, resume.needs_probe);
        }
        machine.end_orphaned_executions(cx);
        machine
    }

    /// Ends executions that are stored as running while nothing else is known of them.
    fn end_orphaned_executions(&mut self, cx: Context) {
        let known = self.executions.active_number();
        let is_orphaned = |cell: &&Cell| cell.execution.phase == CellPhase::Running && Some(cell.number) != known;
        let orphaned: Vec<CellNumber> = self.cells.iter().filter(is_orphaned).map(|cell| cell.number).collect();
        for number in orphaned {
            let result = ExecutionResult::not_run(ExecutionStatus::KernelDied, "the server lost track of the run", cx.time);
            self.end_cell(cx, number, result);
        }
    }

    // ---- what the driver reads ------------------------------------------------------------------------------------------

    /// What is to be committed, and what is to be done after that.
    pub fn take_out(&mut self, cx: Context) -> (Transaction, Vec<Effect>) {
        if self.outbox.can_wait(cx.instant, self.kernel.info()) {
            return (Transaction::default(), Vec::new());
        }
        let mut transaction = self.outbox.take_transaction(&self.cells);
        transaction.outputs = self.take_output_states();
        if !transaction.is_empty() && self.config.durable {
            let resume = self.resume();
            self.outbox.add_resume(&mut transaction, self.kernel.info(), resume);
        }
        (transaction, self.outbox.take_effects())
    }

    fn resume(&self) -> Option<String> {
        let resume = Resume {
            kernel: self.kernel.to_journal(),
            executions: self.executions.to_journal(),
            widgets: self.outputs.widgets_to_journal(),
            needs_probe: self.link.is_probe_due(),
        };
        serde_json::to_string(&resume).ok()
    }

    fn take_output_states(&mut self) -> Vec<OutputState> {
        let mut changed = self.outputs.take_changed();
        changed.extend(self.executions.take_changed_recent().into_iter().map(OutputTarget::Cell));
        if !self.config.durable {
            return Vec::new();
        }
        let row = |target| {
            let recent = match target {
                OutputTarget::Cell(number) => self.executions.recent_of(number),
                OutputTarget::Widget(_) => None,
            };
            self.outputs.row(target, recent)
        };
        changed.into_iter().filter_map(row).collect()
    }

    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    pub fn state(&self) -> &SessionState {
        self.kernel.state()
    }

    pub fn is_gone(&self) -> bool {
        self.kernel.is_gone()
    }

    pub fn kernel_info(&self) -> &Arc<Value> {
        self.kernel.info()
    }

    pub fn generation(&self) -> Generation {
        self.kernel.generation()
    }

    pub fn position(&self) -> Position {
        self.link.position()
    }

    /// The cell once this execution of it has ended; `None` before.
    pub fn ended(&self, execution: QueuedExecution) -> Option<Result<Cell, Denied>> {
        self.cells.ended(execution)
    }

    // ---- inputs: time and the outcomes of effects -----------------------------------------------------------------------

    pub fn next_deadline(&self) -> Option<Instant> {
        let [end, timeout, interrupt] = self.executions.deadlines(self.link.is_current());
        let (start, subshell) = (self.kernel.start_deadline(), self.introspection.deadline());
        [end, timeout, interrupt, start, subshell, self.outbox.deferred_until()].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn tick(&mut self, cx: Context) {
        if let Some(why) = self.kernel.overdue_start(cx.instant) {
            return self.end(cx, &why);
        }
        let outgoing = self.introspection.expire(cx.instant);
        self.send_all(outgoing);
        if let Some(limit) = self.executions.timed_out(cx.instant) {
            self.stop(cx, StopReason::Timeout(limit));
        }
        match self.executions.active_mut().and_then(|active| active.take_due_step(cx)) {
            Some(Step::Signal(signal)) => {
                self.outbox.add_effect(Effect::Signal { signal, generation: self.kernel.generation() });
                self.notice(cx, describe_step(signal).to_owned());
            }
            Some(Step::GiveUp) => return self.end(cx, "its kernel was killed, and the sandbox does not answer"),
            None => {}
        }
        self.finish_if_done(cx);
    }

    /// The agent has answered a submission: `Ok` if the request reached the kernel's queue.
    pub fn submitted(&mut self, cx: Context, execution: &ExecutionId, result: Result<bool, LinkError>) {
        let Err(error) = result else { return };
        let Some(active) = self.executions.active().filter(|active| active.id() == execution) else { return };
        let mut result = active.progress.rejected(&error.to_string(), cx.instant);
        if matches!(error, LinkError::TooLarge { .. }) {
            (result.status, result.kernel_gone) = (ExecutionStatus::Error, false);
            self.finish(cx, result);
            return self.become_idle(cx);
        }
        self.finish(cx, result);
        // The kernel is dead, which was not reported yet, or takes no requests. The next cell would fare no better.
        if !self.kernel.restart_is_pending() {
            self.replace_kernel(cx, true);
        }
    }

    pub fn sandbox_is(&mut self, cx: Context, state: &SandboxState) {
        if let SandboxState::Ended { why } = state {
            self.end(cx, &format!("the sandbox has ended: {why}"));
        }
    }

    /// Ends the session.
    pub fn end(&mut self, cx: Context, why: &str) {
        if self.is_gone() {
            return;
        }
        if let Some(active) = self.executions.active() {
            let result = active.progress.sandbox_gone(why, cx.instant);
            self.finish(cx, result);
        }
        self.cancel_queue(cx, why);
        self.set_state(cx, SessionState::Gone { why: why.to_owned() });
        self.outbox.add_effect(Effect::WatchSandbox(false));
    }

    // ---- routing: events --------------------------------------------------------------------------------------------------

    fn event(&mut self, cx: Context, number: Option<CellNumber>, body: EventBody) -> Seq {
        self.outbox.add_event(cx, &mut self.cells, number, body)
    }

    fn cell_events(&mut self, cx: Context, events: Vec<(CellNumber, EventBody)>) {
        for (number, body) in events {
            self.event(cx, Some(number), body);
        }
    }

    fn set_state(&mut self, cx: Context, state: SessionState) {
        if self.kernel.set_state(&state) {
            self.outbox.set_state(state.clone());
            self.event(cx, None, EventBody::State { state, notice: None });
        }
    }

    /// Tells people something that is no output.
    fn notice(&mut self, cx: Context, text: String) {
        let Some(text) = self.outbox.admit_notice(text) else { return };
        let (state, number) = (self.state().clone(), self.executions.active_number());
        self.event(cx, number, EventBody::State { state, notice: Some(text) });
    }

    fn send_all(&mut self, outgoing: Outgoing) {
        let generation = Some(self.kernel.generation());
        for (channel, message) in outgoing {
            self.outbox.add_effect(Effect::Send { channel, generation, message });
        }
    }

    // ---- routing: executions ------------------------------------------------------------------------------------------------

    /// Submits the next queued cell, if the kernel is free.
    fn run_next(&mut self, cx: Context) {
        if *self.kernel.state() != SessionState::Idle || self.link.is_replaying() {
            return;
        }
        let Some(submission) = self.executions.begin_next(cx, &self.cells, &self.config.session) else { return };
        let Submission { number, id, message } = submission;
        self.link.drop_probe();
        self.outputs.start(number);
        self.cells.begin_execution(number, &id, cx.time);
        self.event(cx, Some(number), EventBody::Started);
        self.set_state(cx, SessionState::Busy);
        self.outbox.add_effect(Effect::Submit { execution: id, generation: self.kernel.generation(), message });
    }

    /// Begins to stop the active execution.
    fn stop(&mut self, cx: Context, reason: StopReason) {
        let Some(active) = self.executions.active_mut() else { return };
        active.progress.stop(reason);
        if self.kernel.restart_is_pending() {
            // The restart ends it.
            return;
        }
        active.begin_escalation(cx);
        self.set_state(cx, SessionState::Interrupting);
    }

    fn finish_if_done(&mut self, cx: Context) {
        // While the link is cut, silence says nothing about output that is still to come.
        if !self.link.is_current() {
            return;
        }
        if let Some(result) = self.executions.finished(cx.instant) {
            self.kernel.reset_deaths();
            self.finish(cx, result);
            self.become_idle(cx);
        }
    }

    fn finish(&mut self, cx: Context, result: ExecutionResult) {
        self.link.drop_probe();
        let Some(finished) = self.executions.finish() else { return };
        self.outbox.drop_submission(&finished.id);
        self.release(finished.evicted);
        let (failed, is_error) = (result.status != ExecutionStatus::Ok, result.status == ExecutionStatus::Error);
        self.end_cell(cx, finished.number, result);
        if failed {
            for number in self.executions.take_failed_group(&self.cells, finished.number, is_error) {
                self.cancel(cx, number, "a cell before it failed");
            }
        }
    }

    fn end_cell(&mut self, cx: Context, number: CellNumber, result: ExecutionResult) {
        if let Some(execution) = self.cells.execution_mut(number) {
            (execution.phase, execution.result) = (CellPhase::Finished, Some(result.clone()));
        }
        self.event(cx, Some(number), EventBody::Finished(Box::new(result)));
    }

    fn cancel(&mut self, cx: Context, number: CellNumber, why: &str) {
        self.end_cell(cx, number, ExecutionResult::not_run(ExecutionStatus::Cancelled, why, cx.time));
    }

    fn cancel_queue(&mut self, cx: Context, why: &str) {
        for number in self.executions.take_queue() {
            self.cancel(cx, number, why);
        }
    }

    /// Frees what is remembered of the outputs of cells that nothing can change any more.
    fn release(&mut self, cells: impl IntoIterator<Item = CellNumber>) {
        for number in cells {
            if !self.outputs.can_change(number) && !self.executions.expects_output_of(number) {
                self.outputs.forget(number);
            }
        }
    }

    /// Journals what a message has shown.
    fn show(&mut self, cx: Context, shown: Shown) {
        self.release(shown.released);
        self.cell_events(cx, shown.events);
    }

    // ---- routing: the kernel --------------------------------------------------------------------------------------------------

    fn become_idle(&mut self, cx: Context) {
        if self.kernel.restart_is_pending() {
            // This kernel is about to be replaced, so nothing more is begun in it.
            return;
        }
        self.kernel.end_start();
        self.set_state(cx, SessionState::Idle);
        self.run_next(cx);
    }

    fn await_start(&mut self, cx: Context) {
        self.set_state(cx, SessionState::Restarting);
        self.kernel.await_start(cx);
    }

    fn restart_kernel(&mut self, cx: Context) {
        let ask_agent = self.kernel.request_restart(self.link.is_attached());
        self.await_start(cx);
        if ask_agent {
            self.outbox.add_effect(Effect::RestartKernel(self.kernel.generation()));
        }
    }

    /// The kernel is dead, or takes no requests.
    fn replace_kernel(&mut self, cx: Context, by_itself: bool) {
        // The queued cells counted on what the kernel knew.
        self.cancel_queue(cx, "the kernel died before it");
        if self.kernel.allows_restart(by_itself) {
            self.restart_kernel(cx);
        } else {
            self.end(cx, &format!("the kernel died {} times in a row, and no run ended between", self.kernel.deaths()));
        }
    }

    /// The kernel has ended: its widgets, its subshell and its answers are gone.
    fn drop_kernel_state(&mut self) {
        let denied = Denied::NotReady { state: self.state().name() };
        for request in self.introspection.give_up() {
            self.outbox.add_effect(Effect::Answer { request, content: Err(denied.clone()) });
        }
        let released = self.outputs.end_widgets();
        self.release(released);
    }

    /// The row of a cell is to be written.
    fn put_cell(&mut self, cell: Cell) {
        self.cells.put(cell.clone());
        self.outbox.add_cell_change(CellChange::Put(Box::new(cell)));
    }
}
