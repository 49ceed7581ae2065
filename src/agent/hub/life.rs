//! The kernel's life: its start, its readiness, its signals, its end.
//!
//! Its exit is told only after its sockets have been quiet for [`SETTLE`]: what it said before it died comes first.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Hub, Input};
use crate::agent::channels::{self, Received, Senders};
use crate::agent::kernel::{self, LastWords};
use crate::agent::runs::Runs;
use crate::agent::stdio;
use crate::agent_protocol::{AnswerBody, KernelEvent, KernelExit, KernelState, KillReason, SignalKind};
use crate::ids::Generation;
use crate::wire::connection_file::ConnectionInfo;
use crate::wire::{Channel, Message};

/// How long a dead kernel's sockets must be quiet before its exit is told.
pub(super) const SETTLE: Duration = Duration::from_millis(60);
/// Asking a starting kernel again: soon at first (iopub may not have been subscribed in time), then at leisure.
const NUDGES: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(500)];

/// One life of the kernel.
pub(super) struct Kernel {
    pub generation: Generation,
    pub state: KernelState,
    pub pid: Option<Pid>,
    pub senders: Option<Senders>,
    /// Ends all of this life's tasks when it is dropped.
    pub tasks: JoinSet<()>,
    pub socket_tasks: Option<JoinSet<()>>,
    pub replied: Option<String>,
    pub heard: bool,
    pub nudges: usize,
    pub next_nudge: Option<Instant>,
    pub exit: Option<(ExitStatus, Instant)>,
    pub kill_reason: Option<KillReason>,
    /// An interrupt waits for the run that it is meant for to begin.
    pub interrupt_held: bool,
    pub oom_kills_before: u64,
    pub last_words: LastWords,
}

impl Kernel {
    pub fn new(generation: Generation, oom_kills_before: u64) -> Self {
        Self {
            generation,
            state: KernelState::Starting,
            pid: None,
            senders: None,
            tasks: JoinSet::new(),
            socket_tasks: None,
            replied: None,
            heard: false,
            nudges: 0,
            next_nudge: None,
            exit: None,
            kill_reason: None,
            interrupt_held: false,
            oom_kills_before,
            last_words: LastWords::default(),
        }
    }
}

impl Hub {
    pub(super) fn start_kernel(&mut self, generation: Generation) {
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
        let tasks = &mut self.kernel.tasks;
        for (name, fd) in [("stdout", process.stdout), ("stderr", process.stderr)] {
            tasks.spawn_local(stdio::read(generation, name, fd, self.inputs.clone()));
        }
        let inputs = self.inputs.clone();
        tasks.spawn_local(async move {
            let result = connect(&process.connection, generation, inputs.clone()).await;
            let _ = inputs.send(Input::Connected { generation, result }).await;
        });
        self.emit_kernel(KernelEvent::Starting);
    }

    pub(super) fn nudge(&mut self, now: Instant) {
        let Some(senders) = &self.kernel.senders else { return };
        senders.send(Channel::Shell, Message::new_request(&self.own_session, "kernel_info_request", &json!({})));
        let wait = NUDGES[self.kernel.nudges.min(NUDGES.len() - 1)];
        self.kernel.nudges += 1;
        self.kernel.next_nudge = Some(now + wait);
    }

    pub(super) fn become_ready(&mut self) {
        if let (KernelState::Starting, true, Some(info)) = (self.kernel.state, self.kernel.heard, self.kernel.replied.take())
        {
            self.kernel.state = KernelState::Ready;
            self.kernel.next_nudge = None;
            self.emit_kernel(KernelEvent::Ready { info });
        }
    }

    pub(super) fn reap(&mut self) {
        for (pid, status) in kernel::reap() {
            if self.kernel.pid == Some(pid) {
                self.kernel.pid = None;
                self.kernel.exit = Some((status, Instant::now() + SETTLE));
                // Its children and daemons must not outlive it, nor write into the life of the next.
                kernel::kill_all(None);
            }
        }
    }

    pub(super) fn finish_exit(&mut self, status: ExitStatus) {
        self.flush_streams();
        let reason = self.kernel.kill_reason;
        let counted = self.meter.oom_kills() > self.kernel.oom_kills_before && status.signal() == Some(libc::SIGKILL);
        // What a process was counted with is gone with it, where no cgroup counts.
        if let Some(run) = self.runs.open_run().filter(|_| self.meter.counts_the_dead()) {
            self.tell_usage(run);
        }
        let out_of_memory = reason == Some(KillReason::Memory) || (reason.is_none() && counted);
        self.kernel.state = KernelState::Exited;
        self.kernel.senders = None;
        self.kernel.socket_tasks = None;
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

    pub(super) fn signal(&mut self, signal: SignalKind, generation: Generation) -> AnswerBody {
        let Some(pid) = self.kernel.pid.filter(|_| generation == self.kernel.generation) else {
            return AnswerBody::Refused("that kernel is gone".to_owned().into());
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

    pub(super) fn interrupt(&mut self) {
        self.kernel.interrupt_held = false;
        match (&self.kernel.senders, self.kernel.pid) {
            (Some(senders), _) if self.config.interrupt_by_message => {
                senders.send(Channel::Control, Message::new_request(&self.own_session, "interrupt_request", &json!({})));
            }
            (_, Some(pid)) => kernel::signal_group(pid, Signal::INT),
            _ => {}
        }
    }

    pub(super) fn restart(&mut self) {
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

    pub(super) fn watch_memory(&mut self) {
        let bytes = self.meter.read().memory_bytes;
        self.runs.see_memory(bytes);
        let over = bytes > self.config.limits.memory_bytes();
        if let (true, Some(pid)) = (over, self.kernel.pid) {
            self.kernel.kill_reason.get_or_insert(KillReason::Memory);
            kernel::kill_all(Some(pid));
        }
    }
}

async fn connect(
    connection: &ConnectionInfo,
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
