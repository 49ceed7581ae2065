//! The executions of a session: those that are queued, the active one, and those that ended last.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::active_execution::{ActiveExecution, JournaledExecution};
use super::cells::Cells;
use super::context::Context;
use super::denied::Denied;
use super::progress::Progress;
use super::recent_executions::{RecentExecution, RecentExecutions};
use crate::ids::{CellNumber, ExecutionId, Seq};
use crate::policy::Limits;
use crate::session::cell::{CellPhase, ExecutionOptions};
use crate::session::execution::ExecutionResult;
use crate::wire::Message;
use crate::wire::requests::KernelRequest;

/// Most cells that may be queued.
const MAX_QUEUE: usize = 10_000;
/// Room above the output limit for what the agent does not count, in bytes. An eighth of the limit is added to it.
const OUTPUT_SLACK: u64 = 1 << 20;

/// Makes the ids of executions. They are counted, so each id is known to be ours however long ago it was given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExecutionIds {
    /// Start of each id. It is random, so that no other session has it.
    prefix: String,
    count: u64,
}

impl ExecutionIds {
    fn new(cx: Context) -> Self {
        let mut prefix = (cx.make_uuid)();
        prefix.truncate(prefix.rfind('-').unwrap_or(prefix.len()));
        Self { prefix, count: 0 }
    }

    /// The next id, in the form of a UUID as Jupyter's own front ends send it.
    fn next(&mut self) -> ExecutionId {
        self.count += 1;
        self.id(self.count)
    }

    fn id(&self, number: u64) -> ExecutionId {
        ExecutionId(format!("{}-{number:012x}", self.prefix))
    }

    /// Whether this id was given out.
    fn contains(&self, id: &str) -> bool {
        let number = id.rsplit_once('-').and_then(|(_, number)| u64::from_str_radix(number, 16).ok());
        number.is_some_and(|number| (1..=self.count).contains(&number) && self.id(number).0 == id)
    }
}

/// See the [module](self) text.
#[derive(Debug)]
pub(super) struct Executions {
    ids: ExecutionIds,
    queue: VecDeque<CellNumber>,
    active: Option<ActiveExecution>,
    recent: RecentExecutions,
    /// Bytes of output after which an execution is stopped here, even if the agent did not stop it.
    output_cap: u64,
}

/// The part of [`Executions`] that is journaled besides cells and outputs.
#[derive(Serialize, Deserialize)]
pub(super) struct JournaledExecutions {
    ids: ExecutionIds,
    active: Option<JournaledExecution>,
}

/// An execution that is to be submitted to the kernel.
pub(super) struct Submission {
    pub number: CellNumber,
    pub id: ExecutionId,
    pub message: Message,
}

/// An execution that has just ended.
pub(super) struct Finished {
    pub number: CellNumber,
    pub id: ExecutionId,
    /// The cell of an earlier execution that is no longer kept among the recent ones.
    pub evicted: Option<CellNumber>,
}

/// Whether output may be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charge {
    Accepted,
    /// The cell is over its output limit. `is_running` tells whether it must be stopped.
    OverLimit {
        is_running: bool,
    },
}

impl Executions {
    pub fn new(cx: Context, limits: &Limits) -> Self {
        let limit = limits.output_bytes();
        Self {
            ids: ExecutionIds::new(cx),
            queue: VecDeque::new(),
            active: None,
            recent: RecentExecutions::default(),
            output_cap: limit.saturating_add(limit / 8 + OUTPUT_SLACK),
        }
    }

    /// Queues the cells that were stored as queued, in the order in which they were queued.
    pub fn restore_queue(&mut self, cells: &Cells) {
        let mut queued: Vec<(Seq, CellNumber)> = cells
            .iter()
            .filter(|cell| cell.execution.phase == CellPhase::Queued)
            .map(|cell| (cell.execution.first_seq, cell.number))
            .collect();
        queued.sort_unstable();
        self.queue = queued.into_iter().map(|(_, number)| number).collect();
    }

    /// Goes on from what an earlier server journaled. The recent executions are ordered as their cells were queued, since they also
    /// ended in that order.
    pub fn restore(&mut self, stored: JournaledExecutions, mut recent: Vec<RecentExecution>, cells: &Cells, cx: Context) {
        recent.sort_by_key(|recent| cells.get(recent.number).map(|cell| cell.execution.first_seq));
        self.recent = RecentExecutions::restore(recent);
        self.ids = stored.ids;
        self.active = stored.active.map(|active| ActiveExecution::restore(active, cx));
    }

    pub fn to_journal(&self) -> JournaledExecutions {
        JournaledExecutions { ids: self.ids.clone(), active: self.active.as_ref().map(ActiveExecution::to_journal) }
    }

    // ---- queue --------------------------------------------------------------------------------------------------------

    pub fn check_queue_room(&self, additional: usize) -> Result<(), Denied> {
        if self.queue.len() + additional > MAX_QUEUE {
            return Err(Denied::TooMany { what: "queued cells", limit: MAX_QUEUE });
        }
        Ok(())
    }

    pub fn enqueue(&mut self, number: CellNumber) {
        self.queue.push_back(number);
    }

    pub fn dequeue(&mut self, number: CellNumber) {
        self.queue.retain(|queued| *queued != number);
    }

    /// Empties the queue.
    pub fn take_queue(&mut self) -> VecDeque<CellNumber> {
        std::mem::take(&mut self.queue)
    }

    /// Takes those out of the queue that were queued together with a cell that has failed.
    pub fn take_failed_group(&mut self, cells: &Cells, failed: CellNumber, is_error: bool) -> Vec<CellNumber> {
        let Some(options) = cells.get(failed).map(|cell| &cell.options) else { return Vec::new() };
        if options.group.is_none() || is_error && options.allow_error {
            return Vec::new();
        }
        let is_in_group = |number: &CellNumber| cells.get(*number).is_some_and(|cell| cell.options.group == options.group);
        let (cancelled, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.queue).into_iter().partition(is_in_group);
        self.queue = kept.into();
        cancelled
    }

    /// Makes the next queued cell the active one, if none is.
    pub fn begin_next(&mut self, cx: Context, cells: &Cells, session: &str) -> Option<Submission> {
        if self.active.is_some() {
            return None;
        }
        let number = self.queue.pop_front()?;
        let cell = cells.get(number)?;
        let id = self.ids.next();
        let message = execute_request(cx, &id, session, &cell.id, &cell.source, &cell.options);
        let progress = Progress::new(id.clone(), cx);
        self.active = Some(ActiveExecution::new(number, progress, timeout_of(&cell.options)));
        Some(Submission { number, id, message })
    }

    // ---- the active execution -----------------------------------------------------------------------------------------

    pub fn active(&self) -> Option<&ActiveExecution> {
        self.active.as_ref()
    }

    pub fn active_mut(&mut self) -> Option<&mut ActiveExecution> {
        self.active.as_mut()
    }

    /// The active execution if it is of this cell.
    pub fn active_of(&mut self, number: CellNumber) -> Option<&mut ActiveExecution> {
        self.active.as_mut().filter(|active| active.number == number)
    }

    pub fn active_number(&self) -> Option<CellNumber> {
        self.active.as_ref().map(|active| active.number)
    }

    pub fn is_active(&self, id: &str) -> bool {
        self.active.as_ref().is_some_and(|active| active.id().0 == id)
    }

    /// The active execution's request once more, if it may not have reached the agent. The agent knows the id if it has seen it and
    /// executes it at most once.
    pub fn resubmit(&mut self, cx: Context, cells: &Cells, session: &str) -> Option<Submission> {
        let active = self.active.as_mut().filter(|active| active.is_unconfirmed)?;
        active.is_unconfirmed = false;
        let (number, id) = (active.number, active.id().clone());
        let cell = cells.get(number)?;
        let message = execute_request(cx, &id, session, &cell.id, active.submitted_source(&cell.source), &cell.options);
        Some(Submission { number, id, message })
    }

    /// The result, if the active execution has ended.
    pub fn finished(&self, now: Instant) -> Option<ExecutionResult> {
        self.active.as_ref().and_then(|active| active.progress.finished(now))
    }

    /// Moves the active execution to the recent ones.
    pub fn finish(&mut self) -> Option<Finished> {
        let active = self.active.take()?;
        let (number, id) = (active.number, active.id().clone());
        let ended = RecentExecution { id: id.clone(), number, output_bytes: active.output_bytes };
        Some(Finished { number, id, evicted: self.recent.push(ended) })
    }

    /// Deadlines: of the end that is awaited (only while the link is up to date), of the time limit, and of the next interrupt.
    pub fn deadlines(&self, is_current: bool) -> [Option<Instant>; 3] {
        let Some(active) = &self.active else { return [None; 3] };
        [active.progress.ends_at().filter(|_| is_current), active.times_out_at(), active.next_step_at()]
    }

    /// The time limit of the active execution, if it has been reached.
    pub fn timed_out(&self, now: Instant) -> Option<Duration> {
        let active = self.active.as_ref()?;
        active.times_out_at().filter(|at| *at <= now).and(active.timeout)
    }

    // ---- output -------------------------------------------------------------------------------------------------------

    /// Counts output of the active execution, or late output of an ended one.
    pub fn charge(&mut self, number: CellNumber, bytes: u64) -> Charge {
        let running = self.active.as_mut().filter(|active| active.number == number);
        let is_running = running.is_some();
        let counter = running.map(|active| &mut active.output_bytes).or_else(|| self.recent.output_bytes_of(number));
        let Some(counter) = counter else { return Charge::OverLimit { is_running: false } };
        *counter = counter.saturating_add(bytes);
        if *counter <= self.output_cap { Charge::Accepted } else { Charge::OverLimit { is_running } }
    }

    /// The cell at which late output is shown. If the execution `id` is recent, it is its own cell. Otherwise it is the cell that ended
    /// last, or the running one if none has ended; but only for output of a process whose cell is unknown (`is_stray`), and for messages
    /// that add or update an output (`is_output`) of an older execution of this session.
    pub fn late_output_cell(&self, id: &str, is_output: bool, is_stray: bool) -> Option<CellNumber> {
        self.recent.cell_of(id).or_else(|| {
            let is_ours = is_output && self.ids.contains(id);
            let running = self.active_number().filter(|_| is_ours);
            self.recent.last_cell().filter(|_| is_stray || is_ours).or(running)
        })
    }

    /// The cell of a recent execution, unless it was queued again or deleted.
    pub fn recent_cell(&self, id: &str) -> Option<CellNumber> {
        self.recent.cell_of(id)
    }

    /// Whether more output may come of the cell's execution.
    pub fn expects_output_of(&self, number: CellNumber) -> bool {
        self.active_number() == Some(number) || self.recent.of_cell(number).is_some()
    }

    /// The cell was queued again or deleted.
    pub fn forget_recent(&mut self, number: CellNumber) {
        self.recent.forget(number);
    }

    pub fn recent_of(&self, number: CellNumber) -> Option<&RecentExecution> {
        self.recent.of_cell(number)
    }

    /// The cells whose recent execution changed since the last call.
    pub fn take_changed_recent(&mut self) -> BTreeSet<CellNumber> {
        self.recent.take_changed()
    }

    #[cfg(test)]
    pub fn is_at_rest(&self) -> bool {
        self.active.is_none() && self.queue.is_empty()
    }
}

fn execute_request(
    cx: Context,
    id: &ExecutionId,
    session: &str,
    cell_id: &str,
    source: &str,
    options: &ExecutionOptions,
) -> Message {
    let request = KernelRequest::execute(source, options.allow_stdin);
    let mut message = request.into_message(&id.0, session, cx.time);
    // Jupyter's own front ends send it, so that kernels know which cell is executed.
    let mut metadata = json!({"cellId": cell_id});
    if !options.context.is_default() {
        metadata["cellkeep"] = json!(options.context);
    }
    message.metadata = metadata.to_string().into();
    message
}

/// A limit that no `Duration` can express counts as none.
fn timeout_of(options: &ExecutionOptions) -> Option<Duration> {
    options.timeout_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::session::cell::NewCell;

    fn cx() -> Context {
        Context {
            instant: Instant::now(),
            time: SystemTime::UNIX_EPOCH,
            make_uuid: || "11111111-2222-3333-4444-555555555555".to_owned(),
        }
    }

    fn with_cells(options: &[ExecutionOptions]) -> (Executions, Cells) {
        let (mut cells, limits) = (Cells::default(), Limits { output_mb: 1, ..Limits::default() });
        let mut executions = Executions::new(cx(), &limits);
        for (index, options) in options.iter().enumerate() {
            let new = NewCell { id: Some(format!("c{index}")), options: options.clone(), ..NewCell::default() };
            let (cell, _) = cells.prepare(cx(), new).unwrap();
            executions.enqueue(cell.number);
            cells.put(cell);
        }
        (executions, cells)
    }

    #[test]
    fn ids_are_counted_and_recognised() {
        let mut ids = ExecutionIds::new(cx());
        assert_eq!(ids.next().0, "11111111-2222-3333-4444-000000000001");
        assert!(ids.contains("11111111-2222-3333-4444-000000000001"));
        for foreign in ["", "1", "11111111-2222-3333-4444-000000000002", "11111111-2222-3333-4444-1", "x-000000000001"] {
            assert!(!ids.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn queue_runs_one_cell_at_a_time_in_order() {
        let (mut executions, cells) = with_cells(&[ExecutionOptions::default(), ExecutionOptions::default()]);
        let first = executions.begin_next(cx(), &cells, "s").unwrap();
        assert!(executions.begin_next(cx(), &cells, "s").is_none());
        assert_eq!((executions.is_active(&first.id.0), first.number), (true, CellNumber(1)));
        assert_eq!(executions.finish().unwrap().id, first.id);
        assert_eq!(executions.begin_next(cx(), &cells, "s").unwrap().number, CellNumber(2));
        assert_eq!(executions.late_output_cell(&first.id.0, true, false), Some(CellNumber(1)));
    }

    #[test]
    fn failure_takes_its_group_out_of_the_queue() {
        let grouped =
            |allow_error| ExecutionOptions { group: Some("g".to_owned()), allow_error, ..ExecutionOptions::default() };
        let (mut executions, cells) = with_cells(&[grouped(true), ExecutionOptions::default(), grouped(false)]);
        executions.begin_next(cx(), &cells, "s");
        let failed = executions.finish().unwrap().number;
        assert!(executions.take_failed_group(&cells, failed, true).is_empty(), "its error is allowed");
        assert_eq!(executions.take_failed_group(&cells, failed, false), [CellNumber(3)]);
        assert_eq!(executions.take_queue(), [CellNumber(2)]);
    }

    #[test]
    fn output_over_the_cap_is_refused() {
        let (mut executions, cells) = with_cells(&[ExecutionOptions::default()]);
        let number = executions.begin_next(cx(), &cells, "s").unwrap().number;
        assert_eq!(executions.charge(number, 2 << 20), Charge::Accepted);
        assert_eq!(executions.charge(number, 1 << 20), Charge::OverLimit { is_running: true });
        executions.finish();
        assert_eq!(executions.charge(number, 0), Charge::OverLimit { is_running: false });
        assert_eq!(executions.charge(CellNumber(9), 0), Charge::OverLimit { is_running: false }, "nothing is known of it");
    }
}
