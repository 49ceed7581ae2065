//! The kernel process: start, readiness, signals, exit.
//!
//! An exit is reported only after the sockets have been quiet for [`DRAIN_QUIET`], so that messages sent before it come
//! first.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::KernelHost;
use super::execution_end::ExecutionEnd;
use crate::agent::channels::{self, Received, Senders};
use crate::agent::executions::Executions;
use crate::agent::input::Input;
use crate::agent::kernel::{self, KernelIdentity, StartLog};
use crate::agent::output_pipes::OutputPipes;
use crate::agent_protocol::{AnswerBody, KernelEvent, KernelExit, KernelState, KillReason, SignalKind};
use crate::ids::Generation;
use crate::wire::connection_file::ConnectionInfo;
use crate::wire::{Channel, Message};

/// How long the sockets of an exited kernel must be quiet before its exit is reported.
pub(super) const DRAIN_QUIET: Duration = Duration::from_millis(60);
/// Delays between `kernel_info_request`s to a starting kernel: short at first, since the iopub subscription may have missed
/// the first answer.
const INFO_RETRY_DELAYS: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(500)];

/// The kernel of one generation.
pub(super) struct KernelInstance {
    pub generation: Generation,
    pub state: KernelState,
    pub senders: Option<Senders>,
    /// Ends all tasks of this generation when dropped.
    pub tasks: JoinSet<()>,
    pub socket_tasks: Option<JoinSet<()>>,
    /// Content of the `kernel_info_reply`.
    pub info: Option<String>,
    /// Whether the startup code has run, or there is none.
    pub prepared: bool,
    /// Whether a message arrived on iopub.
    pub iopub_seen: bool,
    pub info_requests: usize,
    pub next_info_request: Option<Instant>,
    /// The exit status of the reaped process, and when it is reported.
    pub exit: Option<(ExitStatus, Instant)>,
    pub kill_reason: Option<KillReason>,
    /// An interrupt is deferred until its execution starts.
    pub interrupt_deferred: bool,
    pub oom_kills_before: u64,
    pub output: Option<OutputPipes>,
    /// The execution to which text of the process belongs, by its `msg_id`. `None`: the running one.
    pub text_owner: Option<String>,
    pub start_log: StartLog,
    /// The reply and idle of an execution whose last outputs are still to come.
    pub end: Option<ExecutionEnd>,
}

impl KernelInstance {
    pub fn new(generation: Generation, oom_kills_before: u64) -> Self {
        Self {
            generation,
            state: KernelState::Starting,
            senders: None,
            tasks: JoinSet::new(),
            socket_tasks: None,
            info: None,
            prepared: false,
            end: None,
            iopub_seen: false,
            info_requests: 0,
            next_info_request: None,
            exit: None,
            kill_reason: None,
            interrupt_deferred: false,
            oom_kills_before,
            output: None,
            text_owner: None,
            start_log: StartLog::default(),
        }
    }
}

impl KernelHost {
    pub(super) fn start_kernel(&mut self, generation: Generation) {
        let oom_kills = self.sandbox.meter.borrow().oom_kills();
        self.sandbox.programs.ignore_oom_kills(oom_kills);
        self.kernel = KernelInstance::new(generation, oom_kills);
        self.executions = Executions::new(self.sandbox.config.limits.output_bytes());
        let identity = KernelIdentity { program: &self.program, generation, env: &self.env };
        let process = match kernel::start(&self.sandbox.config, &identity) {
            Ok(process) => process,
            Err(reason) => {
                self.kernel.state = KernelState::Exited;
                return self.emit_kernel(KernelEvent::Failed { reason });
            }
        };
        self.kernel.output = Some(process.output);
        let inputs = self.inputs.clone();
        self.kernel.tasks.spawn_local(async move {
            let result = connect(&process.connection, generation, inputs.clone()).await;
            let _ = inputs.send(Input::Connected { generation, result }).await;
        });
        self.emit_kernel(KernelEvent::Starting);
    }

    pub(super) fn request_kernel_info(&mut self, now: Instant) {
        let Some(senders) = &self.kernel.senders else { return };
        senders.send(Channel::Shell, Message::new_request(&self.own_session, "kernel_info_request", &json!({})));
        let wait = INFO_RETRY_DELAYS[self.kernel.info_requests.min(INFO_RETRY_DELAYS.len() - 1)];
        self.kernel.info_requests += 1;
        self.kernel.next_info_request = Some(now + wait);
    }

    pub(super) fn check_ready(&mut self) {
        if self.kernel.state != KernelState::Starting || self.kernel.info.is_none() || !self.kernel.iopub_seen {
            return;
        }
        if self.kernel.next_info_request.take().is_some()
            && let Some(code) = self.sandbox.config.startup_code.clone()
        {
            self.run_silently(&code);
        } else if (self.kernel.prepared || self.sandbox.config.startup_code.is_none())
            && let Some(info) = self.kernel.info.take()
        {
            self.kernel.state = KernelState::Ready;
            self.emit_kernel(KernelEvent::Ready { info });
        }
    }

    /// Lets the kernel run code of the agent. Its reply has the agent's session in its parent.
    pub(super) fn run_silently(&self, code: &str) {
        let content = json!({
            "code": code, "silent": true, "store_history": false, "user_expressions": {}, "allow_stdin": false,
            "stop_on_error": false,
        });
        if let Some(senders) = &self.kernel.senders {
            senders.send(Channel::Shell, Message::new_request(&self.own_session, "execute_request", &content));
        }
    }

    pub(super) fn note_exit(&mut self, status: ExitStatus) {
        self.kernel.exit = Some((status, Instant::now() + DRAIN_QUIET));
        // Its child processes must not outlive it, nor write into the output of the next generation.
        self.sandbox.programs.kill(&self.program);
        self.finish_output();
    }

    pub(super) fn report_exit(&mut self, status: ExitStatus) {
        self.flush_streams();
        self.pass_on_end();
        let over_memory = self.program.take_over_memory().then_some(KillReason::Memory);
        let reason = self.kernel.kill_reason.or(over_memory);
        match self.executions.running_id() {
            Some(run) => self.finish_changes(&run),
            None => self.report_changes(),
        }
        // Without a cgroup, the counters of a process disappear with it.
        if let Some(run) = self.executions.running_id().filter(|_| self.sandbox.meter.borrow().counts_exited_processes()) {
            self.emit_usage(run);
        }
        let out_of_memory = reason == Some(KillReason::Memory);
        self.kernel.state = KernelState::Exited;
        self.kernel.senders = None;
        self.kernel.socket_tasks = None;
        self.emit_kernel(KernelEvent::Exited(KernelExit {
            code: status.code(),
            signal: status.signal(),
            out_of_memory,
            reason,
            start_log: self.kernel.start_log.text(),
        }));
        if reason == Some(KillReason::Restart) {
            self.start_kernel(Generation(self.kernel.generation.0 + 1));
        }
    }

    pub(super) fn signal(&mut self, signal: SignalKind, generation: Generation) -> AnswerBody {
        if self.program.pid().is_none() || generation != self.kernel.generation {
            return AnswerBody::Refused("that kernel has exited".to_owned().into());
        }
        match signal {
            // The request is still on its way to the kernel, which would ignore the interrupt. A second interrupt is sent in
            // any case: the kernel may be working on something that the agent does not know of.
            SignalKind::Interrupt if self.executions.is_queued() && !self.kernel.interrupt_deferred => {
                self.kernel.interrupt_deferred = true;
            }
            SignalKind::Interrupt => self.interrupt(),
            SignalKind::Terminate => {
                self.kernel.kill_reason.get_or_insert(KillReason::Requested);
                self.program.signal_group(Signal::TERM);
            }
            SignalKind::Kill => {
                self.kernel.kill_reason.get_or_insert(KillReason::Requested);
                self.sandbox.programs.kill(&self.program);
            }
        }
        AnswerBody::Done { repeated: false }
    }

    pub(super) fn interrupt(&mut self) {
        self.kernel.interrupt_deferred = false;
        match &self.kernel.senders {
            Some(senders) if self.sandbox.config.interrupt_by_message => {
                senders.send(Channel::Control, Message::new_request(&self.own_session, "interrupt_request", &json!({})));
            }
            _ => self.program.signal_group(Signal::INT),
        }
    }

    pub(super) fn restart(&mut self) {
        match (self.program.pid(), self.kernel.exit) {
            (Some(_), _) => {
                self.kernel.kill_reason = Some(KillReason::Restart);
                self.sandbox.programs.kill(&self.program);
            }
            // Exited already: the next generation starts once the exit is reported.
            (None, Some(_)) => self.kernel.kill_reason = Some(KillReason::Restart),
            (None, None) => self.start_kernel(Generation(self.kernel.generation.0 + 1)),
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
