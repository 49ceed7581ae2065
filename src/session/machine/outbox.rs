//! What leaves the machine: the transaction under way, the effects that follow its commit, and the numbers of events.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cells::Cells;
use super::context::Context;
use super::denied::Denied;
use crate::agent_protocol::SignalKind;
use crate::ids::{CellNumber, ExecutionId, Generation, Seq};
use crate::link::Position;
use crate::session::state::SessionState;
use crate::session::transaction::{CellChange, EventBody, SessionEvent, Transaction};
use crate::wire::{Channel, Message};

/// Flush limits for deferred acknowledgements. Messages without visible effect (a cell's `busy`, its echoed input, its reply) are
/// acknowledged together with the next transaction, and at the latest after this time or this many bytes: a commit for each would
/// hold up the next message.
const DEFER_TIME: Duration = Duration::from_secs(1);
const DEFER_BYTES: usize = 64 << 10;
/// Most notices of one session: a hostile sandbox can cause any number.
const MAX_NOTICES: u32 = 1000;

/// What the driver does once the transaction before it has been committed.
#[derive(Debug)]
pub(in crate::session) enum Effect {
    /// Submit an execution's request to the kernel, and report what came of it.
    Submit { execution: ExecutionId, generation: Generation, message: Message },
    /// Send the kernel a message, without waiting for an answer.
    Send { channel: Channel, generation: Option<Generation>, message: Message },
    /// Signal the kernel of this generation.
    Signal { signal: SignalKind, generation: Generation },
    /// Restart the kernel, if this generation is still the current one.
    RestartKernel(Generation),
    /// Start or stop asking periodically what has become of the sandbox.
    WatchSandbox(bool),
    /// Answer a client's request to the kernel with the content of the reply, or with the reason why none will come.
    Answer { request: String, content: Result<Value, Denied> },
}

/// See the [module](self) text.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Number of the last event.
    seq: Seq,
    transaction: Transaction,
    /// Cells whose execution changed in the transaction.
    changed_cells: BTreeSet<CellNumber>,
    notices: u32,
    effects: Vec<Effect>,
    deferred: Option<Deferred>,
    committed_info: Arc<Value>,
    committed_resume: Option<String>,
}

/// Messages that were taken in without visible effect. A later server may get them again.
#[derive(Clone, Copy, Debug)]
struct Deferred {
    until: Instant,
    /// Bytes that the agent keeps meanwhile.
    bytes: usize,
}

impl Outbox {
    pub fn restore(seq: Seq) -> Self {
        Self { seq, ..Self::default() }
    }

    // ---- the transaction ----------------------------------------------------------------------------------------------

    /// Numbers an event and adds it. An event of a cell also moves the cell's `last_seq`.
    pub fn add_event(&mut self, cx: Context, cells: &mut Cells, number: Option<CellNumber>, body: EventBody) -> Seq {
        self.seq = self.seq.next();
        let mut cell = None;
        if let Some(number) = number {
            cell = cells.get(number).map(|cell| cell.id.clone());
            if let Some(execution) = cells.execution_mut(number) {
                execution.last_seq = self.seq;
                self.changed_cells.insert(number);
            }
        }
        self.transaction.events.push(SessionEvent { seq: self.seq, time: cx.time, cell, body });
        self.seq
    }

    pub fn add_cell_change(&mut self, change: CellChange) {
        if let CellChange::Delete { number } = &change {
            self.changed_cells.remove(number);
        }
        self.transaction.cells.push(change);
    }

    pub fn set_state(&mut self, state: SessionState) {
        self.transaction.state = Some(state);
    }

    pub fn set_position(&mut self, position: Position) {
        self.transaction.position = Some(position);
    }

    /// What a notebook file holds besides its cells, as JSON.
    pub fn set_notebook(&mut self, notebook: String) {
        self.transaction.notebook = Some(notebook);
    }

    /// Counts a notice. Returns the text to be shown, or `None` when there were too many.
    pub fn admit_notice(&mut self, mut text: String) -> Option<String> {
        if self.notices >= MAX_NOTICES {
            return None;
        }
        self.notices += 1;
        if self.notices == MAX_NOTICES {
            text.push_str(" (the last notice of this session: there were too many)");
        }
        Some(text)
    }

    // ---- effects ------------------------------------------------------------------------------------------------------

    pub fn add_effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// The execution has ended: if it begins and ends in one transaction, the next kernel must not be given its request.
    pub fn drop_submission(&mut self, ended: &ExecutionId) {
        self.effects.retain(|effect| !matches!(effect, Effect::Submit { execution, .. } if execution == ended));
    }

    /// A later kernel is there already.
    pub fn drop_restart(&mut self) {
        self.effects.retain(|effect| !matches!(effect, Effect::RestartKernel(_)));
    }

    // ---- deferred acknowledgements ------------------------------------------------------------------------------------

    /// A message of this many bytes is being taken in.
    pub fn defer(&mut self, cx: Context, bytes: usize) {
        let until = cx.instant + DEFER_TIME;
        self.deferred.get_or_insert(Deferred { until, bytes: 0 }).bytes += bytes;
    }

    pub fn deferred_until(&self) -> Option<Instant> {
        self.deferred.map(|deferred| deferred.until)
    }

    /// Whether there is nothing to commit but the acknowledgement of messages without effect, and that can wait.
    pub fn can_wait(&self, now: Instant, info: &Arc<Value>) -> bool {
        self.transaction.is_position_only()
            && self.changed_cells.is_empty()
            && self.effects.is_empty()
            && Arc::ptr_eq(info, &self.committed_info)
            && self.deferred.is_some_and(|deferred| deferred.bytes < DEFER_BYTES && now < deferred.until)
    }

    // ---- taking it out ------------------------------------------------------------------------------------------------

    /// The transaction, with the rows of cells whose execution changed in it.
    pub fn take_transaction(&mut self, cells: &Cells) -> Transaction {
        self.deferred = None;
        let mut transaction = std::mem::take(&mut self.transaction);
        for number in std::mem::take(&mut self.changed_cells) {
            if let Some(cell) = cells.get(number) {
                transaction.cells.push(CellChange::Execution { number, execution: Box::new(cell.execution.clone()) });
            }
        }
        transaction
    }

    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Adds what a later server needs where it is not what was committed last.
    pub fn add_resume(&mut self, transaction: &mut Transaction, info: &Arc<Value>, resume: Option<String>) {
        if !Arc::ptr_eq(info, &self.committed_info) {
            transaction.kernel_info = Some(info.to_string());
            self.committed_info = info.clone();
        }
        if resume != self.committed_resume {
            transaction.resume.clone_from(&resume);
            self.committed_resume = resume;
        }
    }

    #[cfg(test)]
    pub fn committed_resume(&self) -> Option<String> {
        self.committed_resume.clone()
    }
}
