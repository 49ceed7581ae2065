//! The machine: what a session is, and how each thing that happens to it changes it. Pure: it reads no clock and does no
//! I/O. What is to be written down collects in a [`Piece`], what is to be done after that in [`Effect`]s.
//!
//! Here is the life of the runs; [`super::kernel`] has that of the kernel, [`super::commands`] what clients ask for,
//! [`super::messages`] what the kernel says.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::active::{Active, ActiveResume};
use super::captures::Captures;
use super::cells::{Cell, CellPhase, Cells, RunOptions, Runs};
use super::commands::Denied;
use super::handle::SessionState;
use super::kernel::START_DEADLINE;
use super::ladder::{Ladder, Step, describe_step};
use super::late::{Recent, Recents};
use super::piece::{CellChange, EventBody, Piece, SessionEvent, Telling};
use super::questions::Subshell;
use super::run::{ActiveRun, Now, RunResult, RunStatus, StopReason};
use crate::agent_protocol::{Hello, SignalKind};
use crate::ids::{Generation, RunId, Seq};
use crate::link::{LinkError, Position};
use crate::output::{CellKey, Fold, StreamStyle};
use crate::policy::Limits;
use crate::sandbox::SandboxState;
use crate::wire::{Channel, Message, json as wire_json};

/// How long, and how many bytes of, messages of which nothing follows may stay with the agent until something is written anyway. A
/// cell's `busy`, its echoed input and its reply would each cost a commit that holds up the next.
const UNWRITTEN: (Duration, usize) = (Duration::from_secs(1), 64 << 10);
/// Room above the output limit for what the agent does not count, bytes; an eighth of the limit comes to it.
const OUTPUT_SLACK: u64 = 1 << 20;
/// Notices of one session.
const MAX_NOTICES: u32 = 1000;

/// What is to be done once the piece before it has been written down.
#[derive(Debug)]
pub(super) enum Effect {
    /// Hand a run's request to the kernel and tell what came of it.
    Submit { run: RunId, generation: Generation, message: Message },
    /// Hand the kernel a message; no answer is waited for.
    Send { channel: Channel, generation: Option<Generation>, message: Message },
    /// Send a signal to the kernel of that life.
    Signal { signal: SignalKind, generation: Generation },
    /// Start the kernel anew, if that of this life is still the one.
    RestartKernel(Generation),
    /// Ask now and then what has become of the sandbox; or no more.
    WatchSandbox(bool),
    /// Give the content of the kernel's reply to whoever asked, or tell why none will come.
    Answer { question: String, content: Result<Value, Denied> },
}

/// What stays the same through a session's life.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Its id, which is its name in the headers of its requests.
    pub name: String,
    pub limits: Limits,
    /// How long after its `idle` a kernel may still send output.
    pub late_output: Duration,
    /// Whether its journal outlives this process, so that a later one can go on.
    pub durable: bool,
    /// In which form its outputs are told.
    pub telling: Telling,
}

pub(super) struct Core {
    pub(super) facts: Facts,
    pub(super) state: SessionState,
    /// What the kernel says of itself. It is long: whether it has changed is told by whether it is another one.
    pub(super) info: Arc<Value>,
    pub(super) cells: Cells,
    pub(super) runs: Runs,
    pub(super) queue: VecDeque<u32>,
    pub(super) active: Option<Active>,
    pub(super) recents: Recents,
    pub(super) fold: Fold,
    pub(super) captures: Captures,
    pub(super) generation: Generation,
    /// The last event of the agent that was taken in.
    pub(super) position: Position,
    /// Whether a connection stands.
    pub(super) attached: bool,
    /// After attaching: the agent's last event from before. Until it has come, what is known is old.
    pub(super) replay_to: Option<Seq>,
    /// Events were lost, and the kernel has not been asked yet what it is doing.
    pub(super) doubt: bool,
    /// The question whose answer shows that the kernel is there and done with the run, after events were lost.
    pub(super) probe: Option<String>,
    /// Questions (completion, inspection) that the kernel has not answered.
    pub(super) asked: BTreeSet<String>,
    /// Where the kernel answers them while it runs a cell.
    pub(super) subshell: Subshell,
    pub(super) start_deadline: Option<Instant>,
    pub(super) restarts: u32,
    /// The life of the kernel that is being replaced by a restart.
    pub(super) restart_of: Option<Generation>,
    /// The life for which that was asked on this connection.
    pub(super) asked_restart_of: Option<Generation>,
    /// What the agent said of itself when the connection came to stand.
    pub(super) hello: Option<Hello>,
    /// The last of our own events.
    pub(super) seq: Seq,
    pub(super) piece: Piece,
    pub(super) touched: BTreeSet<u32>,
    pub(super) notices: u32,
    pub(super) effects: Vec<Effect>,
    pub(super) written: Written,
    pub(super) unwritten: Option<Unwritten>,
}

/// Messages that have been taken in, and of which nothing follows: to a later server they may come again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unwritten {
    /// When that is written down at the latest.
    pub until: Instant,
    /// Bytes that the agent keeps meanwhile.
    pub bytes: usize,
}

/// What is written down already: most pieces change none of it.
#[derive(Debug, Default)]
pub(super) struct Written {
    info: Arc<Value>,
    pub resume: Option<String>,
    /// Cells of whose outputs something is written down.
    pub folds: BTreeSet<u32>,
}

/// What a later server needs to go on, beside cells, their folds and numbers, which stand elsewhere.
#[derive(Serialize, Deserialize)]
struct Resume<C> {
    generation: Generation,
    restarts: u32,
    restart_of: Option<Generation>,
    doubt: bool,
    runs: Runs,
    active: Option<ActiveResume>,
    captures: C,
}

/// A session as it was written down.
#[derive(Debug, Default)]
pub struct Stored {
    /// Its cells.
    pub cells: Vec<Cell>,
    /// The last of its events.
    pub last_seq: Seq,
    /// The last event of the agent in its journal.
    pub position: Position,
    /// What its driver left.
    pub resume: Option<String>,
    /// What it left of each cell's outputs, by their numbers in the fold.
    pub folds: Vec<(u32, String)>,
    /// What its kernel said of itself, as JSON text: a kernel's own words are never parsed by a derived reader.
    pub kernel_info: Option<String>,
}

impl Core {
    pub fn new(facts: Facts, now: Now) -> Self {
        Self {
            facts,
            state: SessionState::Starting,
            info: Arc::default(),
            cells: Cells::default(),
            runs: Runs::default(),
            queue: VecDeque::new(),
            active: None,
            recents: Recents::default(),
            fold: Fold::new(StreamStyle::Terminal),
            captures: Captures::default(),
            generation: Generation(0),
            position: Position::default(),
            attached: false,
            replay_to: None,
            doubt: false,
            probe: None,
            asked: BTreeSet::new(),
            subshell: Subshell::default(),
            start_deadline: Some(now.instant + START_DEADLINE),
            restarts: 0,
            restart_of: None,
            asked_restart_of: None,
            hello: None,
            seq: Seq::default(),
            piece: Piece::default(),
            touched: BTreeSet::new(),
            notices: 0,
            effects: Vec::new(),
            written: Written::default(),
            unwritten: None,
        }
    }

    /// Goes on where an earlier server's machine was cut off. What its driver left cannot be read: the cells are kept, and what
    /// ran ends as lost.
    pub fn restore(facts: Facts, stored: Stored, now: Now) -> Self {
        let mut core = Self::new(facts, now);
        let mut queued: Vec<(Seq, u32)> = stored
            .cells
            .iter()
            .filter(|cell| cell.run.phase == CellPhase::Queued)
            .map(|cell| (cell.run.first_seq, cell.number))
            .collect();
        queued.sort_unstable();
        core.queue = queued.into_iter().map(|(_, number)| number).collect();
        core.cells = Cells::restore(stored.cells);
        (core.seq, core.position) = (stored.last_seq, stored.position);
        let info = stored.kernel_info.as_deref().map(|info| wire_json::parse_lenient(info.as_bytes()));
        core.info = Arc::new(info.and_then(Result::ok).unwrap_or(Value::Null));
        let resume = stored.resume.as_deref().and_then(|text| serde_json::from_str::<Resume<Captures>>(text).ok());
        if let (Some(resume), Some(folds)) = (resume, Self::read_folds(&stored.folds)) {
            core.restore_folds(folds);
            (core.generation, core.restarts, core.captures) = (resume.generation, resume.restarts, resume.captures);
            core.runs = resume.runs;
            core.active = resume.active.map(|active| Active::restore(active, core.facts.late_output, now));
            (core.restart_of, core.doubt) = (resume.restart_of, resume.doubt);
            if core.restart_of.is_some() {
                core.state = SessionState::Restarting;
            }
        }
        core.end_what_nobody_runs(now);
        core
    }

    /// Cells that are said to run, and of whose run nothing is known: what the driver left cannot be read.
    fn end_what_nobody_runs(&mut self, now: Now) {
        let known = self.active.as_ref().map(|active| active.number);
        let is_lost = |cell: &&Cell| cell.run.phase == CellPhase::Running && Some(cell.number) != known;
        let lost: Vec<u32> = self.cells.iter().filter(is_lost).map(|cell| cell.number).collect();
        for number in lost {
            let result = RunResult::without_run(RunStatus::KernelDied, "the server lost track of the run", now.time);
            self.end_cell(now, number, result);
        }
    }

    /// What is to be written down, and what is to be done after that.
    pub fn take_out(&mut self, now: Now) -> (Piece, Vec<Effect>) {
        if self.can_wait(now) {
            return (Piece::default(), Vec::new());
        }
        self.unwritten = None;
        let mut piece = std::mem::take(&mut self.piece);
        for number in std::mem::take(&mut self.touched) {
            if let Some(cell) = self.cells.get(number) {
                piece.cells.push(CellChange::Run { number, run: Box::new(cell.run.clone()) });
            }
        }
        piece.folds = self.take_folds();
        if !piece.is_empty() && self.facts.durable {
            if !Arc::ptr_eq(&self.info, &self.written.info) {
                piece.kernel_info = Some(self.info.to_string());
                self.written.info = self.info.clone();
            }
            let resume = self.resume();
            if resume != self.written.resume {
                piece.resume.clone_from(&resume);
                self.written.resume = resume;
            }
        }
        (piece, std::mem::take(&mut self.effects))
    }

    /// Whether there is nothing but the news that the agent's messages have been taken in.
    fn can_wait(&self, now: Now) -> bool {
        self.piece.tells_only_position()
            && self.touched.is_empty()
            && self.effects.is_empty()
            && Arc::ptr_eq(&self.info, &self.written.info)
            && self.unwritten.is_some_and(|waits| waits.bytes < UNWRITTEN.1 && now.instant < waits.until)
    }

    /// A message of so many bytes is being taken in.
    pub(super) fn count_unwritten(&mut self, now: Now, bytes: usize) {
        let until = now.instant + UNWRITTEN.0;
        self.unwritten.get_or_insert(Unwritten { until, bytes: 0 }).bytes += bytes;
    }

    fn resume(&self) -> Option<String> {
        let active = self.active.as_ref().map(Active::to_keep);
        let resume = Resume {
            generation: self.generation,
            restarts: self.restarts,
            restart_of: self.restart_of,
            // A question that was asked goes down with us; a later server asks again.
            doubt: self.doubt || self.probe.is_some(),
            runs: self.runs.clone(),
            active,
            captures: &self.captures,
        };
        serde_json::to_string(&resume).ok()
    }

    pub fn is_gone(&self) -> bool {
        matches!(self.state, SessionState::Gone { .. })
    }

    // ---- writing down -----------------------------------------------------------------------------------------------

    pub(super) fn event(&mut self, now: Now, number: Option<u32>, body: EventBody) -> Seq {
        self.seq = self.seq.next();
        let mut cell = None;
        if let Some(number) = number {
            cell = self.cells.get(number).map(|cell| cell.id.clone());
            if let Some(run) = self.cells.run_mut(number) {
                run.last_seq = self.seq;
                self.touched.insert(number);
            }
        }
        self.piece.events.push(SessionEvent { seq: self.seq, time: now.time, cell, body });
        self.seq
    }

    pub(super) fn write_cell(&mut self, change: CellChange) {
        if let CellChange::Delete { number } = &change {
            self.touched.remove(number);
        }
        self.piece.cells.push(change);
    }

    pub(super) fn set_state(&mut self, now: Now, state: SessionState) {
        if self.state != state && !self.is_gone() {
            self.state = state.clone();
            self.piece.state = Some(state.clone());
            self.event(now, None, EventBody::State { state, notice: None });
        }
    }

    /// Tells something that people should know. A hostile sandbox can cause many: they end at some point.
    pub(super) fn notice(&mut self, now: Now, mut text: String) {
        if self.notices >= MAX_NOTICES {
            return;
        }
        self.notices += 1;
        if self.notices == MAX_NOTICES {
            text.push_str(" (the last notice of this session: there were too many)");
        }
        let (state, number) = (self.state.clone(), self.active.as_ref().map(|active| active.number));
        self.event(now, number, EventBody::State { state, notice: Some(text) });
    }

    // ---- runs -------------------------------------------------------------------------------------------------------

    /// Hands the next cell to the kernel, if it is free.
    pub(super) fn run_next(&mut self, now: Now) {
        if self.active.is_some() || self.state != SessionState::Idle || self.replay_to.is_some() {
            return;
        }
        let Some(number) = self.queue.pop_front() else { return };
        let Some(cell) = self.cells.get(number) else { return };
        let id = self.runs.begin();
        let (message, timeout) = (self.request(&id, cell, &cell.source), timeout_of(&cell.options));
        let run = ActiveRun::new(id.clone(), self.facts.late_output, now);
        self.active = Some(Active::new(number, run, timeout));
        // What was asked before this run says nothing of its end.
        self.probe = None;
        self.fold.start(CellKey(number));
        self.cells.begin(number, &id, now.time);
        self.event(now, Some(number), EventBody::Started);
        self.set_state(now, SessionState::Busy);
        self.effects.push(Effect::Submit { run: id, generation: self.generation, message });
    }

    pub(super) fn request(&self, id: &RunId, cell: &Cell, source: &str) -> Message {
        let content = json!({
            "code": source, "silent": false, "store_history": true, "user_expressions": {},
            "allow_stdin": cell.options.allow_stdin,
            // The queue is ours: what follows a failing cell is for its owner to decide, not for the kernel to abort.
            "stop_on_error": false,
        });
        let mut message = Message::request(&id.0, &self.facts.name, "execute_request", &content);
        // As Jupyter's own front ends do, so that kernels know which cell runs.
        message.metadata = json!({"cellId": cell.id}).to_string().into();
        message
    }

    /// Begins to stop the run that is under way.
    pub(super) fn stop(&mut self, now: Now, reason: StopReason) {
        let is_ending = self.restart_is_pending();
        let Some(active) = &mut self.active else { return };
        active.run.stop(reason);
        if is_ending {
            // The restart ends it.
            return;
        }
        active.ladder.get_or_insert_with(|| Ladder::new(now.instant));
        self.set_state(now, SessionState::Interrupting);
    }

    pub(super) fn finish(&mut self, now: Now, result: RunResult) {
        self.probe = None;
        let Some(active) = self.active.take() else { return };
        // Where the kernel's end came in one piece with the run's beginning, the next kernel must not be given it.
        self.effects.retain(|effect| !matches!(effect, Effect::Submit { run, .. } if run == active.run.id()));
        let recent = Recent { run: active.run.id().clone(), number: active.number, bytes: active.bytes };
        self.recents.push(recent).into_iter().for_each(|old| self.settle(old));
        let fails = result.status != RunStatus::Ok;
        let is_error = result.status == RunStatus::Error;
        self.end_cell(now, active.number, result);
        if fails {
            self.cancel_group(now, active.number, is_error);
        }
    }

    /// A cell has failed: what was queued together with it is not run.
    fn cancel_group(&mut self, now: Now, number: u32, is_error: bool) {
        let Some(options) = self.cells.get(number).map(|cell| cell.options.clone()) else { return };
        if options.group.is_none() || is_error && options.allow_error {
            return;
        }
        let in_group =
            |core: &Self, number: u32| core.cells.get(number).is_some_and(|cell| cell.options.group == options.group);
        let (cancelled, stay) = std::mem::take(&mut self.queue).into_iter().partition(|number| in_group(self, *number));
        let cancelled: VecDeque<u32> = cancelled;
        self.queue = stay;
        for number in cancelled {
            let result = RunResult::without_run(RunStatus::Cancelled, "a cell before it failed", now.time);
            self.end_cell(now, number, result);
        }
    }

    /// What the fold knows of a cell is let go, unless something can still reach it.
    pub(super) fn settle(&mut self, number: u32) {
        let key = CellKey(number);
        let is_active = self.active.as_ref().is_some_and(|active| active.number == number);
        let is_held = is_active || self.fold.has_displays(key) || self.captures.are_in(number);
        if !is_held && self.recents.of_cell(number).is_none() {
            self.fold.forget(key);
        }
    }

    pub(super) fn end_cell(&mut self, now: Now, number: u32, result: RunResult) {
        if let Some(run) = self.cells.run_mut(number) {
            (run.phase, run.result) = (CellPhase::Finished, Some(result.clone()));
        }
        self.event(now, Some(number), EventBody::Finished(Box::new(result)));
    }

    /// Ends what waits without having run.
    pub(super) fn cancel_queue(&mut self, now: Now, why: &str) {
        for number in std::mem::take(&mut self.queue) {
            self.end_cell(now, number, RunResult::without_run(RunStatus::Cancelled, why, now.time));
        }
    }

    pub(super) fn become_idle(&mut self, now: Now) {
        if self.restart_is_pending() {
            // Whatever this kernel still says: it is about to go, and nothing more is begun in it.
            return;
        }
        self.start_deadline = None;
        self.set_state(now, SessionState::Idle);
        self.run_next(now);
    }

    /// The end of everything.
    pub fn end(&mut self, now: Now, why: &str) {
        if self.is_gone() {
            return;
        }
        if let Some(active) = &self.active {
            let result = active.run.sandbox_gone(why, now.instant);
            self.finish(now, result);
        }
        self.cancel_queue(now, why);
        self.set_state(now, SessionState::Gone { why: why.to_owned() });
        self.effects.push(Effect::WatchSandbox(false));
    }

    // ---- what others found out --------------------------------------------------------------------------------------

    pub fn submitted(&mut self, now: Now, run: &RunId, result: Result<bool, LinkError>) {
        let (Err(error), Some(active)) = (result, &self.active) else { return };
        if active.run.id() != run {
            return;
        }
        let mut result = active.run.refused(&error.to_string(), now.instant);
        if matches!(error, LinkError::TooLarge { .. }) {
            (result.status, result.kernel_gone) = (RunStatus::Error, false);
            self.finish(now, result);
            return self.become_idle(now);
        }
        self.finish(now, result);
        // It is dead, which has not been told yet, or deaf. The next run would fare no better.
        if !self.restart_is_pending() {
            self.replace_kernel(now, true);
        }
    }

    pub fn sandbox_is(&mut self, now: Now, state: &SandboxState) {
        if let SandboxState::Ended { why } = state {
            self.end(now, &format!("the sandbox has ended: {why}"));
        }
    }

    // ---- time -------------------------------------------------------------------------------------------------------

    pub fn next_deadline(&self) -> Option<Instant> {
        let active = self.active.as_ref();
        let run = active.filter(|_| self.is_current()).and_then(|active| active.run.deadline());
        let timeout = active.and_then(Active::times_out_at);
        let ladder = active.and_then(|active| active.ladder.as_ref()).and_then(Ladder::deadline);
        let unwritten = self.unwritten.map(|waits| waits.until);
        [run, timeout, ladder, self.start_deadline, self.subshell_deadline(), unwritten].into_iter().flatten().min()
    }

    pub fn tick(&mut self, now: Now) {
        if self.start_deadline.is_some_and(|at| at <= now.instant) {
            return self.end(now, &format!("the kernel did not answer within {} s of its start", START_DEADLINE.as_secs()));
        }
        self.stop_awaiting_subshell(now);
        let Some(active) = &self.active else { return };
        if let (Some(at), Some(limit)) = (active.times_out_at(), active.timeout)
            && at <= now.instant
        {
            self.stop(now, StopReason::Timeout(limit));
        }
        let due = self.active.as_mut().and_then(|active| active.ladder.as_mut()).and_then(|ladder| ladder.due(now.instant));
        match due {
            Some(Step::Signal(signal)) => {
                self.effects.push(Effect::Signal { signal, generation: self.generation });
                self.notice(now, describe_step(signal).to_owned());
            }
            Some(Step::GiveUp) => return self.end(now, "its kernel was killed, and the sandbox does not answer"),
            None => {}
        }
        self.finish_if_done(now);
    }

    pub(super) fn finish_if_done(&mut self, now: Now) {
        // What of the run's output is still to come cannot be told from silence while nobody listens.
        if !self.is_current() {
            return;
        }
        if let Some(result) = self.active.as_ref().and_then(|active| active.run.finished(now.instant)) {
            self.ended_well();
            self.finish(now, result);
            self.become_idle(now);
        }
    }

    pub(super) fn output_cap(&self) -> u64 {
        let limit = self.facts.limits.output_bytes();
        limit.saturating_add(limit / 8 + OUTPUT_SLACK)
    }
}

fn timeout_of(options: &RunOptions) -> Option<Duration> {
    // More than can be expressed is as good as never.
    options.timeout_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}
