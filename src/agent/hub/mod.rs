//! The agent's one loop. It owns all state, takes every input in turn, and never waits for anything but the next input.
//!
//! ```text
//!            start                answers             exit seen, sockets quiet
//!  (none) ──────────▶ Starting ──────────▶ Ready ───────────────────────────▶ Exited
//!                        │                                                      │
//!                        └──────────── exit ───────────▶ Exited ──── Restart ───┘ (next generation)
//! ```
//!
//! Here is what belongs together and in which order it is taken. [`life`] is the diagram above, [`requests`] what the manager
//! asks, [`output`] what the kernel says.

mod life;
mod output;
mod requests;

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::life::Kernel;
use super::buffer::Buffer;
use super::channels::{Received, Senders};
use super::coalesce::Coalescer;
use super::files::Files;
use super::kernel;
use super::runs::Runs;
use super::serve::{self, Connection};
use super::uploads::Uploads;
use super::usage::Meter;
use crate::agent_protocol::{AgentConfig, Hello, KernelEvent, ToAgent};
use crate::ids::{Epoch, Generation};

/// How often memory is looked at: where no cgroup holds it, and while a run is worked on.
const WATCH: Duration = Duration::from_millis(100);
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
    /// Of the connection that there is: with it, what it has not finished goes.
    uploads: Uploads,
    meter: Meter,
    alone_since: Instant,
    next_watch: Option<Instant>,
    /// When the memory of the run that is worked on is looked at next.
    next_look: Option<Instant>,
    /// A run has just begun, and what was used before it is not read yet.
    has_begun: bool,
}

/// Runs until the manager terminates the agent or it is left alone for too long.
pub(super) async fn run(config: AgentConfig) -> io::Result<()> {
    let (sender, mut inputs) = mpsc::channel(256);
    serve::listen(&config.listen, sender.clone())?;
    let mut children = signal(SignalKind::child())?;
    let mut hub = Hub::new(config, sender)?;
    hub.start_kernel(Generation(1));
    loop {
        let deadline = hub.next_deadline();
        let due = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into());
        tokio::select! {
            biased;
            _ = children.recv() => hub.reap(),
            input = inputs.recv() => {
                let Some(input) = input else { return Ok(()) };
                if hub.take(input).await {
                    return Ok(());
                }
                if std::mem::take(&mut hub.has_begun) {
                    // The request goes out first: the kernel takes longer to look at it than we to read half a dozen files.
                    tokio::task::yield_now().await;
                    hub.runs.begin_from(hub.meter.read_quickly());
                }
            }
            () = due, if deadline.is_some() => {}
        }
        if hub.tick(Instant::now()) {
            kernel::kill_all(hub.kernel.pid);
            return Ok(());
        }
    }
}

impl Hub {
    fn new(config: AgentConfig, inputs: mpsc::Sender<Input>) -> io::Result<Self> {
        let epoch = Epoch::random();
        let limit = config.limits.output_bytes() as usize + BUFFER_SLACK;
        Ok(Self {
            files: Files::new(&config.workspace)?,
            uploads: Uploads::default(),
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
            next_look: None,
            has_begun: false,
            config,
        })
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
                    self.kernel.socket_tasks = Some(tasks);
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
        self.uploads.drop_all();
        self.connection = Some(Connection::open(self.connections, stream, hello, buffer, self.inputs.clone()));
    }

    fn close(&mut self, connection: u64) {
        if self.connection.as_ref().is_some_and(|current| current.id == connection) {
            self.connection = None;
            self.uploads.drop_all();
            self.alone_since = Instant::now();
        }
    }

    // ---- time -------------------------------------------------------------------------------------------------------

    fn next_deadline(&self) -> Option<Instant> {
        let exit = self.kernel.exit.map(|(_, settled)| settled);
        let orphan = self.orphan_deadline();
        [self.coalescer.deadline(), self.kernel.next_nudge, exit, orphan, self.next_watch, self.next_look]
            .into_iter()
            .flatten()
            .min()
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
        if due(self.next_look) {
            self.next_look = self.runs.is_open().then(|| now + WATCH);
            self.runs.see_memory(self.meter.memory_now());
        }
        due(self.orphan_deadline())
    }
}
