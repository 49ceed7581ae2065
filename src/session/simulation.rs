//! The machine in a world that is made of cuts and crashes. An agent, a kernel, a journal and a clock are played here; chance
//! decides what happens next, from a fixed seed, so that a failure comes again. `SIMULATION_SEED` (a number) tries other chances,
//! `PROPTEST_CASES` more of them.
//!
//! ```text
//!   commands ──▶ ┌──────┐ piece  ┌──────┐    effects ──▶ frames ─╳─▶ ┌───────┐
//!   time     ──▶ │ core │ ─────▶ │ book │                            │ agent │
//!   events   ──▶ └──────┘        └──────┘ ◀── checks every promise   └───────┘
//!      ▲             ╳ killed at any point, restored from the book       │
//!      └───────────────────────────── ╳ cut ◀────────────────────────────┘
//! ```
//!
//! What is promised, and checked in [`journal`]: every accepted run ends once; numbers have no gap; the queue runs in order; the
//! outputs told are those that the kernel sent, whatever was cut and killed; nothing follows the end; what has been told to have
//! ended is never begun. And here: no run is executed twice, and a world that is left alone comes to rest.

mod agent;
mod journal;

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use self::agent::{Agent, Frame, SOURCES};
use self::journal::Book;
use super::machine::{Context, Effect, Machine, MachineConfig, Query};
use super::{CellEdit, Denied, NewCell, OutputMode, RunOptions, SessionState};
use crate::ids::{self, RunId, Seq};
use crate::link::{LinkError, LinkEvent};
use crate::policy::Limits;
use crate::sandbox::SandboxState;
use crate::wire::Channel;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Deed {
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
    /// The connection is cut; of the frames under way, so many still arrive.
    Cut(usize),
    Attach,
    /// The server is killed at the next chance.
    Crash(Crash),
    KernelDies,
    ChildOutOfMemory,
    SandboxEnds,
    NewEpoch,
    Pass(u64),
    /// So many frames reach the agent.
    Frames(usize),
    /// So many steps of the kernel.
    Work(usize),
    /// So many events reach the session.
    Deliver(usize),
    /// All of it once.
    Go,
}

/// Where the server is killed.
#[derive(Clone, Copy, Debug)]
enum Crash {
    BeforeWriting,
    /// So many effects are still done, and of the frames under way so many still arrive.
    AfterWriting {
        effects: usize,
        frames: usize,
    },
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let cell = 0..6usize;
    let add = (SOURCES, prop::bool::weighted(0.9), any::<bool>(), prop::bool::weighted(0.1));
    let crash = prop_oneof![
        Just(Crash::BeforeWriting),
        (0..3usize, 0..3usize).prop_map(|(effects, frames)| Crash::AfterWriting { effects, frames }),
    ];
    let command = prop_oneof![
        8 => add.prop_map(|(source, run, stdin, timeout)| Deed::Add { source, run, stdin, timeout }),
        4 => cell.clone().prop_map(Deed::Run),
        1 => (cell.clone(), SOURCES).prop_map(|(cell, source)| Deed::Edit(cell, source)),
        1 => cell.clone().prop_map(Deed::Delete),
        2 => cell.prop_map(Deed::Cancel),
        2 => Just(Deed::Interrupt),
        1 => Just(Deed::Kill),
        2 => Just(Deed::Input),
        1 => Just(Deed::Restart),
        1 => Just(Deed::Ask),
    ];
    let world = prop_oneof![
        3 => (0..4usize).prop_map(Deed::Cut),
        4 => Just(Deed::Attach),
        4 => crash.prop_map(Deed::Crash),
        10 => Just(Deed::KernelDies).prop_flat_map(|dies| prop::bool::weighted(0.1).prop_map(move |yes| if yes { dies.clone() } else { Deed::Go })),
        1 => Just(Deed::ChildOutOfMemory),
        4 => prop_oneof![0..200u64, 500..5_000u64].prop_map(Deed::Pass),
        10 => (1..4usize).prop_map(Deed::Frames),
        20 => (1..8usize).prop_map(Deed::Work),
        20 => (1..8usize).prop_map(Deed::Deliver),
        20 => Just(Deed::Go),
    ];
    let end = prop_oneof![Just(Deed::SandboxEnds), Just(Deed::NewEpoch)];
    let deed = prop_oneof![100 => command, 250 => world, 1 => end];
    prop::collection::vec(deed, 1..90)
}

/// The way between the two ends.
#[derive(Default)]
struct Line {
    stands: bool,
    /// The next event that is read of the agent.
    cursor: Seq,
    frames: VecDeque<Frame>,
    /// Submissions that have no answer: they are made again after a cut.
    unanswered: Vec<Frame>,
}

struct World {
    machine: Machine,
    agent: Agent,
    book: Book,
    line: Line,
    /// What the next piece is made of.
    taken: Vec<LinkEvent>,
    crash: Option<Crash>,
    watching: bool,
    sandbox_ended: bool,
    late_output: Duration,
    start: (Instant, SystemTime),
    passed: Duration,
    executed: Vec<String>,
}

impl World {
    fn new(buffer: usize, late_output: u64) -> Self {
        let late_output = Duration::from_millis(late_output);
        let start = (Instant::now(), SystemTime::now());
        Self {
            machine: Machine::new(config(late_output), context(start)),
            agent: Agent::new(1, buffer),
            book: Book::default(),
            line: Line::default(),
            taken: Vec::new(),
            crash: None,
            watching: false,
            sandbox_ended: false,
            late_output,
            start,
            passed: Duration::ZERO,
            executed: Vec::new(),
        }
    }

    fn cx(&self) -> Context {
        context((self.start.0 + self.passed, self.start.1 + self.passed))
    }

    // ---- the server -------------------------------------------------------------------------------------------------

    /// What the driver does after each thing that happened.
    fn turn(&mut self) {
        self.machine.tick(self.cx());
        let (transaction, effects) = self.machine.take_out(self.cx());
        let crash = if transaction.is_empty() { None } else { self.crash.take() };
        if matches!(crash, Some(Crash::BeforeWriting)) {
            return self.restart_server(0);
        }
        if !transaction.is_empty() {
            let taken = std::mem::take(&mut self.taken);
            self.book.append(&transaction, &taken);
            self.book.same_cells(self.machine.cells());
        }
        if transaction.position.is_some() {
            self.line.frames.push_back(Frame::Ack(self.machine.position().seq));
        }
        let done = match crash {
            Some(Crash::AfterWriting { effects, .. }) => effects,
            _ => usize::MAX,
        };
        effects.into_iter().take(done).for_each(|effect| self.act(effect));
        if let Some(Crash::AfterWriting { frames, .. }) = crash {
            self.restart_server(frames);
        }
        if self.machine.is_gone() {
            // The driver ends, and its link with it.
            self.line = Line::default();
        }
    }

    fn act(&mut self, effect: Effect) {
        let frame = match effect {
            Effect::Submit { run, generation, message } => {
                let active = self.machine.active_id();
                assert_eq!(active, Some(run), "only what runs is handed over");
                Frame::Submit { channel: Channel::Shell, generation: Some(generation), message, tell: true }
            }
            Effect::Send { channel, generation, message } => Frame::Submit { channel, generation, message, tell: false },
            Effect::Signal { signal, generation } => Frame::Signal { signal, generation },
            Effect::RestartKernel(generation) => Frame::Restart(generation),
            Effect::WatchSandbox(yes) => return self.watching = yes,
            Effect::Answer { .. } => return,
        };
        self.line.frames.push_back(frame);
    }

    fn restart_server(&mut self, frames: usize) {
        self.cut(frames);
        (self.line, self.watching) = (Line::default(), false);
        self.taken.clear();
        if !self.book.is_gone() {
            self.machine = Machine::restore(config(self.late_output), self.book.stored(), self.cx());
            self.turn();
        }
    }

    fn take(&mut self, event: LinkEvent) {
        self.taken.push(event.clone());
        self.machine.take(self.cx(), event);
    }

    // ---- the line ---------------------------------------------------------------------------------------------------

    /// So many of the frames under way arrive; no answer does.
    fn cut(&mut self, frames: usize) {
        if !self.line.stands {
            return;
        }
        self.line.stands = false;
        for frame in self.line.frames.iter().take(frames).cloned() {
            let _ = self.agent.take(frame);
        }
        let lost = std::mem::take(&mut self.line.frames);
        self.line.unanswered.extend(lost.into_iter().filter(|frame| matches!(frame, Frame::Submit { .. })));
    }

    fn attach(&mut self) {
        if self.line.stands || self.machine.is_gone() {
            return;
        }
        if self.sandbox_ended {
            return self.take(LinkEvent::Detached { reason: "nobody answers".to_owned() });
        }
        // What was asked while nobody listened follows what was not answered before.
        let asked = std::mem::take(&mut self.line.frames);
        self.line.frames = std::mem::take(&mut self.line.unanswered).into();
        self.line.frames.extend(asked.into_iter().filter(|frame| !matches!(frame, Frame::Ack(_))));
        let position = self.machine.position();
        if position.epoch != self.agent.epoch {
            // The real link still hands them over; whether a fresh kernel runs them before its sandbox is destroyed is chance.
            self.line.frames.clear();
        }
        self.line.cursor = if position.epoch == self.agent.epoch { position.seq.next() } else { Seq::FIRST };
        self.line.stands = true;
        self.take(LinkEvent::Attached(self.agent.hello()));
    }

    fn pass_frames(&mut self, count: usize) {
        for _ in 0..count {
            let Some(frame) = self.line.frames.pop_front_if(|_| self.line.stands) else { return };
            let answer = self.agent.take(frame.clone());
            if let Frame::Submit { message, tell: true, .. } = frame {
                let run = RunId(message.header().msg_id);
                self.machine.submitted(self.cx(), &run, answer.map_err(|reason| LinkError::Refused(reason.into())));
                self.turn();
            }
        }
    }

    fn deliver(&mut self, count: usize) {
        for _ in 0..count {
            let Some(event) = self.agent.read(self.line.cursor).filter(|_| self.line.stands && !self.machine.is_gone())
            else {
                break;
            };
            self.line.cursor = match &event {
                LinkEvent::Event { seq, .. } | LinkEvent::Lost { to: seq, .. } => seq.next(),
                _ => self.line.cursor,
            };
            self.take(event);
        }
        self.turn();
    }

    fn work(&mut self, steps: usize) {
        for _ in 0..steps {
            if self.sandbox_ended {
                return;
            }
            self.agent.step();
            for (run, code) in std::mem::take(&mut self.agent.begun) {
                self.book.executes(&run, &code);
                assert!(!self.executed.contains(&run), "executed twice");
                self.executed.push(run);
            }
        }
    }

    /// Time passes; the driver wakes when something is due.
    fn pass(&mut self, time: Duration) {
        let end = self.passed + time;
        while let Some(due) = self.machine.next_deadline().filter(|_| !self.machine.is_gone()) {
            let due = due.saturating_duration_since(self.start.0).max(self.passed);
            if due > end {
                break;
            }
            self.passed = due;
            self.turn();
            let again = self.machine.next_deadline().is_some_and(|at| at <= self.cx().instant);
            assert!(!again || self.machine.is_gone(), "what is due is done, or it is due for ever");
        }
        self.passed = end;
        self.turn();
    }

    fn go(&mut self) {
        self.attach();
        self.turn();
        self.pass_frames(8);
        self.work(8);
        self.deliver(16);
        if self.sandbox_ended && self.watching {
            self.machine.sandbox_is(self.cx(), &SandboxState::Ended { why: "it was ended".to_owned() });
            self.turn();
        }
    }

    // ---- what happens -----------------------------------------------------------------------------------------------

    fn cell(&self, index: usize) -> String {
        let mut cells: Vec<_> = self.machine.cells().collect();
        cells.sort_by_key(|cell| cell.number);
        cells.get(index % cells.len().max(1)).map_or_else(|| "none".to_owned(), |cell| cell.id.clone())
    }

    fn happen(&mut self, deed: Deed) {
        match deed {
            Deed::Cut(frames) if self.line.stands => {
                self.cut(frames);
                self.take(LinkEvent::Detached { reason: "cut".to_owned() });
            }
            Deed::Cut(_) => {}
            Deed::Attach => self.attach(),
            Deed::Crash(crash) => self.crash = Some(crash),
            Deed::KernelDies => self.agent.die(None),
            Deed::ChildOutOfMemory => self.agent.child_out_of_memory(),
            Deed::SandboxEnds | Deed::NewEpoch => {
                self.happen(Deed::Cut(0));
                self.sandbox_ended = matches!(deed, Deed::SandboxEnds);
                self.agent = Agent::new(self.agent.epoch.0 + 1, 1000);
            }
            Deed::Pass(ms) => self.pass(Duration::from_millis(ms)),
            Deed::Frames(count) => self.pass_frames(count),
            Deed::Work(steps) => self.work(steps),
            Deed::Deliver(count) => self.deliver(count),
            Deed::Go => self.go(),
            command => {
                let denied = self.command(command).err();
                assert_eq!(matches!(denied, Some(Denied::Gone { .. })), self.machine.is_gone(), "{denied:?}");
            }
        }
        self.turn();
    }

    fn command(&mut self, deed: Deed) -> Result<(), Denied> {
        let cx = self.cx();
        match deed {
            Deed::Add { source, run, stdin, timeout } => {
                let options = RunOptions {
                    timeout_seconds: timeout.then_some(2.5),
                    allow_stdin: stdin,
                    // Half of all cells: those that may ask.
                    group: stdin.then(|| "together".to_owned()),
                    allow_error: timeout,
                };
                let trace = stdin.then(|| "who asks".to_owned());
                self.machine.add_cell(cx, NewCell { source, run, options, ..NewCell::default() }, trace).map(drop)
            }
            Deed::Run(cell) => self.machine.run_cell(cx, &self.cell(cell), None, None).map(drop),
            Deed::Edit(cell, source) => {
                let edit = CellEdit { source: Some(source), ..CellEdit::default() };
                self.machine.edit_cell(cx, &self.cell(cell), edit).map(drop)
            }
            Deed::Delete(cell) => self.machine.delete_cell(cx, &self.cell(cell)),
            Deed::Cancel(cell) => self.machine.cancel_cell(cx, &self.cell(cell)).map(drop),
            Deed::Interrupt => self.machine.interrupt(cx),
            Deed::Kill => self.machine.kill(cx),
            Deed::Input => self.input(),
            Deed::Restart => self.machine.restart(cx),
            _ => self.machine.query(self.cx(), &Query::Complete { code: String::new(), cursor: 0 }).map(drop),
        }
    }

    fn input(&mut self) -> Result<(), Denied> {
        let (generation, message) = self.machine.input(self.cx(), "42")?;
        self.act(Effect::Send { channel: Channel::Stdin, generation: Some(generation), message });
        Ok(())
    }

    // ---- the end ----------------------------------------------------------------------------------------------------

    /// The world is left alone, but for a user who answers questions and interrupts what runs for ever: it comes to rest.
    fn settle(&mut self) {
        self.crash = None;
        let was_gone = self.machine.is_gone();
        for _ in 0..300 {
            self.go();
            if self.machine.is_gone() || self.is_at_rest() {
                break;
            }
            // A question that was lost by name is answered by nobody.
            let is_lost = self.agent.is_asking() && self.book.losses > 0;
            if self.input().is_err() && (self.agent.is_stuck() || is_lost) {
                let _ = self.machine.interrupt(self.cx());
            }
            self.pass(Duration::from_millis(500));
        }
        self.book.check_settled();
        match self.machine.state() {
            SessionState::Gone { why } => {
                let unexpected = ["did not answer", "does not answer", "protocol"].iter().any(|words| why.contains(words));
                assert!(was_gone || !unexpected, "ended for no reason: {why}");
                self.check_gone();
            }
            state => {
                assert_eq!(*state, SessionState::Idle);
                assert!(self.machine.has_no_open_requests(), "every question has been answered or given up");
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        let is_idle = *self.machine.state() == SessionState::Idle && self.machine.is_at_rest();
        let nothing_comes =
            self.agent.is_done() && self.agent.read(self.line.cursor).is_none() && self.line.frames.is_empty();
        is_idle && nothing_comes
    }

    /// No way leads out.
    fn check_gone(&mut self) {
        let (state, events) =
            (self.machine.state().clone(), [self.agent.read(Seq::FIRST), Some(LinkEvent::Attached(self.agent.hello()))]);
        events.into_iter().flatten().for_each(|event| self.machine.take(self.cx(), event));
        let commands = [Deed::Restart, Deed::Interrupt, Deed::Kill, Deed::Input, Deed::Ask, Deed::Run(0), Deed::Delete(0)];
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

fn config(late_output: Duration) -> MachineConfig {
    let (session, limits, output_mode) = ("simulation".to_owned(), Limits::default(), OutputMode::Changes);
    MachineConfig { session, limits, late_output, durable: true, output_mode }
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
    let late_output = prop_oneof![Just(0u64), Just(150)];
    let result = runner(cases).run(&(buffer, late_output, deeds()), |(buffer, late_output, deeds)| {
        let mut world = World::new(buffer, late_output);
        deeds.into_iter().for_each(|deed| world.happen(deed));
        world.settle();
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn nothing_is_lost_in_any_order_of_cuts_and_crashes() {
    simulate(400, Just(10_000));
}

#[test]
fn a_window_that_overflows_is_named_and_gone_on_from() {
    simulate(400, 1..20usize);
}
