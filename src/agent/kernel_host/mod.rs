//! The task of one kernel. It owns all state of the kernel, handles one input after the other, and awaits nothing but the next
//! input.
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
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::mpsc;

use self::kernel_process::KernelInstance;
use self::workspace::ReportTimer;
use super::buffer::EventBuffer;
use super::coalesce::Coalescer;
use super::connection::{Connection, ManagerStream};
use super::executions::Executions;
use super::input::Input;
use super::programs::Program;
use super::sandbox::{MEMORY_INTERVAL, Sandbox};
use super::uploads::Uploads;
use super::workspace_changes::ChangeSignal;
use crate::agent_protocol::{Hello, KernelEvent};
use crate::ids::{Generation, SessionId};

/// Capacity of the event buffer beyond the output limit of one execution, bytes.
const BUFFER_SLACK: usize = 32 << 20;

pub(super) struct KernelHost {
    sandbox: Rc<Sandbox>,
    session: SessionId,
    program: Rc<Program>,
    /// Variables in addition to those of the configuration.
    env: BTreeMap<String, String>,
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
    /// Of the current connection; unfinished uploads are discarded with it.
    uploads: Uploads,
    changes: ChangeSignal,
    report_timer: ReportTimer,
    /// The next memory sample of the running execution.
    next_sample: Option<Instant>,
    /// An execution was just submitted, and its usage baseline is not read yet.
    baseline_due: bool,
}

/// Starts the kernel of a session, and the task that owns it. It ends after [`Input::Stop`].
pub(super) fn spawn(sandbox: Rc<Sandbox>, session: SessionId, env: BTreeMap<String, String>) -> mpsc::Sender<Input> {
    let (sender, inputs) = mpsc::channel(256);
    let (program, exits) = sandbox.programs.register(session.to_string());
    let host = KernelHost::new(sandbox, session, program, env, sender.clone());
    tokio::task::spawn_local(host.run(inputs, exits));
    sender
}

impl KernelHost {
    fn new(
        sandbox: Rc<Sandbox>,
        session: SessionId,
        program: Rc<Program>,
        env: BTreeMap<String, String>,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        let output_limit = sandbox.config.limits.output_bytes();
        let changes = sandbox.changes.borrow().signal();
        Self {
            changes,
            report_timer: ReportTimer::default(),
            uploads: Uploads::default(),
            own_session: format!("agent-{:016x}", sandbox.epoch.0),
            inputs,
            buffer: Rc::new(RefCell::new(EventBuffer::new(output_limit as usize + BUFFER_SLACK))),
            coalescer: Coalescer::default(),
            connection: None,
            connections: 0,
            kernel: KernelInstance::new(Generation(0), 0),
            executions: Executions::new(output_limit),
            submitted: HashSet::new(),
            submitted_order: VecDeque::new(),
            next_sample: None,
            baseline_due: false,
            sandbox,
            session,
            program,
            env,
        }
    }

    async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut exits: mpsc::UnboundedReceiver<ExitStatus>) {
        self.start_kernel(Generation(1));
        loop {
            let deadline = self.next_deadline();
            let due = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into());
            tokio::select! {
                biased;
                Some(status) = exits.recv() => self.note_exit(status),
                input = inputs.recv() => match input {
                    None | Some(Input::Stop) => break,
                    Some(input) => {
                        self.handle_input(input);
                        if std::mem::take(&mut self.baseline_due) {
                            // Send the request first: the kernel takes longer to read it than the agent to read half a dozen files.
                            tokio::task::yield_now().await;
                            self.executions.set_baseline(self.sandbox.meter.borrow().sample());
                        }
                    }
                },
                () = self.output_readable() => {
                    self.read_output();
                    // A kernel that always writes must not keep the connection to the manager from sending.
                    tokio::task::yield_now().await;
                }
                () = self.workspace_changed() => self.report_timer.start(),
                () = due, if deadline.is_some() => {}
            }
            self.run_timers(Instant::now());
        }
        self.sandbox.programs.kill(&self.program);
        self.sandbox.programs.forget(&self.program);
        self.uploads.discard_all();
    }

    // ---- inputs -----------------------------------------------------------------------------------------------------

    fn handle_input(&mut self, input: Input) {
        match input {
            Input::Connection(stream) => self.open(stream),
            Input::Closed { connection } => self.close(connection),
            Input::Frame { connection, frame } => {
                if self.connection.as_ref().is_some_and(|current| current.id == connection) {
                    self.handle_frame(frame);
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
            Input::ReportChanges => self.report_changes(),
            // Ends the loop before it comes here.
            Input::Stop => {}
        }
    }

    fn open(&mut self, stream: ManagerStream) {
        self.connections += 1;
        let hello = Hello {
            epoch: self.sandbox.epoch,
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
        }
    }

    // ---- time -------------------------------------------------------------------------------------------------------

    fn next_deadline(&self) -> Option<Instant> {
        let exit = self.kernel.exit.map(|(_, settled)| settled);
        let (text, marker) = (self.coalescer.deadline(), self.marker_deadline());
        let report = self.report_timer.due;
        [text, marker, self.kernel.next_info_request, exit, self.next_sample, report].into_iter().flatten().min()
    }

    fn marker_deadline(&self) -> Option<Instant> {
        self.kernel.end.as_ref().and_then(|end| end.give_up_at)
    }

    /// Runs the timers that are due.
    fn run_timers(&mut self, now: Instant) {
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
        if due(self.next_sample) {
            self.next_sample = self.executions.is_running().then(|| now + MEMORY_INTERVAL);
            self.executions.sample_memory(self.sandbox.meter.borrow().memory_now());
        }
        if due(self.report_timer.due) {
            self.report_changes();
        }
    }
}
