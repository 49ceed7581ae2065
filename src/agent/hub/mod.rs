//! The agent's event loop. It owns all state, handles one input after the other, and awaits nothing but the next input.
//!
//! ```text
//!            start                answers             exit seen, sockets quiet
//!  (none) ──────────▶ Starting ──────────▶ Ready ───────────────────────────▶ Exited
//!                        │                                                      │
//!                        └──────────── exit ───────────▶ Exited ──── Restart ───┘ (next generation)
//! ```
//!
//! [`kernel_process`] implements the diagram above, [`requests`] the manager's requests, [`output`] the kernel's messages, [`workspace`]
//! the reports of changed files.

mod execution_end;
mod kernel_process;
mod output;
mod requests;
mod workspace;

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::kernel_process::KernelInstance;
use self::workspace::ReportTimer;
use super::buffer::EventBuffer;
use super::coalesce::Coalescer;
use super::connection::{self, Connection};
use super::executions::Executions;
use super::files::Files;
use super::input::Input;
use super::kernel;
use super::uploads::Uploads;
use super::usage::UsageMeter;
use super::workspace_changes::WorkspaceChanges;
use crate::agent_protocol::{AgentConfig, Hello, KernelEvent};
use crate::ids::{Epoch, Generation};

/// The interval of memory samples: where the agent enforces the limit, and during executions.
const MEMORY_INTERVAL: Duration = Duration::from_millis(100);
/// Capacity of the event buffer beyond the output limit of one execution, bytes.
const BUFFER_SLACK: usize = 32 << 20;

struct Hub {
    config: AgentConfig,
    epoch: Epoch,
    /// The `session` of the agent's own requests; it distinguishes their replies from those to the manager's requests.
    own_session: String,
    inputs: mpsc::Sender<Input>,
    buffer: Rc<RefCell<EventBuffer>>,
    coalescer: Coalescer,
    connection: Option<Connection>,
    connections: u64,
    kernel: KernelInstance,
    executions: Executions,
    submitted: HashSet<String>,
    submitted_order: VecDeque<String>,
    files: Files,
    /// Of the current connection; unfinished uploads are discarded with it.
    uploads: Uploads,
    changes: WorkspaceChanges,
    report_timer: ReportTimer,
    meter: UsageMeter,
    detached_since: Instant,
    next_memory_check: Option<Instant>,
    /// The next memory sample of the running execution.
    next_sample: Option<Instant>,
    /// An execution was just submitted, and its usage baseline is not read yet.
    baseline_due: bool,
}

/// Runs until the manager terminates the agent, or no manager was connected for `orphan_seconds`.
pub(super) async fn run(config: AgentConfig) -> io::Result<()> {
    let (sender, mut inputs) = mpsc::channel(256);
    connection::listen(&config.listen, sender.clone())?;
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
                if hub.handle_input(input).await {
                    return Ok(());
                }
                if std::mem::take(&mut hub.baseline_due) {
                    // Send the request first: the kernel takes longer to read it than the agent to read half a dozen files.
                    tokio::task::yield_now().await;
                    hub.executions.set_baseline(hub.meter.sample());
                }
            }
            () = hub.output_readable() => {
                hub.read_output();
                // A kernel that always writes must not keep the connection to the manager from sending.
                tokio::task::yield_now().await;
            }
            () = hub.workspace_changed() => hub.report_timer.start(),
            () = due, if deadline.is_some() => {}
        }
        if hub.run_timers(Instant::now()) {
            kernel::kill_all(hub.kernel.pid);
            return Ok(());
        }
    }
}

impl Hub {
    fn new(config: AgentConfig, inputs: mpsc::Sender<Input>) -> io::Result<Self> {
        let epoch = Epoch::random();
        let limit = config.limits.output_bytes() as usize + BUFFER_SLACK;
        let files = Files::new(&config.workspace)?;
        Ok(Self {
            changes: WorkspaceChanges::new(&files),
            report_timer: ReportTimer::default(),
            files,
            uploads: Uploads::default(),
            own_session: format!("agent-{:016x}", epoch.0),
            epoch,
            inputs,
            buffer: Rc::new(RefCell::new(EventBuffer::new(limit))),
            coalescer: Coalescer::default(),
            connection: None,
            connections: 0,
            kernel: KernelInstance::new(Generation(0), 0),
            executions: Executions::new(config.limits.output_bytes()),
            submitted: HashSet::new(),
            submitted_order: VecDeque::new(),
            meter: UsageMeter::new(),
            detached_since: Instant::now(),
            next_memory_check: (!config.memory_enforced).then(Instant::now),
            next_sample: None,
            baseline_due: false,
            config,
        })
    }

    // ---- inputs -----------------------------------------------------------------------------------------------------

    /// Handles one input; `true` ends the agent.
    async fn handle_input(&mut self, input: Input) -> bool {
        match input {
            Input::Connection(stream) => self.open(stream),
            Input::Closed { connection } => self.close(connection),
            Input::Frame { connection, frame } => {
                if self.connection.as_ref().is_some_and(|current| current.id == connection) {
                    return self.handle_frame(frame).await;
                }
            }
            Input::Connected { generation, result } if generation == self.kernel.generation => match result {
                Ok((senders, tasks)) => {
                    self.kernel.senders = Some(senders);
                    self.kernel.socket_tasks = Some(tasks);
                    self.request_kernel_info(Instant::now());
                }
                Err(reason) => self.emit_kernel(KernelEvent::BadMessage { reason }),
            },
            Input::Received { generation, received } if generation == self.kernel.generation => {
                // Output that the kernel wrote before this message comes first.
                self.read_output();
                self.receive(received);
            }
            // Of an earlier generation.
            Input::Connected { .. } | Input::Received { .. } => {}
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
        self.uploads.discard_all();
        self.connection = Some(Connection::open(self.connections, stream, hello, buffer, self.inputs.clone()));
    }

    fn close(&mut self, connection: u64) {
        if self.connection.as_ref().is_some_and(|current| current.id == connection) {
            self.connection = None;
            self.uploads.discard_all();
            self.detached_since = Instant::now();
        }
    }

    // ---- time -------------------------------------------------------------------------------------------------------

    fn next_deadline(&self) -> Option<Instant> {
        let exit = self.kernel.exit.map(|(_, settled)| settled);
        let orphan = self.orphan_deadline();
        let (text, marker) = (self.coalescer.deadline(), self.marker_deadline());
        let (memory, report) = (self.next_memory_check, self.report_timer.due);
        [text, marker, self.kernel.next_info_request, exit, orphan, memory, self.next_sample, report]
            .into_iter()
            .flatten()
            .min()
    }

    fn marker_deadline(&self) -> Option<Instant> {
        self.kernel.end.as_ref().and_then(|end| end.give_up_at)
    }

    fn orphan_deadline(&self) -> Option<Instant> {
        let seconds = self.config.orphan_seconds.filter(|_| self.connection.is_none())?;
        Some(self.detached_since + Duration::from_secs(seconds))
    }

    /// Runs the timers that are due; `true` ends the agent because no manager came.
    fn run_timers(&mut self, now: Instant) -> bool {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.coalescer.deadline()) {
            self.flush_streams();
        }
        if due(self.marker_deadline()) {
            self.pass_on_end();
        }
        if due(self.kernel.next_info_request) {
            self.request_kernel_info(now);
        }
        if let Some((status, settled)) = self.kernel.exit
            && settled <= now
        {
            self.kernel.exit = None;
            self.report_exit(status);
        }
        if due(self.next_memory_check) {
            self.next_memory_check = Some(now + MEMORY_INTERVAL);
            self.enforce_memory_limit();
        }
        if due(self.next_sample) {
            self.next_sample = self.executions.is_running().then(|| now + MEMORY_INTERVAL);
            self.executions.sample_memory(self.meter.memory_now());
        }
        if due(self.report_timer.due) {
            self.report_changes();
        }
        due(self.orphan_deadline())
    }
}
