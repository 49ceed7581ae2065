//! The one task that owns a session. Everything that happens to it comes through its `select`, in one order, to the machine;
//! what the machine wants written is written; and only then is done what follows: requests go out, the agent may forget, and
//! whoever asked is answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::cells::{Cell, RunOfCell};
use super::commands::Denied;
use super::core::{Core, Effect, Facts, Stored};
use super::handle::{Command, Reply, SessionHandle, SessionState};
use super::piece::{CellChange, Journal, Piece, Telling};
use super::run::Now;
use crate::agent_protocol::{Request, SignalKind};
use crate::ids::{Generation, RunId};
use crate::link::{AbortOnDrop, Link, LinkError, LinkEvents, Position};
use crate::policy::Limits;
use crate::sandbox::{Sandbox, SandboxRecord, SandboxState};
use crate::wire::{Channel, Message};

/// Between two looks at a sandbox whose agent is away: from the first to the last, doubling.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Between two tries to write down what could not be written.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Things that happen, and their bytes, before what they mean is written down together.
const BATCH: (usize, usize) = (128, 1 << 20);

/// What a session is made of.
pub struct SessionParts {
    /// Where its sandbox is from.
    pub sandbox: Arc<dyn Sandbox>,
    /// Its sandbox.
    pub record: SandboxRecord,
    /// Its limits.
    pub limits: Limits,
    /// How long after its `idle` its kernel may still send output.
    pub late_output: Duration,
    /// In which form its outputs are told.
    pub telling: Telling,
    /// Where it writes.
    pub journal: Box<dyn Journal>,
    /// Whether the journal outlives this process, so that a later one can go on.
    pub durable: bool,
    /// What an earlier process has left of it.
    pub stored: Option<Stored>,
}

struct Driver {
    core: Core,
    link: Link,
    journal: Box<dyn Journal>,
    sandbox: Arc<dyn Sandbox>,
    record: SandboxRecord,
    state: watch::Sender<SessionState>,
    info: watch::Sender<Arc<Value>>,
    /// Asks what has become of the sandbox while its agent is away.
    watch: Option<AbortOnDrop<()>>,
    /// Who waits for an answer of the kernel.
    asking: HashMap<String, Reply<Value>>,
    /// Answers to be given once what they tell is written down.
    answers: Vec<Box<dyn FnOnce() + Send>>,
    /// Who waits for the end of a run, by the cell's number.
    following: HashMap<u32, Vec<(RunOfCell, Reply<Cell>)>>,
    /// The last position that the agent was told of.
    acked: Position,
    /// Results of requests made in the background.
    told: mpsc::UnboundedSender<Told>,
}

/// What a background request found out.
enum Told {
    Submitted { run: RunId, result: Result<bool, LinkError> },
    Sandbox(SandboxState),
    InputFailed,
}

/// Starts the driver of a session whose sandbox has been made. It ends with the session, or when the last handle is dropped;
/// then the session itself lives on in its sandbox.
pub fn start(parts: SessionParts) -> SessionHandle {
    let SessionParts { sandbox, record, limits, late_output, telling, journal, durable, stored } = parts;
    let facts = Facts { name: record.session.to_string(), limits, late_output, durable, telling };
    let core = match stored {
        Some(stored) => Core::restore(facts, stored, now()),
        None => Core::new(facts, now()),
    };
    let (link, events) = Link::open(sandbox.clone(), record.clone(), core.position);
    let (commands, command_receiver) = mpsc::unbounded_channel();
    let (state, state_receiver) = watch::channel(core.state.clone());
    let (info, info_receiver) = watch::channel(core.info.clone());
    let (told, told_receiver) = mpsc::unbounded_channel();
    let driver = Driver {
        acked: core.position,
        core,
        link,
        journal,
        sandbox,
        record,
        state,
        info,
        watch: None,
        asking: HashMap::new(),
        answers: Vec::new(),
        following: HashMap::new(),
        told,
    };
    tokio::spawn(driver.run(events, command_receiver, told_receiver));
    SessionHandle { commands, state: state_receiver, info: info_receiver, trace: None }
}

/// A session whose sandbox is gone, as an earlier process has stored it: what ran in it ends in the journal, unless the session
/// `was_over` already. The handle says no to everything.
pub async fn end_stored(stored: Stored, was_over: bool, why: &str, mut journal: Box<dyn Journal>) -> SessionHandle {
    let gone = SessionState::Gone { why: why.to_owned() };
    if !was_over {
        let (limits, telling) = (Limits::default(), Telling::Changes);
        let facts = Facts { name: String::new(), limits, late_output: Duration::ZERO, durable: true, telling };
        let mut core = Core::restore(facts, stored, now());
        core.end(now(), why);
        let (piece, _) = core.take_out(now());
        while let Err(error) = journal.append(&piece).await {
            tracing::error!(%error, "cannot write the journal; trying again");
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }
    // The other end is dropped: whoever sends is told that the session is over.
    let (commands, _) = mpsc::unbounded_channel();
    SessionHandle { commands, state: watch::channel(gone).1, info: watch::channel(Arc::default()).1, trace: None }
}

fn now() -> Now {
    Now { instant: tokio::time::Instant::now().into_std(), time: SystemTime::now() }
}

impl Driver {
    async fn run(
        mut self,
        mut events: LinkEvents,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut told: mpsc::UnboundedReceiver<Told>,
    ) {
        while !self.core.is_gone() {
            let deadline = self.core.next_deadline();
            let due = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into());
            let event = async {
                self.journal.room().await;
                events.recv().await
            };
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                Some(told) = told.recv() => self.hear(told),
                event = event => match event {
                    Some(event) => self.core.take(now(), event),
                    None => self.core.end(now(), "its link was closed"),
                },
                () = due, if deadline.is_some() => {}
            }
            self.take_more(&mut events);
            self.core.tick(now());
            self.write_and_act(&mut commands).await;
        }
    }

    /// Takes in what waits besides: what comes fast is written down in large pieces, though not too large for the memory.
    fn take_more(&mut self, events: &mut LinkEvents) {
        let mut bytes = 0;
        for _ in 0..BATCH.0 {
            let Some(event) = (bytes < BATCH.1).then(|| events.try_recv()).flatten() else { return };
            bytes += event.weight();
            self.core.take(now(), event);
        }
    }

    fn obey(&mut self, command: Command) {
        let (core, now) = (&mut self.core, now());
        match command {
            Command::Follow { run, reply } => match core.ended(run) {
                Some(answer) => self.answer(reply, answer),
                None => self.follow(run, reply),
            },
            Command::Add { cell, trace, reply } => {
                let answer = core.add_cell(now, *cell, trace);
                self.answer(reply, answer);
            }
            Command::Run { id, options, trace, reply } => {
                let answer = core.run_cell(now, &id, options, trace);
                self.answer(reply, answer);
            }
            Command::RunAll { runs, trace, reply } => {
                let answer = core.run_cells(now, runs, trace.as_deref());
                self.answer(reply, answer);
            }
            Command::Replace { cells, notebook, reply } => {
                let answer = core.replace_cells(now, cells, notebook);
                self.answer(reply, answer);
            }
            Command::Edit { id, edit, reply } => {
                let answer = core.edit_cell(now, &id, *edit);
                self.answer(reply, answer);
            }
            Command::Delete { id, reply } => {
                let answer = core.delete_cell(now, &id);
                self.answer(reply, answer);
            }
            Command::Cancel { id, reply } => {
                let answer = core.cancel_cell(now, &id);
                self.answer(reply, answer);
            }
            Command::Interrupt { reply } => {
                let answer = core.interrupt(now);
                self.answer(reply, answer);
            }
            Command::Kill { reply } => {
                let answer = core.kill(now);
                self.answer(reply, answer);
            }
            Command::Input { value, reply } => match core.input(&value) {
                Ok((generation, message)) => self.give_input(generation, message, reply),
                Err(denied) => self.answer(reply, Err(denied)),
            },
            Command::Restart { reply } => {
                let answer = core.restart(now);
                self.answer(reply, answer);
            }
            Command::TellKernel { msg_type, content, parent, reply } => {
                let answer = core.tell_kernel(msg_type, &content, parent);
                self.answer(reply, answer);
            }
            Command::AskKernel { msg_type, content, reply } => match core.ask_kernel(now, msg_type, &content) {
                Ok(question) => drop(self.asking.insert(question, reply)),
                Err(denied) => self.answer(reply, Err(denied)),
            },
            Command::AskAgent { request, data, reply } => {
                let answer = self.link.request(request, data);
                tokio::spawn(async move {
                    let _ = reply.send(answer.await);
                });
            }
            Command::End { why, reply } => {
                core.end(now, &why);
                self.answer(reply, Ok(()));
            }
        }
    }

    /// Hands an answer to the agent, which keeps it for the kernel whatever becomes of us.
    fn give_input(&self, generation: Generation, message: Message, reply: Reply<()>) {
        let (taken, told) = (self.link.submit(Channel::Stdin, Some(generation), message), self.told.clone());
        tokio::spawn(async move {
            let answer = match taken.await {
                Ok(_) => Ok(()),
                // Who asked has ended meanwhile.
                Err(_) => {
                    let _ = told.send(Told::InputFailed);
                    Err(Denied::NotAsking)
                }
            };
            let _ = reply.send(answer);
        });
    }

    /// Answers once what has been done so far is written down. Whoever asked may have gone.
    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, answer: Result<T, Denied>) {
        self.answers.push(Box::new(move || drop(reply.send(answer))));
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Submitted { run, result } => self.core.submitted(now(), &run, result),
            Told::InputFailed => self.core.input_failed(),
            Told::Sandbox(state) => self.core.sandbox_is(now(), &state),
        }
    }

    /// Writes down what has happened; then does and tells what follows from it.
    async fn write_and_act(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) {
        let (piece, effects) = self.core.take_out(now());
        if !piece.is_empty() {
            self.write(&piece, commands).await;
        }
        if self.core.position != self.acked && piece.position.is_some() {
            self.acked = self.core.position;
            self.link.ack(self.acked.seq);
        }
        effects.into_iter().for_each(|effect| self.act(effect));
        self.info.send_if_modified(|info| {
            let changes = !Arc::ptr_eq(info, &self.core.info);
            if changes {
                info.clone_from(&self.core.info);
            }
            changes
        });
        if let Some(state) = piece.state {
            self.state.send_replace(state);
        }
        self.answers.drain(..).for_each(|answer| answer());
        self.tell_ends(&piece.cells);
    }

    fn follow(&mut self, run: RunOfCell, reply: Reply<Cell>) {
        let following = self.following.entry(run.number).or_default();
        // Those who ask again and again, and do not wait for long.
        following.retain(|(_, reply)| !reply.is_closed());
        following.push((run, reply));
    }

    /// Tells those who follow a run that has ended with what has just been written down.
    fn tell_ends(&mut self, written: &[CellChange]) {
        for change in written {
            let number = change.number();
            for (run, reply) in self.following.remove(&number).unwrap_or_default() {
                match self.core.ended(run) {
                    Some(answer) => drop(reply.send(answer)),
                    None => self.following.entry(number).or_default().push((run, reply)),
                }
            }
        }
    }

    /// Tries until it is written. Meanwhile nothing more is taken from the agent, which keeps it, and clients are told why
    /// nothing can be begun; but what runs can be stopped, for it may be what fills the disk.
    async fn write(&mut self, piece: &Piece, commands: &mut mpsc::UnboundedReceiver<Command>) {
        while let Err(error) = self.journal.append(piece).await {
            tracing::error!(session = %self.core.facts.name, %error, "cannot write the journal; trying again");
            let again = tokio::time::sleep(TRY_AGAIN);
            tokio::pin!(again);
            loop {
                tokio::select! {
                    () = &mut again => break,
                    Some(command) = commands.recv() => self.deny(command, &error.0),
                }
            }
        }
    }

    fn deny(&mut self, command: Command, why: &str) {
        fn no<T>(reply: Reply<T>, why: &str) {
            let _ = reply.send(Err(Denied::Storage(why.to_owned())));
        }
        match command {
            Command::Add { reply, .. }
            | Command::Run { reply, .. }
            | Command::Edit { reply, .. }
            | Command::Cancel { reply, .. } => {
                no(reply, why);
            }
            Command::Delete { reply, .. }
            | Command::Input { reply, .. }
            | Command::Restart { reply }
            | Command::RunAll { reply, .. }
            | Command::Replace { reply, .. }
            | Command::TellKernel { reply, .. } => no(reply, why),
            Command::AskKernel { reply, .. } => no(reply, why),
            Command::Interrupt { reply } => self.signal_now(SignalKind::Interrupt, reply),
            Command::Kill { reply } => self.signal_now(SignalKind::Kill, reply),
            command => self.obey(command),
        }
    }

    fn signal_now(&mut self, signal: SignalKind, reply: Reply<()>) {
        self.act(Effect::Signal { signal, generation: self.core.generation });
        let _ = reply.send(Ok(()));
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Submit { run, generation, message } => {
                let (taken, told) = (self.link.submit(Channel::Shell, Some(generation), message), self.told.clone());
                tokio::spawn(async move {
                    let _ = told.send(Told::Submitted { run, result: taken.await });
                });
            }
            // What needs no answer: a cut shows as a detached link, and what the agent refuses is about a kernel that has ended
            // meanwhile.
            Effect::Send { channel, generation, message } => drop(self.link.submit(channel, generation, message)),
            Effect::Signal { signal, generation } => {
                drop(self.link.request(Request::Signal { signal, generation }, Bytes::new()));
            }
            Effect::RestartKernel(generation) => drop(self.link.request(Request::Restart { generation }, Bytes::new())),
            Effect::WatchSandbox(true) => self.watch_sandbox(),
            Effect::WatchSandbox(false) => self.watch = None,
            Effect::Answer { question, content } => {
                if let Some(reply) = self.asking.remove(&question) {
                    let _ = reply.send(content);
                }
            }
        }
    }

    /// Asks what has become of the sandbox after its agent stopped talking, again and again until it talks.
    fn watch_sandbox(&mut self) {
        let (sandbox, record, told) = (self.sandbox.clone(), self.record.clone(), self.told.clone());
        self.watch.get_or_insert_with(|| {
            AbortOnDrop(tokio::spawn(async move {
                let mut pause = LOOK.0;
                loop {
                    if let Ok(state @ SandboxState::Ended { .. }) = sandbox.inspect(&record).await {
                        let _ = told.send(Told::Sandbox(state));
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LOOK.1);
                }
            }))
        });
    }
}
