//! The kernel's life and the connection to its agent, as the session sees them: deaths and restarts, what is known after a cut,
//! and what to do where events were lost.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::core::{Core, Effect};
use super::handle::SessionState;
use super::piece::EventBody;
use super::run::Now;
use crate::agent_protocol::{Hello, KernelExit, KernelState, KillReason};
use crate::ids::{Epoch, Generation, Seq};
use crate::link::Position;
use crate::wire::{Channel, Message, json as wire_json};

/// How long a kernel may take to answer for the first time. Julia with precompilation takes half of it.
pub(super) const START_DEADLINE: Duration = Duration::from_secs(120);
/// A kernel that dies by itself is started again, unless it has died so often in a row without finishing a run.
const RESTARTS: u32 = 3;

impl Core {
    pub(super) fn restart_kernel(&mut self, now: Now) {
        self.restart_of = Some(self.generation);
        self.await_start(now);
        // Once on each connection, and while nobody listens it waits: asked twice, the new kernel could be ended as well.
        if self.attached && self.asked_restart_of.replace(self.generation) != Some(self.generation) {
            self.effects.push(Effect::RestartKernel(self.generation));
        }
    }

    pub(super) fn await_start(&mut self, now: Now) {
        self.set_state(now, SessionState::Restarting);
        self.start_deadline = Some(now.instant + START_DEADLINE);
    }

    /// Whether the kernel that we know of is to be replaced.
    pub(super) fn restart_is_pending(&self) -> bool {
        self.restart_of == Some(self.generation)
    }

    pub(super) fn kernel_exited(&mut self, now: Now, exit: &KernelExit) {
        let started = self.start_deadline.is_none() || self.replay_to.is_some();
        self.give_up_questions();
        self.end_captures();
        if let Some(active) = &self.active {
            let result = active.run.died(exit, self.facts.limits.memory_mb, now.instant);
            self.finish(now, result);
        }
        if exit.reason == Some(KillReason::Restart) || self.restart_is_pending() {
            // A new one has been asked for, and what waits was queued for it.
            return self.await_start(now);
        }
        if started {
            // One that we killed did not die by itself.
            self.replace_kernel(now, exit.reason != Some(KillReason::Asked));
        } else {
            self.cancel_queue(now, "the kernel died before it");
            self.end(now, &describe_failed_start(exit));
        }
    }

    /// The kernel is dead, or deaf to requests.
    pub(super) fn replace_kernel(&mut self, now: Now, by_itself: bool) {
        // They counted on what the kernel knew.
        self.cancel_queue(now, "the kernel died before it");
        self.restarts += u32::from(by_itself);
        if self.restarts <= RESTARTS {
            self.restart_kernel(now);
        } else {
            self.end(now, &format!("the kernel died {} times in a row, and no run ended between", self.restarts));
        }
    }

    /// News of a later life of the kernel: that the one before has ended was among events that were lost, or has been told.
    pub(super) fn heard_of(&mut self, now: Now, generation: Generation) {
        if generation <= self.generation {
            return;
        }
        self.generation = generation;
        // It has been done already.
        self.effects.retain(|effect| !matches!(effect, Effect::RestartKernel(_)));
        if let Some(active) = &self.active {
            let result = active.run.sandbox_gone("its kernel was replaced while nobody listened", now.instant);
            self.finish(now, result);
        }
        self.give_up_questions();
        self.end_captures();
        if self.kernel_is_there() {
            // Until it says that it is ready, or answers.
            self.await_start(now);
        }
    }

    pub(super) fn ended_well(&mut self) {
        self.restarts = 0;
    }

    /// A connection stands. What the agent has told before is replayed up to its last event.
    pub fn attached(&mut self, now: Now, hello: Hello) {
        (self.attached, self.asked_restart_of) = (true, None);
        self.effects.push(Effect::WatchSandbox(false));
        if hello.epoch == self.position.epoch && hello.generation < self.generation {
            let why = "the agent in its sandbox does not keep to the protocol: its kernel is one that ended before";
            return self.end(now, why);
        }
        if self.position.epoch != hello.epoch {
            if self.position.epoch != Epoch::default() {
                return self.end(now, "its sandbox was started anew by somebody else");
            }
            self.position = Position { epoch: hello.epoch, seq: Seq::default() };
            self.generation = hello.generation;
        }
        let last = Seq(hello.next_seq.0.saturating_sub(1));
        self.replay_to = (self.position.seq < last).then_some(last);
        self.hello = Some(hello);
        if self.replay_to.is_none() {
            self.caught_up(now);
        }
    }

    /// The connection was cut.
    pub(super) fn detached(&mut self) {
        self.attached = false;
        self.effects.push(Effect::WatchSandbox(true));
    }

    /// Whether what is known is true now.
    pub(super) fn is_current(&self) -> bool {
        self.attached && self.replay_to.is_none()
    }

    /// Everything up to this event of the agent has been taken in.
    pub(super) fn taken(&mut self, now: Now, seq: Seq) {
        self.position.seq = seq;
        self.piece.position = Some(self.position);
        if self.replay_to.is_some_and(|last| last <= seq) {
            self.replay_to = None;
            self.caught_up(now);
        }
    }

    /// Events of the agent are gone. The kernel's end, or a new one's beginning, may have been among them.
    pub fn lost(&mut self, now: Now, from: Seq, to: Seq) {
        let number = self.active.as_ref().map(|active| active.number);
        self.event(now, number, EventBody::Lost { from, to });
        // A later kernel is noticed by what it says, at the latest once all is taken in that was said before: what follows the
        // gap may still be from the kernel that we know.
        self.give_up_questions();
        self.end_captures();
        self.doubt = true;
        self.taken(now, to);
        if self.is_current() {
            self.ask_whether_done();
        }
    }

    /// The run's reply may have been among the lost events, or that the kernel is ready. A kernel answers in order: once it
    /// answers this question, it is there and has done with the run. One that is not there refuses, and tells when it is.
    fn ask_whether_done(&mut self) {
        if std::mem::take(&mut self.doubt) {
            let message = Message::new_request(&self.facts.name, "kernel_info_request", &json!({}));
            self.probe = Some(message.header().msg_id);
            // To whichever kernel there is: that it was started may be what was lost.
            self.effects.push(Effect::Send { channel: Channel::Shell, generation: None, message });
        }
    }

    /// What is known is true now: what was cut off can go on.
    fn caught_up(&mut self, now: Now) {
        if self.is_gone() {
            return;
        }
        let hello = self.hello.as_ref().map(|hello| (hello.generation, hello.kernel_state));
        let (generation, state) = hello.unwrap_or((self.generation, KernelState::Starting));
        self.heard_of(now, generation);
        if let Some(active) = &mut self.active {
            active.run.heard(now.instant);
            if let Some(ladder) = &mut active.ladder {
                // Its last signal may have been lost with the connection.
                ladder.repeat(now.instant);
            }
        }
        if self.restart_is_pending() {
            // It was asked for, and perhaps never heard of. What runs ends by it.
            self.restart_kernel(now);
        } else if self.active.as_ref().is_some_and(|active| active.unsure) {
            self.submit_again(now);
        } else if state == KernelState::Ready && self.active.is_none() {
            self.restart_of = None;
            self.become_idle(now);
        }
        // Behind the run: else its answer would say nothing of it.
        self.ask_whether_done();
    }

    /// An earlier server may have been cut off before the run reached the agent, which knows the request if it has ever seen
    /// it, and runs it at most once.
    fn submit_again(&mut self, now: Now) {
        let Some(active) = &mut self.active else { return };
        active.unsure = false;
        let (id, number, is_stopping) = (active.run.id().clone(), active.number, active.run.is_stopping());
        let source = active.source.clone();
        self.start_deadline = None;
        self.set_state(now, if is_stopping { SessionState::Interrupting } else { SessionState::Busy });
        if let Some(cell) = self.cells.get(number) {
            let message = self.request(&id, cell, source.as_deref().unwrap_or(&cell.source));
            self.effects.push(Effect::Submit { run: id, generation: self.generation, message });
        }
    }

    pub(super) fn kernel_ready(&mut self, now: Now, info: &str) {
        if self.restart_is_pending() {
            // That is the one to be replaced.
            return;
        }
        let info = wire_json::parse_lenient(info.as_bytes()).unwrap_or(Value::Null);
        // After a restart it mostly says the same.
        if *self.info != info {
            self.info = Arc::new(info);
        }
        self.start_deadline = None;
        self.restart_of = None;
        if self.active.is_none() {
            self.become_idle(now);
        }
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
