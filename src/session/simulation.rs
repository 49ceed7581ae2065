//! The machine in a simulated world of cuts and crashes. An agent, a kernel, a journal and a clock are simulated here, and chance decides
//! what happens next, from a fixed seed so that a failure can be repeated. `SIMULATION_SEED` (a number) tries other sequences,
//! `PROPTEST_CASES` more of them.
//!
//! ```text
//!   commands ──▶ ┌─────────┐ transaction ┌─────────┐    effects ──▶ frames ─╳─▶ ┌───────┐
//!   time     ──▶ │ machine │ ──────────▶ │ journal │                            │ agent │
//!   events   ──▶ └─────────┘             └─────────┘ ◀── checks every promise   └───────┘
//!      ▲             ╳ killed at any point, restored from the journal               │
//!      └──────────────────────────────────── ╳ cut ◀────────────────────────────────┘
//! ```
//!
//! Checked in [`journal`]: every accepted execution ends once; event numbers have no gap; the queue runs in order; the journaled outputs
//! are those that the kernel sent, whatever was cut and killed; nothing follows the end of a session; an execution that has ended is
//! never begun. Checked here: no execution happens twice, and a world that is left alone comes to rest.

mod agent;
mod journal;

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use self::agent::{Agent, Frame, SOURCES};
use self::journal::CheckedJournal;
use super::machine::{Context, Effect, Machine, MachineConfig, Query};
use super::{CellEdit, Denied, ExecutionOptions, NewCell, OutputMode, SessionState};
use crate::ids::{self, ExecutionId, Seq};
use crate::link::{LinkError, LinkEvent};
use crate::policy::Limits;
use crate::sandbox::SandboxState;
use crate::wire::Channel;

/// One step of the world.
#[derive(Clone, Debug)]
enum Step {
    Add {
        source: String,
        run: bool,
        stdin: bool,
        timeout: bool,
    },
    Run(usize),
    Edit(usize, String),
    Delete(usize),
    Cancel(usize),
    Interrupt,
    Kill,
    Input,
    Restart,
    Ask,
    /// The connection is cut. This many of the frames under way still arrive.
    Cut(usize),
    Attach,
    /// The server is killed at its next commit.
    Crash(Crash),
    KernelDies,
    ChildOutOfMemory,
    SandboxEnds,
    NewEpoch,
    Pass(u64),
    /// This many frames reach the agent.
    Frames(usize),
    /// This many steps of the kernel.
    Work(usize),
    /// This many events reach the session.
    Deliver(usize),
    /// A bit of everything.
    Everything,
}

/// Where the server is killed.
#[derive(Clone, Copy, Debug)]
enum Crash {
    BeforeCommit,
    /// This many effects are still carried out, and this many of the frames under way still arrive.
    AfterCommit {
        effects: usize,
        frames: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cell = 0..6usize;
    let add = (SOURCES, prop::bool::weighted(0.9), any::<bool>(), prop::bool::weighted(0.1));
    let crash = prop_oneof![
        Just(Crash::BeforeCommit),
        (0..3usize, 0..3usize).prop_map(|(effects, frames)| Crash::AfterCommit { effects, frames }),
    ];
    let command = prop_oneof![
        8 => add.prop_map(|(source, run, stdin, timeout)| Step::Add { source, run, stdin, timeout }),
        4 => cell.clone().prop_map(Step::Run),
        1 => (cell.clone(), SOURCES).prop_map(|(cell, source)| Step::Edit(cell, source)),
        1 => cell.clone().prop_map(Step::Delete),
        2 => cell.prop_map(Step::Cancel),
        2 => Just(Step::Interrupt),
        1 => Just(Step::Kill),
        2 => Just(Step::Input),
        1 => Just(Step::Restart),
        1 => Just(Step::Ask),
    ];
    let world = prop_oneof![
        3 => (0..4usize).prop_map(Step::Cut),
        4 => Just(Step::Attach),
        4 => crash.prop_map(Step::Crash),
        10 => Just(Step::KernelDies).prop_flat_map(|dies| prop::bool::weighted(0.1).prop_map(move |yes| if yes { dies.clone() } else { Step::Everything })),
        1 => Just(Step::ChildOutOfMemory),
        4 => prop_oneof![0..200u64, 500..5_000u64].prop_map(Step::Pass),
        10 => (1..4usize).prop_map(Step::Frames),
        20 => (1..8usize).prop_map(Step::Work),
        20 => (1..8usize).prop_map(Step::Deliver),
        20 => Just(Step::Everything),
    ];
    let end = prop_oneof![Just(Step::SandboxEnds), Just(Step::NewEpoch)];
    let step = prop_oneof![100 => command, 250 => world, 1 => end];
    prop::collection::vec(step, 1..90)
}

/// The connection between server and agent.
#[derive(Default)]
struct Connection {
    stands: bool,
    /// The next event that is read from the agent.
    cursor: Seq,
    frames: VecDeque<Frame>,
    /// Submissions without an answer, which are repeated after a cut.
    unanswered: Vec<Frame>,
}

struct World {
    machine: Machine,
    agent: Agent,
    journal: CheckedJournal,
    connection: Connection,
    /// Link events that the next transaction will contain.
    taken: Vec<LinkEvent>,
    crash: Option<Crash>,
    watching: bool,
    sandbox_ended: bool,
    start: (Instant, SystemTime),
    passed: Duration,
    executed: Vec<String>,
}

impl World {
    fn new(buffer: usize) -> Self {
        let start = (Instant::now(), SystemTime::now());
        Self {
            machine: Machine::new(config(), context(start)),
            agent: Agent::new(1, buffer),
            journal: CheckedJournal::default(),
            connection: Connection::default(),
            taken: Vec::new(),
            crash: None,
            watching: false,
            sandbox_ended: false,
            start,
            passed: Duration::ZERO,
            executed: Vec::new(),
        }
    }

    fn cx(&self) -> Context {
        context((self.start.0 + self.passed, self.start.1 + self.passed))
    }

    // ---- the server -------------------------------------------------------------------------------------------------

    /// What the driver does after each input.
    fn commit_and_apply(&mut self) {
        self.machine.tick(self.cx());
        let (transaction, effects) = self.machine.take_out(self.cx());
        let crash = if transaction.is_empty() { None } else { self.crash.take() };
        if matches!(crash, Some(Crash::BeforeCommit)) {
            return self.restart_server(0);
        }
        if !transaction.is_empty() {
            let taken = std::mem::take(&mut self.taken);
            self.journal.append(&transaction, &taken);
            self.journal.same_cells(self.machine.cells());
        }
        if transaction.position.is_some() {
            self.connection.frames.push_back(Frame::Ack(self.machine.position().seq));
        }
        let done = match crash {
            Some(Crash::AfterCommit { effects, .. }) => effects,
            _ => usize::MAX,
        };
        effects.into_iter().take(done).for_each(|effect| self.apply_effect(effect));
        if let Some(Crash::AfterCommit { frames, .. }) = crash {
            self.restart_server(frames);
        }
        if self.machine.is_gone() {
            // The driver ends, and its link with it.
            self.connection = Connection::default();
        }
    }

    fn apply_effect(&mut self, effect: Effect) {
        let frame = match effect {
            Effect::Submit { execution, generation, message } => {
                let active = self.machine.active_id();
                assert_eq!(active, Some(execution), "only the active execution is submitted");
                Frame::Submit { channel: Channel::Shell, generation: Some(generation), message, tell: true }
            }
            Effect::Send { channel, generation, message } => Frame::Submit { channel, generation, message, tell: false },
            Effect::Signal { signal, generation } => Frame::Signal { signal, generation },
            Effect::RestartKernel(generation) => Frame::Restart(generation),
            Effect::WatchSandbox(yes) => return self.watching = yes,
            Effect::Answer { .. } => return,
        };
        self.connection.frames.push_back(frame);
    }

    fn restart_server(&mut self, frames: usize) {
        self.cut(frames);
        (self.connection, self.watching) = (Connection::default(), false);
        self.taken.clear();
        if !self.journal.is_gone() {
            self.machine = Machine::restore(config(), self.journal.stored(), self.cx());
            self.commit_and_apply();
        }
    }

    fn take(&mut self, event: LinkEvent) {
        self.taken.push(event.clone());
        self.machine.take(self.cx(), event);
    }

    // ---- the connection ---------------------------------------------------------------------------------------------

    /// This many of the frames under way arrive; no answer does.
    fn cut(&mut self, frames: usize) {
        if !self.connection.stands {
            return;
        }
        self.connection.stands = false;
        for frame in self.connection.frames.iter().take(frames).cloned() {
            let _ = self.agent.take(frame);
        }
        let lost = std::mem::take(&mut self.connection.frames);
        self.connection.unanswered.extend(lost.into_iter().filter(|frame| matches!(frame, Frame::Submit { .. })));
    }

    fn attach(&mut self) {
        if self.connection.stands || self.machine.is_gone() {
            return;
        }
        if self.sandbox_ended {
            return self.take(LinkEvent::Detached { reason: "no answer".to_owned() });
        }
        // New frames follow those that were not answered before the cut.
        let asked = std::mem::take(&mut self.connection.frames);
        self.connection.frames = std::mem::take(&mut self.connection.unanswered).into();
        self.connection.frames.extend(asked.into_iter().filter(|frame| !matches!(frame, Frame::Ack(_))));
        let position = self.machine.position();
        if position.epoch != self.agent.epoch {
            // The real link still submits them; whether a fresh kernel executes them before its sandbox is destroyed is chance.
            self.connection.frames.clear();
        }
        self.connection.cursor = if position.epoch == self.agent.epoch { position.seq.next() } else { Seq::FIRST };
        self.connection.stands = true;
        self.take(LinkEvent::Attached(self.agent.hello()));
    }

    fn pass_frames(&mut self, count: usize) {
        for _ in 0..count {
            let Some(frame) = self.connection.frames.pop_front_if(|_| self.connection.stands) else { return };
            let answer = self.agent.take(frame.clone());
            if let Frame::Submit { message, tell: true, .. } = frame {
                let run = ExecutionId(message.header().msg_id);
                self.machine.submitted(self.cx(), &run, answer.map_err(|reason| LinkError::Refused(reason.into())));
                self.commit_and_apply();
            }
        }
    }

    fn deliver(&mut self, count: usize) {
        for _ in 0..count {
            let Some(event) =
                self.agent.read(self.connection.cursor).filter(|_| self.connection.stands && !self.machine.is_gone())
            else {
                break;
            };
            self.connection.cursor = match &event {
                LinkEvent::Event { seq, .. } | LinkEvent::Lost { to: seq, .. } => seq.next(),
                _ => self.connection.cursor,
            };
            self.take(event);
        }
        self.commit_and_apply();
    }

    fn work(&mut self, steps: usize) {
        for _ in 0..steps {
            if self.sandbox_ended {
                return;
            }
            self.agent.step();
            for (run, code) in std::mem::take(&mut self.agent.begun) {
                self.journal.executes(&run, &code);
                assert!(!self.executed.contains(&run), "executed twice");
                self.executed.push(run);
            }
        }
    }

    /// Time passes, and the driver wakes when something is due.
    fn pass(&mut self, time: Duration) {
        let end = self.passed + time;
        while let Some(due) = self.machine.next_deadline().filter(|_| !self.machine.is_gone()) {
            let due = due.saturating_duration_since(self.start.0).max(self.passed);
            if due > end {
                break;
            }
            self.passed = due;
            self.commit_and_apply();
            let again = self.machine.next_deadline().is_some_and(|at| at <= self.cx().instant);
            assert!(!again || self.machine.is_gone(), "what is due is done, so it is not due again");
        }
        self.passed = end;
        self.commit_and_apply();
    }

    fn run_a_bit(&mut self) {
        self.attach();
        self.commit_and_apply();
        self.pass_frames(8);
        self.work(8);
        self.deliver(16);
        if self.sandbox_ended && self.watching {
            self.machine.sandbox_is(self.cx(), &SandboxState::Ended { why: "it was ended".to_owned() });
            self.commit_and_apply();
        }
    }

    // ---- what happens -----------------------------------------------------------------------------------------------

    fn cell(&self, index: usize) -> String {
        let mut cells: Vec<_> = self.machine.cells().collect();
        cells.sort_by_key(|cell| cell.number);
        cells.get(index % cells.len().max(1)).map_or_else(|| "none".to_owned(), |cell| cell.id.clone())
    }

    fn apply_step(&mut self, step: Step) {
        match step {
            Step::Cut(frames) if self.connection.stands => {
                self.cut(frames);
                self.take(LinkEvent::Detached { reason: "cut".to_owned() });
            }
            Step::Cut(_) => {}
            Step::Attach => self.attach(),
            Step::Crash(crash) => self.crash = Some(crash),
            Step::KernelDies => self.agent.die(None),
            Step::ChildOutOfMemory => self.agent.child_out_of_memory(),
            Step::SandboxEnds | Step::NewEpoch => {
                self.apply_step(Step::Cut(0));
                self.sandbox_ended = matches!(step, Step::SandboxEnds);
                self.agent = Agent::new(self.agent.epoch.0 + 1, 1000);
            }
            Step::Pass(ms) => self.pass(Duration::from_millis(ms)),
            Step::Frames(count) => self.pass_frames(count),
            Step::Work(steps) => self.work(steps),
            Step::Deliver(count) => self.deliver(count),
            Step::Everything => self.run_a_bit(),
            command => {
                let denied = self.command(command).err();
                assert_eq!(matches!(denied, Some(Denied::Gone { .. })), self.machine.is_gone(), "{denied:?}");
            }
        }
        self.commit_and_apply();
    }

    fn command(&mut self, step: Step) -> Result<(), Denied> {
        let cx = self.cx();
        match step {
            Step::Add { source, run, stdin, timeout } => {
                let options = ExecutionOptions {
                    timeout_seconds: timeout.then_some(2.5),
                    allow_stdin: stdin,
                    // Half of all cells: those that may ask.
                    group: stdin.then(|| "together".to_owned()),
                    allow_error: timeout,
                    ..ExecutionOptions::default()
                };
                let trace = stdin.then(|| "a request".to_owned());
                self.machine.add_cell(cx, NewCell { source, run, options, ..NewCell::default() }, trace).map(drop)
            }
            Step::Run(cell) => self.machine.run_cell(cx, &self.cell(cell), None, None).map(drop),
            Step::Edit(cell, source) => {
                let edit = CellEdit { source: Some(source), ..CellEdit::default() };
                self.machine.edit_cell(cx, &self.cell(cell), edit).map(drop)
            }
            Step::Delete(cell) => self.machine.delete_cell(cx, &self.cell(cell)),
            Step::Cancel(cell) => self.machine.cancel_cell(cx, &self.cell(cell)).map(drop),
            Step::Interrupt => self.machine.interrupt(cx),
            Step::Kill => self.machine.kill(cx),
            Step::Input => self.input(),
            Step::Restart => self.machine.restart(cx),
            _ => self.machine.query(self.cx(), &Query::Complete { code: String::new(), cursor: 0 }).map(drop),
        }
    }

    fn input(&mut self) -> Result<(), Denied> {
        let (generation, message) = self.machine.input(self.cx(), "42")?;
        self.apply_effect(Effect::Send { channel: Channel::Stdin, generation: Some(generation), message });
        Ok(())
    }

    // ---- the end ----------------------------------------------------------------------------------------------------

    /// The world is left alone, except for a user who answers input requests and interrupts endless cells, and comes to rest.
    fn settle(&mut self) {
        self.crash = None;
        let was_gone = self.machine.is_gone();
        for _ in 0..300 {
            self.run_a_bit();
            if self.machine.is_gone() || self.is_at_rest() {
                break;
            }
            // An input request that was lost cannot be answered.
            let is_lost = self.agent.is_asking() && self.journal.losses > 0;
            if self.input().is_err() && (self.agent.is_stuck() || is_lost) {
                let _ = self.machine.interrupt(self.cx());
            }
            self.pass(Duration::from_millis(500));
        }
        self.journal.check_settled();
        match self.machine.state() {
            SessionState::Gone { why } => {
                let unexpected = ["did not answer", "does not answer", "protocol"].iter().any(|words| why.contains(words));
                assert!(was_gone || !unexpected, "ended for no reason: {why}");
                self.check_gone();
            }
            state => {
                assert_eq!(*state, SessionState::Idle);
                assert!(self.machine.has_no_open_requests(), "every request has been answered or given up");
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        let is_idle = *self.machine.state() == SessionState::Idle && self.machine.is_at_rest();
        let nothing_comes =
            self.agent.is_done() && self.agent.read(self.connection.cursor).is_none() && self.connection.frames.is_empty();
        is_idle && nothing_comes
    }

    /// Nothing leads out of the `Gone` state.
    fn check_gone(&mut self) {
        let (state, events) =
            (self.machine.state().clone(), [self.agent.read(Seq::FIRST), Some(LinkEvent::Attached(self.agent.hello()))]);
        events.into_iter().flatten().for_each(|event| self.machine.take(self.cx(), event));
        let commands = [Step::Restart, Step::Interrupt, Step::Kill, Step::Input, Step::Ask, Step::Run(0), Step::Delete(0)];
        for command in commands {
            assert!(matches!(self.command(command), Err(Denied::Gone { .. })));
        }
        self.machine.sandbox_is(self.cx(), &SandboxState::Ended { why: "again".to_owned() });
        self.passed += Duration::from_secs(1000);
        self.machine.tick(self.cx());
        let (transaction, _) = self.machine.take_out(self.cx());
        assert!(transaction.is_empty() && *self.machine.state() == state, "{transaction:?}");
    }
}

fn config() -> MachineConfig {
    let (session, limits, output_mode) = ("simulation".to_owned(), Limits::default(), OutputMode::Changes);
    MachineConfig { session, limits, durable: true, output_mode }
}

fn context((instant, time): (Instant, SystemTime)) -> Context {
    Context { instant, time, make_uuid: ids::random_uuid }
}

fn runner(cases: u32) -> TestRunner {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut seed = [7; 32];
    if let Some(other) = number("SIMULATION_SEED") {
        seed[..8].copy_from_slice(&other.to_le_bytes());
    }
    let cases = number("PROPTEST_CASES").and_then(|cases| u32::try_from(cases).ok()).unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

fn simulate(cases: u32, buffer: impl Strategy<Value = usize>) {
    let result = runner(cases).run(&(buffer, steps()), |(buffer, steps)| {
        let mut world = World::new(buffer);
        steps.into_iter().for_each(|step| world.apply_step(step));
        world.settle();
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn cuts_and_crashes_lose_nothing() {
    simulate(400, Just(10_000));
}

#[test]
fn overflowing_agent_buffer_is_reported_and_survived() {
    simulate(400, 1..20usize);
}
