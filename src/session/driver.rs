//! The one task that owns a session's state. Everything that happens to a session comes through its `select`, in one order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, watch};

use super::handle::{Command, RunEvent, RunRequest, SessionHandle, SessionState, StrayOutput};
use super::ladder::{Ladder, Step};
use super::run::{ActiveRun, Meaning, RunResult, StopReason};
use crate::agent_protocol::{Event, KernelEvent, KernelExit, KernelState, KillReason, Request, SignalKind};
use crate::ids::{Generation, RunId, Seq};
use crate::link::weighed::WeighedSender;
use crate::link::{AbortOnDrop, Link, LinkError, LinkEvent, LinkEvents, Position};
use crate::policy::Limits;
use crate::sandbox::{Sandbox, SandboxRecord, SandboxState};
use crate::wire::{Channel, Message, json as wire_json};

/// How long a kernel may take to answer for the first time. Julia with precompilation takes half of it.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// Events are acknowledged in batches of so many, or when there is nothing else to do.
const ACK_EVERY: u64 = 64;
/// A kernel that dies by itself is started again, unless it has died so often in a row without finishing a run.
const RESTARTS: u32 = 3;

/// Room above the output limit for what the agent does not count, bytes; an eighth of the limit comes to it.
const OUTPUT_SLACK: u64 = 1 << 20;
/// Between two looks at a sandbox whose agent is away: from the first to the last, doubling.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Pieces of output that belong to no run and wait for those who want them.
const STRAY_KEPT: usize = 16;
/// Bytes of such a piece. An agent of ours makes none as large.
const STRAY_MAX: usize = 2 << 20;

struct Driver {
    sandbox: Arc<dyn Sandbox>,
    record: SandboxRecord,
    limits: Limits,
    late_output: Duration,
    link: Link,
    state: watch::Sender<SessionState>,
    info: watch::Sender<Value>,
    stray: broadcast::Sender<StrayOutput>,
    generation: Generation,
    queue: VecDeque<(RunRequest, WeighedSender<RunEvent>)>,
    active: Option<Active>,
    /// The name of this session in the headers of its requests.
    name: String,
    start_deadline: Option<Instant>,
    restarts: u32,
    unacked: Option<Seq>,
    acked: Seq,
    /// Bytes that a run may say before we stop listening: the limit, and some room for what the agent does not count.
    output_cap: u64,
    /// Asks what has become of the sandbox while its agent is away.
    watch: Option<AbortOnDrop<()>>,
    /// The question whose answer shows that the kernel is done with the run, after events were lost.
    probe: Option<String>,
    /// Results of requests made in the background.
    told: mpsc::UnboundedSender<Told>,
}

struct Active {
    run: ActiveRun,
    events: WeighedSender<RunEvent>,
    /// Bytes of output and questions so far. The agent counts too, and stops first, unless a tenant has taken it over.
    bytes: u64,
    timeout: Option<(Instant, Duration)>,
    ladder: Option<Ladder>,
    input: Option<Message>,
}

/// What a background request found out.
enum Told {
    Submitted { run: RunId, result: Result<bool, LinkError> },
    Sandbox(SandboxState),
}

/// Starts the driver of a session whose sandbox has been made. The session ends when the last handle is dropped.
pub fn start(
    sandbox: Arc<dyn Sandbox>,
    record: SandboxRecord,
    limits: Limits,
    late_output: Duration,
    position: Position,
) -> SessionHandle {
    let (link, events) = Link::open(sandbox.clone(), record.clone(), position);
    let (commands, command_receiver) = mpsc::unbounded_channel();
    let (state, state_receiver) = watch::channel(SessionState::Starting);
    let (info, info_receiver) = watch::channel(Value::Null);
    let (stray, _) = broadcast::channel(STRAY_KEPT);
    let (told, told_receiver) = mpsc::unbounded_channel();
    let output_cap = limits.output_bytes() + limits.output_bytes() / 8 + OUTPUT_SLACK;
    let driver = Driver {
        name: record.session.to_string(),
        sandbox,
        record,
        limits,
        late_output,
        link,
        state,
        info,
        stray: stray.clone(),
        generation: Generation(0),
        queue: VecDeque::new(),
        active: None,
        start_deadline: Some(Instant::now() + START_DEADLINE),
        restarts: 0,
        unacked: None,
        acked: Seq::default(),
        output_cap,
        watch: None,
        probe: None,
        told,
    };
    tokio::spawn(driver.run(events, command_receiver, told_receiver));
    SessionHandle { commands, state: state_receiver, info: info_receiver, stray }
}

impl Driver {
    async fn run(
        mut self,
        mut events: LinkEvents,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut told: mpsc::UnboundedReceiver<Told>,
    ) {
        loop {
            if matches!(*self.state.borrow(), SessionState::Gone { .. }) {
                return;
            }
            if events.is_empty() {
                self.ack();
            }
            let deadline = self.next_deadline();
            let due = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into());
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return self.end("all its handles were dropped".to_owned()),
                },
                Some(told) = told.recv() => self.hear(told),
                event = next_event(&mut events, self.active.as_ref()) => match event {
                    Some(event) => self.take(event),
                    None => return self.end("its link was closed".to_owned()),
                },
                () = due, if deadline.is_some() => {}
            }
            self.tick(Instant::now());
        }
    }

    // ---- commands ---------------------------------------------------------------------------------------------------

    fn obey(&mut self, command: Command) {
        match command {
            Command::Run { request, events } => {
                self.queue.push_back((request, events));
                self.run_next();
            }
            Command::Interrupt => self.stop(StopReason::Interrupt),
            Command::Kill => {
                self.stop(StopReason::Interrupt);
                if let Some(ladder) = self.active.as_mut().and_then(|active| active.ladder.as_mut()) {
                    ladder.hurry(Instant::now());
                }
            }
            Command::Input(value) => self.answer_input(&value),
            Command::Restart => {
                if let Some(active) = &mut self.active {
                    active.run.stop(StopReason::Interrupt);
                }
                self.restart_kernel();
            }
            Command::Ask { request, data, reply } => {
                let link = self.link.clone();
                hand_over(async move {
                    let _ = reply.send(link.request(request, data).await);
                });
            }
        }
    }

    fn run_next(&mut self) {
        if self.active.is_some() || *self.state.borrow() != SessionState::Idle {
            return;
        }
        let Some((request, events)) = self.queue.pop_front() else { return };
        let now = Instant::now();
        let run = ActiveRun::new(RunId::random(), self.late_output, now);
        let content = json!({
            "code": request.code, "silent": false, "store_history": true, "user_expressions": {},
            "allow_stdin": request.allow_stdin,
            // The queue is ours: what follows a failing cell is for its runner to decide, not for the kernel to abort.
            "stop_on_error": false,
        });
        let mut message = Message::request(&run.id.0, &self.name, "execute_request", &content);
        if let Some(metadata) = request.metadata {
            message.metadata = metadata.to_string().into();
        }
        let (link, told, id) = (self.link.clone(), self.told.clone(), run.id.clone());
        hand_over(async move {
            let result = link.submit(Channel::Shell, message).await;
            let _ = told.send(Told::Submitted { run: id, result });
        });
        tell(&events, RunEvent::Started);
        let timeout = request.timeout.map(|limit| (now + limit, limit));
        self.active = Some(Active { run, events, timeout, ladder: None, input: None, bytes: 0 });
        self.set_state(SessionState::Busy);
    }

    fn stop(&mut self, reason: StopReason) {
        let Some(active) = &mut self.active else { return };
        active.run.stop(reason);
        active.ladder.get_or_insert_with(|| Ladder::new(Instant::now()));
        self.set_state(SessionState::Interrupting);
    }

    fn answer_input(&mut self, value: &str) {
        let Some(asked) = self.active.as_mut().and_then(|active| active.input.take()) else { return };
        let mut reply = Message::new_request(&self.name, "input_reply", &json!({"value": value}));
        reply.parent_header = asked.header;
        self.send(|link| async move { link.submit(Channel::Stdin, reply).await.map(|_| ()) });
    }

    /// Sends what needs no answer: a cut shows as a detached link, and what the agent refuses is about a kernel that has ended
    /// meanwhile.
    fn send<F>(&self, request: impl FnOnce(Link) -> F)
    where
        F: Future<Output = Result<(), LinkError>> + Send + 'static,
    {
        let request = request(self.link.clone());
        hand_over(async move {
            let _ = request.await;
        });
    }

    fn signal(&self, signal: SignalKind) {
        let request = Request::Signal { signal, generation: self.generation };
        self.send(|link| async move { link.request(request, Bytes::new()).await.map(|_| ()) });
    }

    fn restart_kernel(&mut self) {
        self.set_state(SessionState::Restarting);
        self.start_deadline = Some(Instant::now() + START_DEADLINE);
        self.send(|link| async move { link.request(Request::Restart, Bytes::new()).await.map(|_| ()) });
    }

    // ---- events -----------------------------------------------------------------------------------------------------

    fn take(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Attached(hello) => {
                self.watch = None;
                if hello.generation < self.generation {
                    let why = "the agent in its sandbox does not keep to the protocol: its kernel is one that ended before";
                    return self.end(why.to_owned());
                }
                self.generation = hello.generation;
                self.acked = Seq(hello.first_seq.0.saturating_sub(1));
                if hello.kernel_state == KernelState::Ready
                    && *self.state.borrow() == SessionState::Starting
                    && hello.first_seq > Seq::FIRST
                {
                    // Its being ready was told to an earlier manager.
                    self.become_idle();
                }
            }
            LinkEvent::Event { seq, event } => {
                self.take_event(event);
                self.unacked = Some(seq);
                if seq.0 >= self.acked.0.saturating_add(ACK_EVERY) {
                    self.ack();
                }
            }
            LinkEvent::Lost { from, to } => {
                self.notice(format!("events {from} to {to} of the sandbox were lost: its buffer overflowed"));
                self.unacked = Some(to);
                self.ask_whether_done();
            }
            LinkEvent::Detached { reason } => {
                tracing::debug!(session = %self.name, reason, "link detached");
                self.look_at_sandbox();
            }
            LinkEvent::Broken { reason } => {
                self.end(format!("the agent in its sandbox does not keep to the protocol: {reason}"))
            }
        }
    }

    /// The run's reply may have been among the lost events. A kernel answers in order: once it answers this question, it has
    /// done with the run.
    fn ask_whether_done(&mut self) {
        if self.active.is_none() {
            return;
        }
        let question = Message::new_request(&self.name, "kernel_info_request", &json!({}));
        self.probe = Some(question.header().msg_id);
        self.send(|link| async move { link.submit(Channel::Shell, question).await.map(|_| ()) });
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Message { channel, generation, message } if generation == self.generation => {
                self.take_message(channel, message)
            }
            // From a kernel that has ended: its runs have, too.
            Event::Message { .. } => {}
            Event::Kernel { generation, event } => self.take_kernel_event(generation, event),
        }
    }

    fn take_message(&mut self, channel: Channel, message: Message) {
        let (header, parent) = (message.header(), message.parent());
        if channel == Channel::Iopub && header.msg_type == "stream" && parent.msg_id.is_empty() {
            return self.take_stray(&message);
        }
        let Some(active) = &mut self.active else { return };
        let now = Instant::now();
        if channel == Channel::Shell && self.probe.as_ref() == Some(&parent.msg_id) {
            active.run.reply_lost(now);
        } else if parent.msg_id != active.run.id.0 {
            return;
        }
        let meaning = active.run.take(channel, &header, || message.content_value(), now);
        if meaning != Meaning::Internal {
            active.bytes += message.size() as u64;
            if active.bytes > self.output_cap {
                return self.stop(StopReason::OutputExceeded(self.limits.output_bytes()));
            }
        }
        match meaning {
            Meaning::Output => {
                tell(&active.events, RunEvent::Output { msg_type: header.msg_type, message });
            }
            Meaning::Input => {
                active.input = Some(message.clone());
                tell(&active.events, RunEvent::Input { message });
            }
            Meaning::Internal => {}
        }
        if let Some(result) = active.run.finished(now) {
            self.restarts = 0;
            self.finish(result);
            self.become_idle();
        }
    }

    fn take_stray(&self, message: &Message) {
        if message.content.len() > STRAY_MAX {
            return;
        }
        let content = message.content_value();
        let text = |name: &str| content.get(name).and_then(Value::as_str).unwrap_or_default();
        // Nobody may want it.
        let _ = self.stray.send(StrayOutput { stderr: text("name") == "stderr", text: text("text").to_owned() });
    }

    fn take_kernel_event(&mut self, generation: Generation, event: KernelEvent) {
        match event {
            KernelEvent::Starting => self.generation = generation,
            KernelEvent::Ready { info } => {
                self.info.send_replace(wire_json::parse_lenient(info.as_bytes()).unwrap_or(Value::Null));
                self.become_idle();
            }
            KernelEvent::Exited(exit) => self.kernel_exited(&exit),
            KernelEvent::Failed { reason } => self.end(reason),
            KernelEvent::ChildOutOfMemory => self.notice("a process that the cell started was killed for memory".to_owned()),
            KernelEvent::OutputCapped { msg_id, limit } => {
                if self.active.as_ref().is_some_and(|active| active.run.id.0 == msg_id) {
                    self.stop(StopReason::OutputExceeded(limit));
                }
            }
            KernelEvent::BadMessage { reason } => {
                self.notice(format!("the kernel sent something that is no message: {reason}"))
            }
        }
    }

    fn kernel_exited(&mut self, exit: &KernelExit) {
        let started = self.start_deadline.is_none();
        if let Some(active) = &self.active {
            let result = active.run.died(exit, self.limits.memory_mb, Instant::now());
            self.finish(result);
        }
        if exit.reason == Some(KillReason::Restart) {
            return;
        }
        self.restarts += 1;
        if started && self.restarts <= RESTARTS {
            self.restart_kernel();
        } else {
            self.end(describe_failed_start(exit));
        }
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Submitted { run, result: Err(error) } => {
                if let Some(active) = self.active.as_ref().filter(|active| active.run.id == run) {
                    let never_run = matches!(error, LinkError::TooLarge { .. });
                    let mut result = active.run.refused(&error.to_string(), Instant::now());
                    if never_run {
                        (result.status, result.kernel_gone) = (super::RunStatus::Error, false);
                    }
                    self.finish(result);
                    self.become_idle();
                }
            }
            Told::Sandbox(SandboxState::Ended { why }) => self.end(format!("the sandbox has ended: {why}")),
            Told::Submitted { .. } | Told::Sandbox(SandboxState::Running) => {}
        }
    }

    /// Asks what has become of the sandbox after its agent stopped talking, again and again until it talks.
    fn look_at_sandbox(&mut self) {
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

    // ---- state ------------------------------------------------------------------------------------------------------

    fn finish(&mut self, result: RunResult) {
        self.probe = None;
        if let Some(active) = self.active.take() {
            tell(&active.events, RunEvent::Finished(result));
        }
    }

    fn become_idle(&mut self) {
        self.start_deadline = None;
        self.set_state(SessionState::Idle);
        self.run_next();
    }

    fn end(&mut self, why: String) {
        if let Some(active) = &self.active {
            let result = active.run.sandbox_gone(&why, Instant::now());
            self.finish(result);
        }
        for (_, events) in std::mem::take(&mut self.queue) {
            let never_run =
                ActiveRun::new(RunId::random(), Duration::ZERO, Instant::now()).sandbox_gone(&why, Instant::now());
            tell(&events, RunEvent::Finished(RunResult { status: super::RunStatus::Cancelled, ..never_run }));
        }
        self.set_state(SessionState::Gone { why });
    }

    fn set_state(&self, state: SessionState) {
        self.state.send_if_modified(|current| {
            let changes = *current != state && !matches!(current, SessionState::Gone { .. });
            if changes {
                *current = state;
            }
            changes
        });
    }

    fn notice(&self, text: String) {
        if let Some(active) = &self.active {
            tell(&active.events, RunEvent::Notice(text));
        }
    }

    fn ack(&mut self) {
        if let Some(seq) = self.unacked.take() {
            self.acked = seq;
            self.link.ack(seq);
        }
    }

    // ---- time -------------------------------------------------------------------------------------------------------

    fn next_deadline(&self) -> Option<Instant> {
        let active = self.active.as_ref();
        let run = active.and_then(|active| active.run.deadline());
        let timeout = active.filter(|active| !active.run.is_stopping()).and_then(|active| active.timeout).map(|(at, _)| at);
        let ladder = active.and_then(|active| active.ladder.as_ref()).and_then(Ladder::deadline);
        [run, timeout, ladder, self.start_deadline].into_iter().flatten().min()
    }

    fn tick(&mut self, now: Instant) {
        if self.start_deadline.is_some_and(|at| at <= now) {
            self.end(format!("the kernel did not answer within {} s of its start", START_DEADLINE.as_secs()));
            return;
        }
        let Some(active) = &mut self.active else { return };
        if let Some((at, limit)) = active.timeout
            && at <= now
            && !active.run.is_stopping()
        {
            self.stop(StopReason::Timeout(limit));
        }
        let Some(active) = &mut self.active else { return };
        match active.ladder.as_mut().and_then(|ladder| ladder.due(now)) {
            Some(Step::Signal(signal)) => {
                self.signal(signal);
                self.notice(describe_step(signal).to_owned());
            }
            Some(Step::GiveUp) => return self.end("its kernel was killed, and the sandbox does not answer".to_owned()),
            None => {}
        }
        let Some(active) = &self.active else { return };
        if let Some(result) = active.run.finished(now) {
            self.finish(result);
            self.become_idle();
        }
    }
}

/// The next event of the link, once whoever follows the run has taken enough of what came before.
async fn next_event(events: &mut LinkEvents, active: Option<&Active>) -> Option<LinkEvent> {
    if let Some(active) = active {
        active.events.room().await;
    }
    events.recv().await
}

/// Nobody may be listening any more, which does not concern the run.
fn tell(events: &WeighedSender<RunEvent>, event: RunEvent) {
    let weight = event.weight();
    let _ = events.send(event, weight);
}

/// Starts a request: it is in the link's queue when this returns, and its answer is waited for in the background. So what is
/// asked first is sent first, an interrupt never before the run that it is meant for.
fn hand_over(request: impl Future<Output = ()> + Send + 'static) {
    let mut request = Box::pin(request);
    // A link queues a request when its future is first polled. The task polls again, and is woken from then on.
    if request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        tokio::spawn(request);
    }
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
