//! What the kernels and processes of a sandbox share, and the main loop: it reaps, measures, and ends the agent that no
//! manager needs.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::connection;
use super::egress::Egress;
use super::files::Files;
use super::input::Input;
use super::kernel_host;
use super::processes::Processes;
use super::programs::Programs;
use super::usage::UsageMeter;
use super::workspace_changes::WorkspaceChanges;
use crate::agent_protocol::{AgentConfig, Refused};
use crate::ids::{Epoch, SessionId};

/// The interval of memory samples: where the agent enforces the limit, and during executions.
pub(super) const MEMORY_INTERVAL: Duration = Duration::from_millis(100);
/// How often the agent looks whether a manager is connected.
const ORPHAN_INTERVAL: Duration = Duration::from_millis(250);
/// The most kernels of a sandbox. Each has an event buffer in the memory of the sandbox.
const MAX_KERNELS: usize = 16;

pub(super) struct Sandbox {
    pub config: AgentConfig,
    pub epoch: Epoch,
    pub files: Files,
    pub meter: RefCell<UsageMeter>,
    pub changes: RefCell<WorkspaceChanges>,
    /// The session whose execution was submitted last: a change of the workspace is reported to it.
    latest_executor: RefCell<Option<SessionId>>,
    pub programs: Programs,
    pub processes: Processes,
    /// The proxy port; `None` if the sandbox has a network of its own.
    pub egress: Option<Egress>,
    kernels: RefCell<HashMap<SessionId, mpsc::Sender<Input>>>,
    attached: Cell<usize>,
    detached_since: Cell<Instant>,
}

/// A connection of the manager. The agent lives on without one for a limited time, where it is configured.
pub(super) struct Attachment(Rc<Sandbox>);

impl Drop for Attachment {
    fn drop(&mut self) {
        self.0.attached.set(self.0.attached.get() - 1);
        self.0.detached_since.set(Instant::now());
    }
}

/// Runs until the manager ends the sandbox, or no manager was connected for `orphan_seconds`.
pub(super) async fn run(config: AgentConfig) -> io::Result<()> {
    let mut children = signal(SignalKind::child())?;
    let sandbox = Rc::new(Sandbox::new(config)?);
    connection::listen(&sandbox)?;
    if let Some(session) = sandbox.config.session.clone() {
        sandbox.start_kernel(session, BTreeMap::new()).map_err(|refused| io::Error::other(refused.reason))?;
    }
    let enforces_memory = !sandbox.config.memory_enforced;
    let mut memory = tokio::time::interval(MEMORY_INTERVAL);
    memory.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut orphan = tokio::time::interval(ORPHAN_INTERVAL);
    loop {
        tokio::select! {
            biased;
            _ = children.recv() => sandbox.programs.reap(|| sandbox.meter.borrow().oom_kills()),
            _ = memory.tick(), if enforces_memory => sandbox.enforce_memory_limit(),
            _ = orphan.tick(), if sandbox.config.orphan_seconds.is_some() => if sandbox.is_orphaned() {
                sandbox.programs.kill_everything();
                return Ok(());
            }
        }
    }
}

impl Sandbox {
    fn new(config: AgentConfig) -> io::Result<Self> {
        let files = Files::new(&config.workspace)?;
        Ok(Self {
            changes: RefCell::new(WorkspaceChanges::new(&files)),
            files,
            epoch: Epoch::random(),
            meter: RefCell::new(UsageMeter::new()),
            latest_executor: RefCell::default(),
            programs: Programs::default(),
            processes: Processes::default(),
            // Before any kernel could take the port.
            egress: if config.proxy_port {
                Some(
                    Egress::listen()
                        .map_err(|error| io::Error::other(format!("cannot listen on the proxy port: {error}")))?,
                )
            } else {
                None
            },
            kernels: RefCell::default(),
            attached: Cell::new(0),
            detached_since: Cell::new(Instant::now()),
            config,
        })
    }

    /// Counts a connection until the value is dropped.
    pub fn attach(self: &Rc<Self>) -> Attachment {
        self.attached.set(self.attached.get() + 1);
        Attachment(self.clone())
    }

    /// Starts the kernel of a session, in a task of its own. A session has one kernel.
    ///
    /// # Errors
    /// If there are too many.
    pub fn start_kernel(self: &Rc<Self>, session: SessionId, env: BTreeMap<String, String>) -> Result<(), Refused> {
        if self.kernels.borrow().contains_key(&session) {
            return Ok(());
        }
        if self.kernels.borrow().len() >= MAX_KERNELS {
            return Err(format!("the sandbox has {MAX_KERNELS} kernels already").into());
        }
        let inputs = kernel_host::spawn(self.clone(), session.clone(), env);
        self.kernels.borrow_mut().insert(session, inputs);
        Ok(())
    }

    /// Ends the kernel of a session and forgets it. Its task ends later, and connections to it before.
    pub async fn stop_kernel(&self, session: &SessionId) {
        let inputs = self.kernels.borrow_mut().remove(session);
        if let Some(inputs) = inputs {
            let _ = inputs.send(Input::Stop).await;
        }
    }

    /// The inputs of the kernel of a session.
    pub fn kernel(&self, session: &SessionId) -> Option<mpsc::Sender<Input>> {
        self.kernels.borrow().get(session).cloned()
    }

    /// Notes that a session executes. Returns whether it reports what has changed so far; else the session before does.
    pub fn note_executor(&self, session: &SessionId) -> bool {
        let before = self.latest_executor.replace(Some(session.clone())).filter(|before| before != session);
        let inputs = before.and_then(|before| self.kernel(&before));
        // If its queue is full, the session that executes now has the changes of both.
        inputs.is_none_or(|inputs| inputs.try_send(Input::ReportChanges).is_err())
    }

    /// Whether changes of the workspace are reported to this session.
    pub fn is_latest_executor(&self, session: &SessionId) -> bool {
        self.latest_executor.borrow().as_ref().is_none_or(|latest| latest == session)
    }

    fn enforce_memory_limit(&self) {
        let bytes = self.meter.borrow_mut().read().memory_bytes;
        if bytes > self.config.limits.memory_bytes() {
            self.programs.kill_largest();
        }
    }

    fn is_orphaned(&self) -> bool {
        let lifetime = self.config.orphan_seconds.map(Duration::from_secs);
        self.attached.get() == 0 && lifetime.is_some_and(|lifetime| self.detached_since.get().elapsed() >= lifetime)
    }
}
