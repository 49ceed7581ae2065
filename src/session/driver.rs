//! The one task that owns a session. All inputs reach the machine through its `select`, in one order. The machine's transaction is
//! committed first; only then are its effects carried out, the agent's events acknowledged, and callers answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::cell::{Cell, QueuedExecution};
use super::handle::{Command, Reply, SessionHandle};
use super::journal::Journal;
use super::machine::{Context, Denied, Effect, Machine, MachineConfig, Stored};
use super::state::SessionState;
use super::transaction::{CellChange, OutputMode, Transaction};
use crate::agent_protocol::{Request, SignalKind, Target};
use crate::ids::{self, CellNumber, ExecutionId, Generation, SessionId};
use crate::link::{AbortOnDrop, Link, LinkError, LinkEvents, Position};
use crate::policy::Limits;
use crate::sandbox::{Sandbox, SandboxRecord, SandboxState};
use crate::wire::{Channel, Message};

/// Pauses between two inspections of a sandbox whose agent is away: the first one, and the longest; they double.
const INSPECT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Pause between two tries to commit.
const COMMIT_RETRY: Duration = Duration::from_secs(1);
/// Most link events, and most bytes of them, in one transaction: fast output is committed in large parts, but not too large for memory.
const BATCH_EVENTS: usize = 128;
const BATCH_BYTES: usize = 1 << 20;

/// Everything that a driver needs.
pub struct SessionParts {
    pub session: SessionId,
    pub sandbox: Arc<dyn Sandbox>,
    pub record: SandboxRecord,
    pub limits: Limits,
    pub output_mode: OutputMode,
    pub journal: Box<dyn Journal>,
    /// Whether the journal outlives this process, so that a later server can go on.
    pub durable: bool,
    /// What an earlier server has stored of the session.
    pub stored: Option<Stored>,
}

struct Driver {
    machine: Machine,
    link: Link,
    journal: Box<dyn Journal>,
    sandbox: Arc<dyn Sandbox>,
    record: SandboxRecord,
    state: watch::Sender<SessionState>,
    info: watch::Sender<Arc<Value>>,
    /// Inspects the sandbox periodically while its agent is away.
    watch: Option<AbortOnDrop<()>>,
    /// Callers that wait for the kernel's reply, by request id.
    asking: HashMap<String, Reply<Value>>,
    /// Answers that are sent after the next commit.
    answers: Vec<Box<dyn FnOnce() + Send>>,
    /// Callers that wait for the end of an execution, by the cell's number.
    waiting: HashMap<CellNumber, Vec<(QueuedExecution, Reply<Cell>)>>,
    /// The last position that was acknowledged to the agent.
    acked: Position,
    /// Outcomes of effects that run in the background.
    outcomes: mpsc::UnboundedSender<Outcome>,
}

/// Outcome of an effect that runs in the background.
enum Outcome {
    Submitted { execution: ExecutionId, result: Result<bool, LinkError> },
    Sandbox(SandboxState),
    InputFailed,
}

/// Starts the driver of a session whose sandbox exists. It ends with the session, or when the last handle is dropped; in the latter
/// case the session itself lives on in its sandbox.
pub fn start(parts: SessionParts) -> SessionHandle {
    let SessionParts { session, sandbox, record, limits, output_mode, journal, durable, stored } = parts;
    let config = MachineConfig { session: session.to_string(), limits, durable, output_mode };
    let machine = match stored {
        Some(stored) => Machine::restore(config, stored, context()),
        None => Machine::new(config, context()),
    };
    let (link, events) = Link::open(sandbox.clone(), record.clone(), Target::Kernel(session), machine.position());
    let (commands, command_receiver) = mpsc::unbounded_channel();
    let (state, state_receiver) = watch::channel(machine.state().clone());
    let (info, info_receiver) = watch::channel(machine.kernel_info().clone());
    let (outcomes, outcome_receiver) = mpsc::unbounded_channel();
    let driver = Driver {
        acked: machine.position(),
        machine,
        link,
        journal,
        sandbox,
        record,
        state,
        info,
        watch: None,
        asking: HashMap::new(),
        answers: Vec::new(),
        waiting: HashMap::new(),
        outcomes,
    };
    tokio::spawn(driver.run(events, command_receiver, outcome_receiver));
    SessionHandle { commands, state: state_receiver, info: info_receiver, trace: None }
}

/// A session whose sandbox is gone, as an earlier server has stored it. Unless it `was_over` already, its open executions end in the
/// journal. The handle denies every command.
pub async fn end_stored(stored: Stored, was_over: bool, why: &str, mut journal: Box<dyn Journal>) -> SessionHandle {
    let gone = SessionState::Gone { why: why.to_owned() };
    if !was_over {
        let (session, limits, output_mode) = (String::new(), Limits::default(), OutputMode::Changes);
        let config = MachineConfig { session, limits, durable: true, output_mode };
        let mut machine = Machine::restore(config, stored, context());
        machine.end(context(), why);
        let (transaction, _) = machine.take_out(context());
        while let Err(error) = journal.append(&transaction).await {
            tracing::error!(%error, "journal not writable; retrying");
            tokio::time::sleep(COMMIT_RETRY).await;
        }
    }
    // The receiver is dropped, so every command fails.
    let (commands, _) = mpsc::unbounded_channel();
    SessionHandle { commands, state: watch::channel(gone).1, info: watch::channel(Arc::default()).1, trace: None }
}

fn context() -> Context {
    Context { instant: tokio::time::Instant::now().into_std(), time: SystemTime::now(), make_uuid: ids::random_uuid }
}

impl Driver {
    async fn run(
        mut self,
        mut events: LinkEvents,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut outcomes: mpsc::UnboundedReceiver<Outcome>,
    ) {
        while !self.machine.is_gone() {
            let deadline = self.machine.next_deadline();
            let due = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into());
            let event = async {
                self.journal.room().await;
                events.recv().await
            };
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.handle_command(command),
                    None => return,
                },
                Some(outcome) = outcomes.recv() => self.handle_outcome(outcome),
                event = event => match event {
                    Some(event) => self.machine.take(context(), event),
                    None => self.machine.end(context(), "its link was closed"),
                },
                () = due, if deadline.is_some() => {}
            }
            self.take_batch(&mut events);
            self.machine.tick(context());
            self.commit_and_apply(&mut commands).await;
        }
    }

    /// Takes in the link events that are there already, so that they share a commit.
    fn take_batch(&mut self, events: &mut LinkEvents) {
        let mut bytes = 0;
        for _ in 0..BATCH_EVENTS {
            let Some(event) = (bytes < BATCH_BYTES).then(|| events.try_recv()).flatten() else { return };
            bytes += event.weight();
            self.machine.take(context(), event);
        }
    }

    fn handle_command(&mut self, command: Command) {
        let (machine, cx) = (&mut self.machine, context());
        match command {
            Command::AwaitEnd { execution, reply } => match machine.ended(execution) {
                Some(answer) => self.answer(reply, answer),
                None => self.await_end(execution, reply),
            },
            Command::Add { cell, trace, reply } => {
                let answer = machine.add_cell(cx, *cell, trace);
                self.answer(reply, answer);
            }
            Command::Run { id, options, trace, reply } => {
                let answer = machine.run_cell(cx, &id, options, trace);
                self.answer(reply, answer);
            }
            Command::RunAll { runs, trace, reply } => {
                let answer = machine.run_cells(cx, runs, trace.as_deref());
                self.answer(reply, answer);
            }
            Command::Replace { cells, notebook, reply } => {
                let answer = machine.replace_cells(cx, cells, notebook);
                self.answer(reply, answer);
            }
            Command::Edit { id, edit, reply } => {
                let answer = machine.edit_cell(cx, &id, *edit);
                self.answer(reply, answer);
            }
            Command::Delete { id, reply } => {
                let answer = machine.delete_cell(cx, &id);
                self.answer(reply, answer);
            }
            Command::Cancel { id, reply } => {
                let answer = machine.cancel_cell(cx, &id);
                self.answer(reply, answer);
            }
            Command::Interrupt { reply } => {
                let answer = machine.interrupt(cx);
                self.answer(reply, answer);
            }
            Command::Kill { reply } => {
                let answer = machine.kill(cx);
                self.answer(reply, answer);
            }
            Command::Input { value, reply } => match machine.input(cx, &value) {
                Ok((generation, message)) => self.submit_input(generation, message, reply),
                Err(denied) => self.answer(reply, Err(denied)),
            },
            Command::Restart { reply } => {
                let answer = machine.restart(cx);
                self.answer(reply, answer);
            }
            Command::Send { request, parent, reply } => {
                let answer = machine.send(cx, request, parent);
                self.answer(reply, answer);
            }
            Command::Query { query, reply } => match machine.query(cx, &query) {
                Ok(request) => drop(self.asking.insert(request, reply)),
                Err(denied) => self.answer(reply, Err(denied)),
            },
            Command::AskAgent { request, data, reply } => {
                let answer = self.link.request(request, data);
                tokio::spawn(async move {
                    let _ = reply.send(answer.await);
                });
            }
            Command::Notify { text, reply } => {
                let answer = machine.notify(cx, text);
                self.answer(reply, answer);
            }
            Command::End { why, reply } => {
                machine.end(cx, &why);
                self.answer(reply, Ok(()));
            }
        }
    }

    /// Submits input to the agent, which keeps it for the kernel even if this server dies.
    fn submit_input(&self, generation: Generation, message: Message, reply: Reply<()>) {
        let (taken, outcomes) = (self.link.submit(Channel::Stdin, Some(generation), message), self.outcomes.clone());
        tokio::spawn(async move {
            let answer = match taken.await {
                Ok(_) => Ok(()),
                // The execution that asked has ended meanwhile.
                Err(_) => {
                    let _ = outcomes.send(Outcome::InputFailed);
                    Err(Denied::NotAsking)
                }
            };
            let _ = reply.send(answer);
        });
    }

    /// Answers after the next commit. The caller may have gone by then.
    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, answer: Result<T, Denied>) {
        self.answers.push(Box::new(move || drop(reply.send(answer))));
    }

    fn handle_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Submitted { execution, result } => self.machine.submitted(context(), &execution, result),
            Outcome::InputFailed => self.machine.input_failed(),
            Outcome::Sandbox(state) => self.machine.sandbox_is(context(), &state),
        }
    }

    /// Commits what has happened, then carries out what follows from it.
    async fn commit_and_apply(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) {
        let (transaction, effects) = self.machine.take_out(context());
        if !transaction.is_empty() {
            self.commit(&transaction, commands).await;
        }
        if self.machine.position() != self.acked && transaction.position.is_some() {
            self.acked = self.machine.position();
            self.link.ack(self.acked.seq);
        }
        effects.into_iter().for_each(|effect| self.apply_effect(effect));
        self.info.send_if_modified(|info| {
            let changes = !Arc::ptr_eq(info, self.machine.kernel_info());
            if changes {
                info.clone_from(self.machine.kernel_info());
            }
            changes
        });
        if let Some(state) = transaction.state {
            self.state.send_replace(state);
        }
        self.answers.drain(..).for_each(|answer| answer());
        self.answer_ended(&transaction.cells);
    }

    fn await_end(&mut self, execution: QueuedExecution, reply: Reply<Cell>) {
        let waiting = self.waiting.entry(execution.number).or_default();
        // Callers may ask again and again with short waits.
        waiting.retain(|(_, reply)| !reply.is_closed());
        waiting.push((execution, reply));
    }

    /// Answers callers whose execution ended with what has just been committed.
    fn answer_ended(&mut self, committed: &[CellChange]) {
        for change in committed {
            let number = change.number();
            for (execution, reply) in self.waiting.remove(&number).unwrap_or_default() {
                match self.machine.ended(execution) {
                    Some(answer) => drop(reply.send(answer)),
                    None => self.waiting.entry(number).or_default().push((execution, reply)),
                }
            }
        }
    }

    /// Retries until it is committed. Meanwhile the agent keeps its events, and commands are denied, except those that stop the running
    /// cell: it may be what fills the disk.
    async fn commit(&mut self, transaction: &Transaction, commands: &mut mpsc::UnboundedReceiver<Command>) {
        while let Err(error) = self.journal.append(transaction).await {
            tracing::error!(session = %self.machine.config().session, %error, "journal not writable; retrying");
            let retry = tokio::time::sleep(COMMIT_RETRY);
            tokio::pin!(retry);
            loop {
                tokio::select! {
                    () = &mut retry => break,
                    Some(command) = commands.recv() => self.deny(command, &error.0),
                }
            }
        }
    }

    fn deny(&mut self, command: Command, why: &str) {
        fn reject<T>(reply: Reply<T>, why: &str) {
            let _ = reply.send(Err(Denied::Storage(why.to_owned())));
        }
        match command {
            Command::Add { reply, .. }
            | Command::Run { reply, .. }
            | Command::Edit { reply, .. }
            | Command::Cancel { reply, .. } => {
                reject(reply, why);
            }
            Command::Delete { reply, .. }
            | Command::Input { reply, .. }
            | Command::Restart { reply }
            | Command::Notify { reply, .. }
            | Command::RunAll { reply, .. }
            | Command::Replace { reply, .. }
            | Command::Send { reply, .. } => reject(reply, why),
            Command::Query { reply, .. } => reject(reply, why),
            Command::Interrupt { reply } => self.signal_now(SignalKind::Interrupt, reply),
            Command::Kill { reply } => self.signal_now(SignalKind::Kill, reply),
            command => self.handle_command(command),
        }
    }

    fn signal_now(&mut self, signal: SignalKind, reply: Reply<()>) {
        self.apply_effect(Effect::Signal { signal, generation: self.machine.generation() });
        let _ = reply.send(Ok(()));
    }

    fn apply_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Submit { execution, generation, message } => {
                let (taken, outcomes) = (self.link.submit(Channel::Shell, Some(generation), message), self.outcomes.clone());
                tokio::spawn(async move {
                    let _ = outcomes.send(Outcome::Submitted { execution, result: taken.await });
                });
            }
            // No answer is needed: a cut shows as a detached link, and what the agent refuses concerns a kernel that has ended.
            Effect::Send { channel, generation, message } => drop(self.link.submit(channel, generation, message)),
            Effect::Signal { signal, generation } => {
                drop(self.link.request(Request::Signal { signal, generation }, Bytes::new()));
            }
            Effect::RestartKernel(generation) => drop(self.link.request(Request::Restart { generation }, Bytes::new())),
            Effect::WatchSandbox(true) => self.watch_sandbox(),
            Effect::WatchSandbox(false) => self.watch = None,
            Effect::Answer { request, content } => {
                if let Some(reply) = self.asking.remove(&request) {
                    let _ = reply.send(content);
                }
            }
        }
    }

    /// Inspects the sandbox after the link was cut, until it ends or its agent is back.
    fn watch_sandbox(&mut self) {
        let (sandbox, record, outcomes) = (self.sandbox.clone(), self.record.clone(), self.outcomes.clone());
        self.watch.get_or_insert_with(|| {
            AbortOnDrop(tokio::spawn(async move {
                let mut pause = INSPECT_PAUSE.0;
                loop {
                    if let Ok(state @ SandboxState::Ended { .. }) = sandbox.inspect(&record).await {
                        let _ = outcomes.send(Outcome::Sandbox(state));
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(INSPECT_PAUSE.1);
                }
            }))
        });
    }
}
