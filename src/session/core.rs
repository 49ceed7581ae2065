//! The machine: what a session is, and how each thing that happens to it changes it. Pure: it reads no clock and does no
//! I/O. What is to be written down collects in a [`Piece`], what is to be done after that in [`Effect`]s.
//!
//! Here are the life of the kernel and of the runs; [`super::commands`] has what clients ask for, [`super::messages`] what the
//! kernel says.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cells::{Cell, CellPhase, Cells, RunOptions};
use super::handle::SessionState;
use super::ladder::{Ladder, Step};
use super::piece::{CellChange, EventBody, Piece, SessionEvent, Telling};
use super::run::{ActiveRun, Now, RunFacts, RunResult, RunStatus, StopReason};
use crate::agent_protocol::{Hello, KernelExit, KernelState, KillReason, SignalKind};
use crate::ids::{Epoch, Generation, RunId, Seq};
use crate::link::{LinkError, Position};
use crate::output::{CellKey, Fold, StreamStyle};
use crate::policy::Limits;
use crate::sandbox::SandboxState;
use crate::wire::{Channel, Message, json as wire_json};

/// How long a kernel may take to answer for the first time. Julia with precompilation takes half of it.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// A kernel that dies by itself is started again, unless it has died so often in a row without finishing a run.
const RESTARTS: u32 = 3;
/// Room above the output limit for what the agent does not count, bytes; an eighth of the limit comes to it.
const OUTPUT_SLACK: u64 = 1 << 20;
/// Ended runs that late output still finds: threads go on printing after their cell.
const RECENT: usize = 32;

/// Notices of one session.
const MAX_NOTICES: u32 = 1000;

/// What is to be done once the piece before it has been written down.
#[derive(Debug)]
pub(super) enum Effect {
    /// Hand a run's request to the kernel and tell what came of it.
    Submit { run: RunId, message: Message },
    /// Hand the kernel a message; no answer is waited for.
    Send { channel: Channel, message: Message },
    /// Send a signal to the kernel of that life.
    Signal { signal: SignalKind, generation: Generation },
    /// Start the kernel anew.
    RestartKernel,
    /// Ask now and then what has become of the sandbox; or no more.
    WatchSandbox(bool),
    /// Give the content of the kernel's reply to whoever asked.
    Answer { question: String, content: Value },
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
    pub(super) info: Value,
    pub(super) cells: Cells,
    pub(super) queue: VecDeque<u32>,
    pub(super) active: Option<Active>,
    pub(super) recent: VecDeque<Recent>,
    pub(super) fold: Fold,
    pub(super) generation: Generation,
    /// The last event of the agent that was taken in.
    pub(super) position: Position,
    /// After attaching: the agent's last event from before. Until it has come, what is known is old.
    replay_to: Option<Seq>,
    /// The question whose answer shows that the kernel is done with the run, after events were lost.
    pub(super) probe: Option<String>,
    /// Questions (completion, inspection) that the kernel has not answered.
    pub(super) asked: BTreeSet<String>,
    start_deadline: Option<Instant>,
    restarts: u32,
    /// The life of the kernel that is being replaced by a restart.
    restart_of: Option<Generation>,
    /// What the agent said of itself when the connection came to stand.
    hello: Option<Hello>,
    /// The last of our own events.
    seq: Seq,
    piece: Piece,
    touched: BTreeSet<u32>,
    notices: u32,
    pub(super) effects: Vec<Effect>,
}

pub(super) struct Active {
    pub number: u32,
    pub run: ActiveRun,
    /// Bytes of output and questions so far. The agent counts too, and stops first, unless a tenant has taken it over.
    pub bytes: u64,
    pub timeout: Option<Duration>,
    pub ladder: Option<Ladder>,
    pub input: Option<Message>,
    /// Written down by an earlier server, and not known to have reached the agent.
    unsure: bool,
}

/// A run that has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Recent {
    pub run: RunId,
    pub number: u32,
    pub bytes: u64,
}

/// What a later server needs to go on, beside cells and numbers, which have columns of their own.
#[derive(Serialize, Deserialize)]
struct Resume<F> {
    generation: Generation,
    /// JSON text: the kernel's own words are never parsed by a derived reader.
    info: String,
    restarts: u32,
    restart_of: Option<Generation>,
    active: Option<ActiveResume>,
    recent: VecDeque<Recent>,
    fold: F,
}

#[derive(Serialize, Deserialize)]
struct ActiveResume {
    number: u32,
    run: RunFacts,
    bytes: u64,
    timeout: Option<Duration>,
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
}

impl Core {
    pub fn new(facts: Facts, now: Now) -> Self {
        Self {
            facts,
            state: SessionState::Starting,
            info: Value::Null,
            cells: Cells::default(),
            queue: VecDeque::new(),
            active: None,
            recent: VecDeque::new(),
            fold: Fold::new(StreamStyle::Terminal),
            generation: Generation(0),
            position: Position::default(),
            replay_to: None,
            probe: None,
            asked: BTreeSet::new(),
            start_deadline: Some(now.instant + START_DEADLINE),
            restarts: 0,
            restart_of: None,
            hello: None,
            seq: Seq::default(),
            piece: Piece::default(),
            touched: BTreeSet::new(),
            notices: 0,
            effects: Vec::new(),
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
        let resume = stored.resume.as_deref().and_then(|text| serde_json::from_str::<Resume<Fold>>(text).ok());
        if let Some(resume) = resume {
            core.generation = resume.generation;
            core.info = wire_json::parse_lenient(resume.info.as_bytes()).unwrap_or(Value::Null);
            (core.restarts, core.recent, core.fold) = (resume.restarts, resume.recent, resume.fold);
            core.active = resume.active.map(|active| Active::restore(active, core.facts.late_output, now));
            core.restart_of = resume.restart_of;
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
    pub fn take_out(&mut self) -> (Piece, Vec<Effect>) {
        let mut piece = std::mem::take(&mut self.piece);
        for number in std::mem::take(&mut self.touched) {
            if let Some(cell) = self.cells.get(number) {
                piece.cells.push(CellChange::Run { number, run: Box::new(cell.run.clone()) });
            }
        }
        if !piece.is_empty() && self.facts.durable {
            piece.resume = self.resume();
        }
        (piece, std::mem::take(&mut self.effects))
    }

    fn resume(&self) -> Option<String> {
        let active = self.active.as_ref().map(|active| ActiveResume {
            number: active.number,
            run: active.run.facts().clone(),
            bytes: active.bytes,
            timeout: active.timeout,
        });
        let resume = Resume {
            generation: self.generation,
            info: self.info.to_string(),
            restarts: self.restarts,
            restart_of: self.restart_of,
            active,
            recent: self.recent.clone(),
            fold: &self.fold,
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
        let id = RunId::random();
        let (message, timeout) = (self.request(&id, cell), timeout_of(&cell.options));
        let run = ActiveRun::new(id.clone(), self.facts.late_output, now);
        self.active = Some(Active { number, run, bytes: 0, timeout, ladder: None, input: None, unsure: false });
        self.fold.start(CellKey(number));
        if let Some(run) = self.cells.run_mut(number) {
            (run.phase, run.run, run.started_at) = (CellPhase::Running, Some(id.clone()), Some(now.time));
        }
        self.event(now, Some(number), EventBody::Started);
        self.set_state(now, SessionState::Busy);
        self.effects.push(Effect::Submit { run: id, message });
    }

    fn request(&self, id: &RunId, cell: &Cell) -> Message {
        let content = json!({
            "code": cell.source, "silent": false, "store_history": true, "user_expressions": {},
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
        let Some(active) = &mut self.active else { return };
        active.run.stop(reason);
        active.ladder.get_or_insert_with(|| Ladder::new(now.instant));
        self.set_state(now, SessionState::Interrupting);
    }

    pub(super) fn finish(&mut self, now: Now, result: RunResult) {
        self.probe = None;
        let Some(active) = self.active.take() else { return };
        self.recent.push_back(Recent { run: active.run.id().clone(), number: active.number, bytes: active.bytes });
        if self.recent.len() > RECENT
            && let Some(old) = self.recent.pop_front()
        {
            self.settle(old.number);
        }
        self.end_cell(now, active.number, result);
    }

    /// What the fold knows of a cell is let go, unless something can still reach it.
    fn settle(&mut self, number: u32) {
        let key = CellKey(number);
        if !self.fold.has_displays(key) && !self.recent.iter().any(|recent| recent.number == number) {
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
        self.start_deadline = None;
        self.set_state(now, SessionState::Idle);
        self.run_next(now);
    }

    /// The end of everything.
    pub fn end(&mut self, now: Now, why: &str) {
        if let Some(active) = &self.active {
            let result = active.run.sandbox_gone(why, now.instant);
            self.finish(now, result);
        }
        self.cancel_queue(now, why);
        self.set_state(now, SessionState::Gone { why: why.to_owned() });
        self.effects.push(Effect::WatchSandbox(false));
    }

    // ---- the kernel -------------------------------------------------------------------------------------------------

    pub(super) fn restart_kernel(&mut self, now: Now) {
        self.restart_of = Some(self.generation);
        self.set_state(now, SessionState::Restarting);
        self.start_deadline = Some(now.instant + START_DEADLINE);
        self.effects.push(Effect::RestartKernel);
    }

    pub(super) fn kernel_exited(&mut self, now: Now, exit: &KernelExit) {
        let started = self.start_deadline.is_none() || self.replay_to.is_some();
        if let Some(active) = &self.active {
            let result = active.run.died(exit, self.facts.limits.memory_mb, now.instant);
            self.finish(now, result);
        }
        if exit.reason == Some(KillReason::Restart) {
            return;
        }
        // They counted on what the kernel knew.
        self.cancel_queue(now, "the kernel died before it");
        self.restarts += 1;
        if started && self.restarts <= RESTARTS {
            self.restart_kernel(now);
        } else {
            self.end(now, &describe_failed_start(exit));
        }
    }

    pub(super) fn ended_well(&mut self) {
        self.restarts = 0;
    }

    /// A connection stands. What the agent has told before is replayed up to its last event.
    pub fn attached(&mut self, now: Now, hello: Hello) {
        self.effects.push(Effect::WatchSandbox(false));
        if hello.epoch == self.position.epoch && hello.generation < self.generation {
            let why = "the agent in its sandbox does not keep to the protocol: its kernel is one that ended before";
            return self.end(now, why);
        }
        if self.position.epoch != hello.epoch {
            if self.position.epoch != Epoch::default() {
                return self.end(now, "its sandbox was started anew by somebody else");
            }
            self.position = Position { epoch: hello.epoch, seq: Seq::default() };
            self.generation = hello.generation;
        }
        let last = Seq(hello.next_seq.0.saturating_sub(1));
        self.replay_to = (self.position.seq < last).then_some(last);
        self.hello = Some(hello);
        if self.replay_to.is_none() {
            self.caught_up(now);
        }
    }

    /// Everything up to this event of the agent has been taken in.
    pub(super) fn taken(&mut self, now: Now, seq: Seq) {
        self.position.seq = seq;
        self.piece.position = Some(self.position);
        if self.replay_to.is_some_and(|last| last <= seq) {
            self.replay_to = None;
            self.caught_up(now);
        }
    }

    /// Events of the agent are gone. The kernel's end, or a new one's beginning, may have been among them.
    pub fn lost(&mut self, now: Now, from: Seq, to: Seq) {
        let number = self.active.as_ref().map(|active| active.number);
        self.event(now, number, EventBody::Lost { from, to });
        if let Some(hello) = self.hello.as_ref().filter(|hello| hello.generation != self.generation) {
            self.generation = hello.generation;
            if let Some(active) = &self.active {
                let result = active.run.sandbox_gone("its kernel was replaced while nobody listened", now.instant);
                self.finish(now, result);
            }
        } else {
            self.ask_whether_done();
        }
        self.taken(now, to);
    }

    /// The run's reply may have been among the lost events. A kernel answers in order: once it answers this question, it has
    /// done with the run.
    fn ask_whether_done(&mut self) {
        if self.active.is_some() {
            let message = Message::new_request(&self.facts.name, "kernel_info_request", &json!({}));
            self.probe = Some(message.header().msg_id);
            self.effects.push(Effect::Send { channel: Channel::Shell, message });
        }
    }

    /// What is known is true now: what was cut off can go on.
    fn caught_up(&mut self, now: Now) {
        if self.is_gone() {
            return;
        }
        let unsure = self.active.as_mut().filter(|active| active.unsure);
        let ready = self.hello.as_ref().is_some_and(|hello| hello.kernel_state == KernelState::Ready);
        if let Some(active) = unsure {
            // The agent knows the request if it has ever seen it, and runs it at most once.
            active.unsure = false;
            let (id, number) = (active.run.id().clone(), active.number);
            self.start_deadline = None;
            self.set_state(now, SessionState::Busy);
            if let Some(cell) = self.cells.get(number) {
                let message = self.request(&id, cell);
                self.effects.push(Effect::Submit { run: id, message });
            }
        } else if self.restart_of == Some(self.generation) {
            // It was asked for, and perhaps never heard of.
            self.restart_kernel(now);
        } else if ready && self.active.is_none() {
            self.restart_of = None;
            self.become_idle(now);
        }
    }

    pub(super) fn kernel_ready(&mut self, now: Now, info: &str) {
        self.info = wire_json::parse_lenient(info.as_bytes()).unwrap_or(Value::Null);
        self.start_deadline = None;
        self.restart_of = None;
        if self.active.is_none() {
            self.become_idle(now);
        }
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
        }
        self.finish(now, result);
        self.become_idle(now);
    }

    pub fn sandbox_is(&mut self, now: Now, state: &SandboxState) {
        if let SandboxState::Ended { why } = state {
            self.end(now, &format!("the sandbox has ended: {why}"));
        }
    }

    // ---- time -------------------------------------------------------------------------------------------------------

    pub fn next_deadline(&self) -> Option<Instant> {
        let active = self.active.as_ref();
        let run = active.and_then(|active| active.run.deadline());
        let timeout = active.and_then(Active::times_out_at);
        let ladder = active.and_then(|active| active.ladder.as_ref()).and_then(Ladder::deadline);
        [run, timeout, ladder, self.start_deadline].into_iter().flatten().min()
    }

    pub fn tick(&mut self, now: Now) {
        if self.start_deadline.is_some_and(|at| at <= now.instant) {
            return self.end(now, &format!("the kernel did not answer within {} s of its start", START_DEADLINE.as_secs()));
        }
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

impl Active {
    fn restore(stored: ActiveResume, late_output: Duration, now: Now) -> Self {
        let run = ActiveRun::restore(stored.run, late_output, now);
        // An escalation that was under way begins again.
        let ladder = run.is_stopping().then(|| Ladder::new(now.instant));
        let ActiveResume { number, bytes, timeout, .. } = stored;
        Self { number, run, bytes, timeout, ladder, input: None, unsure: true }
    }

    fn times_out_at(&self) -> Option<Instant> {
        let limit = self.timeout.filter(|_| !self.run.is_stopping())?;
        self.run.started().checked_add(limit)
    }
}

fn timeout_of(options: &RunOptions) -> Option<Duration> {
    // More than can be expressed is as good as never.
    options.timeout_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

fn describe_step(signal: SignalKind) -> &'static str {
    match signal {
        SignalKind::Interrupt => "interrupting the kernel",
        SignalKind::Terminate => "the kernel does not heed the interrupt; terminating it",
        SignalKind::Kill => "killing the kernel",
    }
}

fn describe_failed_start(exit: &KernelExit) -> String {
    let how = match (exit.out_of_memory, exit.signal, exit.code) {
        (true, ..) => "it ran out of memory".to_owned(),
        (_, Some(signal), _) => format!("signal {signal}"),
        (_, _, Some(code)) => format!("exit code {code}"),
        _ => "unknown reason".to_owned(),
    };
    let words = if exit.last_words.is_empty() { String::new() } else { format!("\n{}", exit.last_words) };
    format!("the kernel ended before it was ready ({how}){words}")
}
