//! The agent's one loop. It owns all state, takes every input in turn, and never waits for anything but the next input.
//!
//! ```text
//!            start                answers             exit seen, sockets quiet
//!  (none) ──────────▶ Starting ──────────▶ Ready ───────────────────────────▶ Exited
//!                        │                                                      │
//!                        └──────────── exit ───────────▶ Exited ──── Restart ───┘ (next generation)
//! ```
//!
//! A kernel's exit is told only after its sockets have been quiet for [`SETTLE`]: what it said before it died comes first.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::{Pid, Signal};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind as UnixSignal, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::buffer::Buffer;
use super::channels::{self, Received, Senders};
use super::coalesce::{self, Coalescer};
use super::files::{Files, done};
use super::kernel::{self, LastWords};
use super::runs::{Room, Runs};
use super::serve::{self, Connection};
use super::usage::Meter;
use crate::agent_protocol::{
    AgentConfig, Answer, AnswerBody, Event, FromAgent, Hello, KernelEvent, KernelExit, KernelState, KillReason, MAX_MESSAGE,
    Request, SignalKind, ToAgent,
};
use crate::ids::{Epoch, Generation};
use crate::wire::{Channel, Header, Message};

/// How long a dead kernel's sockets must be quiet before its exit is told.
const SETTLE: Duration = Duration::from_millis(60);
/// Asking a starting kernel again: soon at first (iopub may not have been subscribed in time), then at leisure.
const NUDGES: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(500)];
/// How often memory is looked at where no cgroup holds it.
const WATCH: Duration = Duration::from_millis(100);
/// How many submissions are remembered, so that a repeated one is recognised.
const REMEMBERED: usize = 4096;
/// How many refused messages of one kernel are told.
const REFUSALS_TOLD: u32 = 10;
/// What the buffer holds beyond one run's whole output.
const BUFFER_SLACK: usize = 32 << 20;

/// Everything that can happen to an agent.
pub(super) enum Input {
    /// A manager has connected.
    Connection(UnixStream),
    /// A manager sent a frame.
    Frame { connection: u64, frame: ToAgent },
    /// A manager's connection has ended.
    Closed { connection: u64 },
    /// The kernel's sockets are connected, or cannot be.
    Connected { generation: Generation, result: Result<(Senders, JoinSet<()>), String> },
    /// A message from the kernel.
    Received { generation: Generation, received: Received },
    /// The kernel process wrote to its own stdout or stderr.
    Stdio { generation: Generation, name: &'static str, bytes: Bytes },
}

/// One life of the kernel.
struct Kernel {
    generation: Generation,
    state: KernelState,
    pid: Option<Pid>,
    senders: Option<Senders>,
    /// Ends all of this life's tasks when it is dropped.
    _tasks: JoinSet<()>,
    _socket_tasks: Option<JoinSet<()>>,
    replied: Option<String>,
    heard: bool,
    nudges: usize,
    next_nudge: Option<Instant>,
    exit: Option<(ExitStatus, Instant)>,
    kill_reason: Option<KillReason>,
    /// An interrupt waits for the run that it is meant for to begin.
    interrupt_held: bool,
    oom_kills_before: u64,
    last_words: LastWords,
    /// Messages that were none.
    refused: u32,
}

struct Hub {
    config: AgentConfig,
    epoch: Epoch,
    /// The session in the headers of our own requests, by which their answers are told from those of the manager's.
    own_session: String,
    inputs: mpsc::Sender<Input>,
    buffer: Rc<RefCell<Buffer>>,
    coalescer: Coalescer,
    connection: Option<Connection>,
    connections: u64,
    kernel: Kernel,
    runs: Runs,
    submitted: HashSet<String>,
    submitted_order: VecDeque<String>,
    files: Files,
    meter: Meter,
    alone_since: Instant,
    next_watch: Option<Instant>,
}

/// Runs until the manager terminates the agent or it is left alone for too long.
pub(super) async fn run(config: AgentConfig) -> io::Result<()> {
    let (sender, mut inputs) = mpsc::channel(256);
    serve::listen(&config.listen, sender.clone())?;
    let mut children = signal(UnixSignal::child())?;
    let mut hub = Hub::new(config, sender)?;
    hub.start_kernel(Generation(1));
    loop {
        let deadline = hub.next_deadline();
        tokio::select! {
            biased;
            _ = children.recv() => hub.reap(),
            input = inputs.recv() => {
                let Some(input) = input else { return Ok(()) };
                if hub.take(input).await {
                    return Ok(());
                }
            }
            () = sleep_until(deadline) => {}
        }
        if hub.tick(Instant::now()) {
            kernel::kill_all(hub.kernel.pid);
            return Ok(());
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Kernel {
    fn new(generation: Generation, oom_kills_before: u64) -> Self {
        Self {
            generation,
            state: KernelState::Starting,
            pid: None,
            senders: None,
            _tasks: JoinSet::new(),
            _socket_tasks: None,
            replied: None,
            heard: false,
            nudges: 0,
            next_nudge: None,
            exit: None,
            kill_reason: None,
            interrupt_held: false,
            oom_kills_before,
            last_words: LastWords::default(),
            refused: 0,
        }
    }
}

impl Hub {
    fn new(config: AgentConfig, inputs: mpsc::Sender<Input>) -> io::Result<Self> {
        let epoch = Epoch::random();
        let limit = config.limits.output_bytes() as usize + BUFFER_SLACK;
        Ok(Self {
            files: Files::new(&config.workspace)?,
            own_session: format!("agent-{:016x}", epoch.0),
            epoch,
            inputs,
            buffer: Rc::new(RefCell::new(Buffer::new(limit))),
            coalescer: Coalescer::default(),
            connection: None,
            connections: 0,
            kernel: Kernel::new(Generation(0), 0),
            runs: Runs::new(config.limits.output_bytes()),
            submitted: HashSet::new(),
            submitted_order: VecDeque::new(),
            meter: Meter::new(),
            alone_since: Instant::now(),
            next_watch: (!config.memory_enforced).then(Instant::now),
            config,
        })
    }

    // ---- the kernel's life ------------------------------------------------------------------------------------------

    fn start_kernel(&mut self, generation: Generation) {
        self.kernel = Kernel::new(generation, self.meter.oom_kills());
        self.runs = Runs::new(self.config.limits.output_bytes());
        let process = match kernel::start(&self.config, generation) {
            Ok(process) => process,
            Err(reason) => {
                self.kernel.state = KernelState::Exited;
                return self.emit_kernel(KernelEvent::Failed { reason });
            }
        };
        self.kernel.pid = Some(process.pid);
        let tasks = &mut self.kernel._tasks;
        for (name, fd) in [("stdout", process.stdout), ("stderr", process.stderr)] {
            tasks.spawn_local(read_stdio(generation, name, fd, self.inputs.clone()));
        }
        let inputs = self.inputs.clone();
        tasks.spawn_local(async move {
            let result = connect(&process.connection, generation, inputs.clone()).await;
            let _ = inputs.send(Input::Connected { generation, result }).await;
        });
        self.emit_kernel(KernelEvent::Starting);
    }

    fn nudge(&mut self, now: Instant) {
        let Some(senders) = &self.kernel.senders else { return };
        senders.send(Channel::Shell, Message::new_request(&self.own_session, "kernel_info_request", &json!({})));
        let wait = NUDGES[self.kernel.nudges.min(NUDGES.len() - 1)];
        self.kernel.nudges += 1;
        self.kernel.next_nudge = Some(now + wait);
    }

    fn become_ready(&mut self) {
        if let (KernelState::Starting, true, Some(info)) = (self.kernel.state, self.kernel.heard, self.kernel.replied.take())
        {
            self.kernel.state = KernelState::Ready;
            self.kernel.next_nudge = None;
            self.emit_kernel(KernelEvent::Ready { info });
        }
    }

    fn reap(&mut self) {
        for (pid, status) in kernel::reap() {
            if self.kernel.pid == Some(pid) {
                self.kernel.pid = None;
                self.kernel.exit = Some((status, Instant::now() + SETTLE));
                // Its children and daemons must not outlive it, nor write into the life of the next.
                kernel::kill_all(None);
            }
        }
    }

    fn finish_exit(&mut self, status: ExitStatus) {
        self.flush_streams();
        let reason = self.kernel.kill_reason;
        let counted = self.meter.oom_kills() > self.kernel.oom_kills_before && status.signal() == Some(libc::SIGKILL);
        let out_of_memory = reason == Some(KillReason::Memory) || (reason.is_none() && counted);
        self.kernel.state = KernelState::Exited;
        self.kernel.senders = None;
        self.kernel._socket_tasks = None;
        self.emit_kernel(KernelEvent::Exited(KernelExit {
            code: status.code(),
            signal: status.signal(),
            out_of_memory,
            reason,
            last_words: self.kernel.last_words.text(),
        }));
        if reason == Some(KillReason::Restart) {
            self.start_kernel(Generation(self.kernel.generation.0 + 1));
        }
    }

    // ---- inputs -----------------------------------------------------------------------------------------------------

    /// Takes one input. `true` ends the agent.
    async fn take(&mut self, input: Input) -> bool {
        match input {
            Input::Connection(stream) => self.open(stream),
            Input::Closed { connection } => self.close(connection),
            Input::Frame { connection, frame } => {
                if self.connection.as_ref().is_some_and(|current| current.id == connection) {
                    return self.take_frame(frame).await;
                }
            }
            Input::Connected { generation, result } if generation == self.kernel.generation => match result {
                Ok((senders, tasks)) => {
                    self.kernel.senders = Some(senders);
                    self.kernel._socket_tasks = Some(tasks);
                    self.nudge(Instant::now());
                }
                Err(reason) => self.emit_kernel(KernelEvent::BadMessage { reason }),
            },
            Input::Received { generation, received } if generation == self.kernel.generation => self.receive(received),
            Input::Stdio { generation, name, bytes } if generation == self.kernel.generation => self.stdio(name, &bytes),
            // From an earlier life of the kernel.
            Input::Connected { .. } | Input::Received { .. } | Input::Stdio { .. } => {}
        }
        false
    }

    fn open(&mut self, stream: UnixStream) {
        self.connections += 1;
        let hello = Hello {
            epoch: self.epoch,
            generation: self.kernel.generation,
            first_seq: self.buffer.borrow().first(),
            next_seq: self.buffer.borrow().next_seq(),
            kernel_state: self.kernel.state,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let buffer = self.buffer.clone();
        self.connection = Some(Connection::open(self.connections, stream, hello, buffer, self.inputs.clone()));
    }

    fn close(&mut self, connection: u64) {
        if self.connection.as_ref().is_some_and(|current| current.id == connection) {
            self.connection = None;
            self.alone_since = Instant::now();
        }
    }

    async fn take_frame(&mut self, frame: ToAgent) -> bool {
        match frame {
            ToAgent::Attach { epoch, from_seq } => {
                if let Some(connection) = &self.connection {
                    connection.attach(self.epoch, epoch, from_seq);
                }
            }
            ToAgent::Ack { seq } => self.buffer.borrow_mut().ack(seq),
            ToAgent::Submit { id, channel, msg_id, message } => {
                let body = self.submit(channel, msg_id, message);
                self.answer(id, body, Bytes::new());
            }
            ToAgent::Request { id, request: Request::Terminate, .. } => {
                self.answer(id, AnswerBody::Done { repeated: false }, Bytes::new());
                if let Some(connection) = &self.connection {
                    connection.drain().await;
                }
                kernel::kill_all(self.kernel.pid);
                return true;
            }
            ToAgent::Request { id, request, data } => {
                let (body, data) = self.serve(request, &data);
                self.answer(id, body, data);
            }
        }
        false
    }

    fn submit(&mut self, channel: Channel, msg_id: String, message: Message) -> AnswerBody {
        if self.submitted.contains(&msg_id) {
            return AnswerBody::Done { repeated: true };
        }
        let senders = match (&self.kernel.senders, self.kernel.state) {
            (Some(senders), KernelState::Ready) => senders,
            (_, state) => return AnswerBody::Refused { reason: format!("the kernel is not ready ({state:?})") },
        };
        let header = message.header();
        let raw_header = message.header.clone();
        if !senders.send(channel, message) {
            return AnswerBody::Refused { reason: format!("nothing can be sent on {}", channel.name()) };
        }
        if channel == Channel::Shell && header.msg_type == "execute_request" {
            self.runs.begin(header.msg_id, raw_header);
            self.kernel.interrupt_held = false;
        }
        self.submitted.insert(msg_id.clone());
        self.submitted_order.push_back(msg_id);
        if self.submitted_order.len() > REMEMBERED {
            let oldest = self.submitted_order.pop_front();
            oldest.map(|id| self.submitted.remove(&id));
        }
        AnswerBody::Done { repeated: false }
    }

    fn serve(&mut self, request: Request, data: &[u8]) -> (AnswerBody, Bytes) {
        let body = match request {
            Request::Signal { signal, generation } => self.signal(signal, generation),
            Request::Restart => {
                self.restart();
                AnswerBody::Done { repeated: false }
            }
            Request::Usage => AnswerBody::Usage(self.meter.read()),
            Request::FileGet { path, offset } => match self.files.get(&path, offset) {
                Ok((size, data)) => return (AnswerBody::File { size }, data),
                Err(reason) => AnswerBody::Refused { reason },
            },
            Request::FilePut { path, offset } => done(self.files.put(&path, offset, data)),
            Request::FileRemove { path } => done(self.files.remove(&path)),
            Request::FileList { path } => match self.files.list(&path) {
                Ok(entries) => AnswerBody::Listing { entries },
                Err(reason) => AnswerBody::Refused { reason },
            },
            Request::Terminate => AnswerBody::Refused { reason: "already ending".to_owned() },
        };
        (body, Bytes::new())
    }

    fn signal(&mut self, signal: SignalKind, generation: Generation) -> AnswerBody {
        let Some(pid) = self.kernel.pid.filter(|_| generation == self.kernel.generation) else {
            return AnswerBody::Refused { reason: "that kernel is gone".to_owned() };
        };
        match signal {
            // The run is still on its way to the kernel, which would take the interrupt for nobody's. A second one is sent
            // in any case: a kernel may work on something that we do not know of.
            SignalKind::Interrupt if self.runs.is_waiting() && !self.kernel.interrupt_held => {
                self.kernel.interrupt_held = true;
            }
            SignalKind::Interrupt => self.interrupt(),
            SignalKind::Terminate => {
                self.kernel.kill_reason.get_or_insert(KillReason::Asked);
                kernel::signal_group(pid, Signal::TERM);
            }
            SignalKind::Kill => {
                self.kernel.kill_reason.get_or_insert(KillReason::Asked);
                kernel::kill_all(Some(pid));
            }
        }
        AnswerBody::Done { repeated: false }
    }

    fn interrupt(&mut self) {
        self.kernel.interrupt_held = false;
        match (&self.kernel.senders, self.kernel.pid) {
            (Some(senders), _) if self.config.interrupt_by_message => {
                senders.send(Channel::Control, Message::new_request(&self.own_session, "interrupt_request", &json!({})));
            }
            (_, Some(pid)) => kernel::signal_group(pid, Signal::INT),
            _ => {}
        }
    }

    fn restart(&mut self) {
        match (self.kernel.pid, self.kernel.exit) {
            (Some(pid), _) => {
                self.kernel.kill_reason = Some(KillReason::Restart);
                kernel::kill_all(Some(pid));
            }
            // Dying already: the new life starts when the exit has been told.
            (None, Some(_)) => self.kernel.kill_reason = Some(KillReason::Restart),
            (None, None) => self.start_kernel(Generation(self.kernel.generation.0 + 1)),
        }
    }

    fn answer(&mut self, id: u64, body: AnswerBody, data: Bytes) {
        let Some(connection) = &self.connection else { return };
        if !connection.answer(FromAgent::Answer(Answer { id, body, data })) {
            self.close(connection.id);
        }
    }

    // ---- what the kernel says ---------------------------------------------------------------------------------------

    fn receive(&mut self, (channel, message): Received) {
        // The kernel is dying: its exit waits until it has said everything.
        if let Some((_, settled)) = &mut self.kernel.exit {
            *settled = Instant::now() + SETTLE;
        }
        let message = match message {
            Ok(message) => message,
            Err(error) => return self.refuse(&error.to_string()),
        };
        let (header, parent) = (message.header(), message.parent());
        if channel == Channel::Iopub {
            self.kernel.heard = true;
        }
        if parent.session == self.own_session || header.msg_type == "iopub_welcome" {
            if header.msg_type == "kernel_info_reply" {
                self.kernel.replied = Some(String::from_utf8_lossy(&message.content).into_owned());
            }
            return self.become_ready();
        }
        self.become_ready();
        if message_size(&message) > MAX_MESSAGE {
            return self.refuse(&format!("it is larger than {} MB", MAX_MESSAGE >> 20));
        }
        match channel {
            Channel::Iopub => {
                if header.msg_type != "status" && self.runs.begun(&parent.msg_id) && self.kernel.interrupt_held {
                    self.interrupt();
                }
                self.broadcast(&header, &parent.msg_id, message);
            }
            Channel::Shell if header.msg_type == "execute_reply" && self.runs.replied(&parent.msg_id) => {
                self.check_child_oom();
                self.emit_message(channel, message);
            }
            _ => self.emit_message(channel, message),
        }
    }

    fn broadcast(&mut self, header: &Header, run: &str, message: Message) {
        let is_stream = header.msg_type == "stream";
        if !matches!(header.msg_type.as_str(), "status" | "execute_input") {
            match self.runs.take(run, message_size(&message) as u64) {
                Room::Enough => {}
                Room::Only { bytes, msg_id } => return self.cap_output(is_stream.then_some(message), bytes, msg_id),
                Room::None => return,
            }
        }
        if is_stream {
            let mut out = Vec::new();
            self.coalescer.push(message, Instant::now(), &mut |message| out.push(message));
            out.into_iter().for_each(|message| self.store_message(Channel::Iopub, message));
        } else {
            self.emit_message(Channel::Iopub, message);
        }
    }

    /// Says that a run has produced too much; the rest of it is let go. Text is kept up to the limit, half an image is none.
    fn cap_output(&mut self, stream: Option<Message>, room: u64, msg_id: String) {
        if let Some(cut) = stream.and_then(|message| coalesce::cut_text(&message, room as usize)) {
            self.emit_message(Channel::Iopub, cut);
        }
        let limit = self.config.limits.output_bytes();
        self.emit_kernel(KernelEvent::OutputCapped { msg_id, limit });
    }

    /// Told a few times and then no more: a kernel can send garbage faster than anyone can read of it.
    fn refuse(&mut self, reason: &str) {
        self.kernel.refused += 1;
        if self.kernel.refused > REFUSALS_TOLD {
            return;
        }
        self.emit_kernel(KernelEvent::BadMessage { reason: reason.to_owned() });
    }

    fn check_child_oom(&mut self) {
        let kills = self.meter.oom_kills();
        if kills > self.kernel.oom_kills_before {
            self.kernel.oom_kills_before = kills;
            self.emit_kernel(KernelEvent::ChildOutOfMemory);
        }
    }

    /// What the process writes past the protocol (C code, child processes) is output of the running cell all the same.
    fn stdio(&mut self, name: &'static str, bytes: &[u8]) {
        self.kernel.last_words.push(bytes);
        if let Some((_, settled)) = &mut self.kernel.exit {
            *settled = Instant::now() + SETTLE;
        }
        if let Some(parent_header) = self.runs.open_header() {
            let content = json!({"name": name, "text": String::from_utf8_lossy(bytes)});
            let mut message = Message::new_request(&self.own_session, "stream", &content);
            message.parent_header = parent_header;
            let (header, parent) = (message.header(), message.parent());
            self.broadcast(&header, &parent.msg_id, message);
        }
    }

    // ---- events -----------------------------------------------------------------------------------------------------

    fn emit_message(&mut self, channel: Channel, message: Message) {
        self.flush_streams();
        self.store_message(channel, message);
    }

    fn emit_kernel(&mut self, event: KernelEvent) {
        self.flush_streams();
        self.store(&Event::Kernel { generation: self.kernel.generation, event });
    }

    fn flush_streams(&mut self) {
        let mut held = None;
        self.coalescer.flush(Instant::now(), &mut |message| held = Some(message));
        if let Some(message) = held {
            self.store_message(Channel::Iopub, message);
        }
    }

    fn store_message(&mut self, channel: Channel, message: Message) {
        self.store(&Event::Message { channel, generation: self.kernel.generation, message });
    }

    fn store(&mut self, event: &Event) {
        self.buffer.borrow_mut().push(event.encode());
        if let Some(connection) = &self.connection {
            connection.wake();
        }
    }

    // ---- time -------------------------------------------------------------------------------------------------------

    fn next_deadline(&self) -> Option<Instant> {
        let exit = self.kernel.exit.map(|(_, settled)| settled);
        let orphan = self.orphan_deadline();
        [self.coalescer.deadline(), self.kernel.next_nudge, exit, orphan, self.next_watch].into_iter().flatten().min()
    }

    fn orphan_deadline(&self) -> Option<Instant> {
        let seconds = self.config.orphan_seconds.filter(|_| self.connection.is_none())?;
        Some(self.alone_since + Duration::from_secs(seconds))
    }

    /// Does what is due. `true` ends the agent: nobody has come for it.
    fn tick(&mut self, now: Instant) -> bool {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.coalescer.deadline()) {
            self.flush_streams();
        }
        if due(self.kernel.next_nudge) {
            self.nudge(now);
        }
        if let Some((status, settled)) = self.kernel.exit
            && settled <= now
        {
            self.kernel.exit = None;
            self.finish_exit(status);
        }
        if due(self.next_watch) {
            self.next_watch = Some(now + WATCH);
            self.watch_memory();
        }
        due(self.orphan_deadline())
    }

    fn watch_memory(&mut self) {
        let over = self.meter.read().memory_bytes > self.config.limits.memory_bytes();
        if let (true, Some(pid)) = (over, self.kernel.pid) {
            self.kernel.kill_reason.get_or_insert(KillReason::Memory);
            kernel::kill_all(Some(pid));
        }
    }
}

fn message_size(message: &Message) -> usize {
    let json = [&message.header, &message.parent_header, &message.metadata, &message.content];
    json.into_iter().map(Bytes::len).sum::<usize>() + message.buffers.iter().map(Bytes::len).sum::<usize>()
}

async fn connect(
    connection: &crate::wire::connection_file::ConnectionInfo,
    generation: Generation,
    inputs: mpsc::Sender<Input>,
) -> Result<(Senders, JoinSet<()>), String> {
    let (sender, mut receiver) = mpsc::channel::<Received>(64);
    let mut tasks = JoinSet::new();
    let senders = channels::connect(connection, sender, &mut tasks).await?;
    tasks.spawn_local(async move {
        while let Some(received) = receiver.recv().await {
            if inputs.send(Input::Received { generation, received }).await.is_err() {
                return;
            }
        }
    });
    Ok((senders, tasks))
}

async fn read_stdio(generation: Generation, name: &'static str, fd: OwnedFd, inputs: mpsc::Sender<Input>) {
    use tokio::io::AsyncReadExt;
    let Ok(mut reader) = pipe::Receiver::from_owned_fd(fd) else { return };
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = reader.read(&mut chunk).await {
        let bytes = Bytes::copy_from_slice(&chunk[..read]);
        if inputs.send(Input::Stdio { generation, name, bytes }).await.is_err() {
            return;
        }
    }
}
