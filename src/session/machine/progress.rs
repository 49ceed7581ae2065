//! The progress of one execution: what the kernel's messages mean for it, and when it has ended.
//!
//! An execution has ended when its `execute_reply` *and* the iopub `idle` with the same parent were seen, in either order. Kernels
//! in the field break this rule: an aborted request has no `idle` (IRkernel), and an `idle` can be late or missing. So a reply
//! without an `idle` ends the execution after [`IDLE_GRACE`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::context::Context;
use crate::agent_protocol::{ExecutionUsage, KernelExit};
use crate::ids::ExecutionId;
use crate::session::execution::{
    ExecutionResult, ExecutionStatus, StopReason, death_error, error_info, memory_error, with_lost_state,
};
use crate::wire::content::{self, ErrorInfo, ExecutionState, ReplyStatus};
use crate::wire::{Channel, Header};

/// How long an `idle` is awaited after the reply and after the last message; nbclient waits as long.
const IDLE_GRACE: Duration = Duration::from_secs(4);
/// Upper bound of that wait, counted from the reply: a thread of the cell may print for ever.
const MAX_IDLE_WAIT: Duration = Duration::from_secs(60);

/// Messages of one execution, folded into its state.
#[derive(Debug)]
pub(super) struct Progress {
    journaled: JournaledProgress,
    /// When the request was handed to the kernel.
    started: Instant,
    last_message: Instant,
    replied_at: Option<Instant>,
}

/// The part of [`Progress`] that is journaled, so that a later server can go on from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct JournaledProgress {
    id: ExecutionId,
    started_at: SystemTime,
    reply: Option<ReplyStatus>,
    idle: bool,
    error: Option<ErrorInfo>,
    execution_count: Option<i64>,
    timing: BTreeMap<String, String>,
    stop: Option<StopReason>,
    used: Option<ExecutionUsage>,
}

/// What a message is to the execution that it belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Output,
    /// The code asks for input.
    InputRequest,
    /// Nothing that a client sees.
    Internal,
}

impl Progress {
    pub fn new(id: ExecutionId, cx: Context) -> Self {
        let journaled = JournaledProgress {
            id,
            started_at: cx.time,
            reply: None,
            idle: false,
            error: None,
            execution_count: None,
            timing: BTreeMap::new(),
            stop: None,
            used: None,
        };
        Self { journaled, started: cx.instant, last_message: cx.instant, replied_at: None }
    }

    pub fn restore(journaled: JournaledProgress, cx: Context) -> Self {
        let elapsed = cx.time.duration_since(journaled.started_at).unwrap_or_default();
        let started = cx.instant.checked_sub(elapsed).unwrap_or(cx.instant);
        let replied_at = journaled.reply.is_some().then_some(cx.instant);
        Self { journaled, started, last_message: cx.instant, replied_at }
    }

    pub fn to_journal(&self) -> &JournaledProgress {
        &self.journaled
    }

    /// The `msg_id` of the `execute_request`.
    pub fn id(&self) -> &ExecutionId {
        &self.journaled.id
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    /// The link has caught up just now: silence before it says nothing about the kernel.
    pub fn restart_silence(&mut self, now: Instant) {
        self.last_message = now;
    }

    /// Takes in a message whose parent is this execution.
    pub fn take(&mut self, channel: Channel, header: &Header, content: impl FnOnce() -> Value, cx: Context) -> Meaning {
        self.last_message = cx.instant;
        match (channel, header.msg_type.as_str()) {
            (Channel::Iopub, "status") => match content::execution_state(&content()) {
                ExecutionState::Busy => self.record_time("iopub.status.busy", header, cx),
                ExecutionState::Idle => {
                    self.journaled.idle = true;
                    self.record_time("iopub.status.idle", header, cx);
                }
                _ => {}
            },
            (Channel::Iopub, "execute_input") => {
                self.journaled.execution_count = content::execution_count(&content()).or(self.journaled.execution_count);
                self.record_time("iopub.execute_input", header, cx);
            }
            (Channel::Iopub, "error") => {
                self.journaled.error = Some(ErrorInfo::read(&content()));
                return Meaning::Output;
            }
            (Channel::Iopub, _) => return Meaning::Output,
            (Channel::Stdin, "input_request") => return Meaning::InputRequest,
            (Channel::Shell, "execute_reply") => {
                let content = content();
                self.take_reply(&content, header, cx);
                if content::has_payload(&content) {
                    // Help and the like come in the reply; the fold makes an output of it.
                    return Meaning::Output;
                }
            }
            _ => {}
        }
        Meaning::Internal
    }

    fn take_reply(&mut self, content: &Value, header: &Header, cx: Context) {
        self.journaled.execution_count = content::execution_count(content).or(self.journaled.execution_count);
        self.journaled.reply = Some(content::reply_status(content));
        self.replied_at = Some(cx.instant);
        self.record_time("shell.execute_reply", header, cx);
    }

    fn record_time(&mut self, what: &str, header: &Header, cx: Context) {
        let date = if header.date.is_empty() { content::iso8601(cx.time) } else { header.date.clone() };
        self.journaled.timing.insert(what.to_owned(), date);
    }

    /// The kernel answers later requests but no reply was seen: the reply was among events that were lost.
    pub fn assume_reply_lost(&mut self, now: Instant) {
        if self.journaled.reply.is_none() {
            let error = error_info(
                "EndLost",
                "the end of the cell was lost with output that the sandbox could not hold; the kernel is ready again"
                    .to_owned(),
            );
            self.journaled.error = Some(error.clone());
            self.journaled.reply = Some(ReplyStatus::Error(error));
            self.replied_at = Some(now);
        }
        self.journaled.idle = true;
    }

    pub fn set_usage(&mut self, used: ExecutionUsage) {
        self.journaled.used = Some(used);
    }

    /// Records why the execution is being stopped. The first reason stands.
    pub fn stop(&mut self, reason: StopReason) {
        self.journaled.stop.get_or_insert(reason);
    }

    pub fn is_stopping(&self) -> bool {
        self.journaled.stop.is_some()
    }

    /// When the execution has ended if no further message comes; `None` before its reply. With `idle` that is at once, without it
    /// when the wait for it is given up.
    pub fn ends_at(&self) -> Option<Instant> {
        let (reply, at) = (self.journaled.reply.as_ref()?, self.replied_at?);
        let is_complete = self.journaled.idle || *reply == ReplyStatus::Aborted;
        // Messages that still come show that the idle is queued behind them: a hundred megabytes take their time.
        let give_up = (at.max(self.last_message) + IDLE_GRACE).min(at + MAX_IDLE_WAIT);
        Some(if is_complete { self.last_message } else { give_up })
    }

    /// The result, if the messages seen so far end the execution.
    pub fn finished(&self, now: Instant) -> Option<ExecutionResult> {
        self.ends_at().filter(|at| *at <= now)?;
        let (status, error) = self.outcome()?;
        Some(self.result(status, error, now, false))
    }

    /// Status and error, if the reply was seen.
    fn outcome(&self) -> Option<(ExecutionStatus, Option<ErrorInfo>)> {
        // Limits and interrupts are ours to report even where the code then ended by itself.
        Some(match (self.journaled.reply.as_ref()?, self.journaled.stop) {
            (_, Some(stop)) => (stop.status(), Some(stop.error())),
            (ReplyStatus::Ok, None) => (ExecutionStatus::Ok, None),
            (ReplyStatus::Error(error), None) => {
                (ExecutionStatus::Error, Some(self.journaled.error.clone().unwrap_or_else(|| error.clone())))
            }
            (ReplyStatus::Aborted, None) => (ExecutionStatus::Cancelled, None),
        })
    }

    /// The result when the kernel process has ended.
    pub fn kernel_died(&self, exit: &KernelExit, memory_mb: u64, now: Instant) -> ExecutionResult {
        // The execution had ended before; only its idle was awaited.
        if let Some((status, error)) = self.outcome() {
            return self.result(status, error, now, true);
        }
        let (status, error, why) = match self.journaled.stop {
            Some(stop) => (stop.status(), stop.error(), ". It ignored the interrupt, so the kernel was killed"),
            None if exit.out_of_memory => (ExecutionStatus::MemoryExceeded, memory_error(memory_mb), ""),
            None => (ExecutionStatus::KernelDied, death_error(exit), ""),
        };
        self.result(status, Some(with_lost_state(&error, why)), now, true)
    }

    /// The result when the whole sandbox is gone.
    pub fn sandbox_gone(&self, why: &str, now: Instant) -> ExecutionResult {
        if let Some((status, error)) = self.outcome() {
            return self.result(status, error, now, true);
        }
        let error = error_info("SandboxGone", format!("the sandbox ended under the running cell: {why}"));
        self.result(ExecutionStatus::KernelDied, Some(with_lost_state(&error, "")), now, true)
    }

    /// The result when the agent did not take the request.
    pub fn rejected(&self, reason: &str, now: Instant) -> ExecutionResult {
        self.result(ExecutionStatus::KernelDied, Some(error_info("NotRun", reason.to_owned())), now, true)
    }

    fn result(&self, status: ExecutionStatus, error: Option<ErrorInfo>, now: Instant, kernel_gone: bool) -> ExecutionResult {
        ExecutionResult {
            status,
            execution_count: self.journaled.execution_count,
            error,
            started_at: self.journaled.started_at,
            wall: now.duration_since(self.started),
            timing: self.journaled.timing.clone(),
            kernel_gone,
            used: self.journaled.used,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn header(msg_type: &str) -> Header {
        Header { msg_type: msg_type.to_owned(), ..Header::default() }
    }

    fn context(instant: Instant) -> Context {
        Context { instant, time: SystemTime::UNIX_EPOCH, make_uuid: crate::ids::random_uuid }
    }

    fn run() -> (Progress, Instant) {
        let now = Instant::now();
        (Progress::new(ExecutionId("run".to_owned()), context(now)), now)
    }

    fn idle(run: &mut Progress, now: Instant) {
        run.take(Channel::Iopub, &header("status"), || json!({"execution_state": "idle"}), context(now));
    }

    fn reply(run: &mut Progress, content: Value, now: Instant) {
        run.take(Channel::Shell, &header("execute_reply"), || content, context(now));
    }

    #[test]
    fn reply_and_idle_in_either_order_end_it() {
        for idle_first in [true, false] {
            let (mut run, now) = run();
            if idle_first {
                idle(&mut run, now);
                assert!(run.finished(now).is_none());
            }
            reply(&mut run, json!({"status": "ok", "execution_count": 3}), now);
            if !idle_first {
                assert!(run.finished(now).is_none());
                idle(&mut run, now);
            }
            let result = run.finished(now).unwrap();
            assert_eq!((result.status, result.execution_count), (ExecutionStatus::Ok, Some(3)));
        }
    }

    #[test]
    fn missing_idle_is_given_up_after_grace() {
        let (mut run, now) = run();
        reply(&mut run, json!({}), now);
        assert!(run.finished(now + IDLE_GRACE / 2).is_none());
        assert_eq!(run.finished(now + IDLE_GRACE).unwrap().status, ExecutionStatus::Ok);
    }

    #[test]
    fn messages_after_the_reply_extend_the_wait() {
        let (mut run, now) = run();
        reply(&mut run, json!({}), now);
        for seconds in 1..100 {
            let then = now + Duration::from_secs(seconds);
            run.take(Channel::Iopub, &header("stream"), || json!({}), context(then));
            assert_eq!(run.finished(then).is_some(), then >= now + MAX_IDLE_WAIT, "{seconds}");
            assert_eq!(
                run.finished(then + IDLE_GRACE / 2).is_some(),
                then + IDLE_GRACE / 2 >= now + MAX_IDLE_WAIT,
                "{seconds}"
            );
            assert!(run.finished(then + IDLE_GRACE).is_some());
        }
    }

    #[test]
    fn lost_reply_ends_it_with_end_lost() {
        let (mut run, now) = run();
        run.assume_reply_lost(now);
        let result = run.finished(now).unwrap();
        assert_eq!((result.status, result.error.unwrap().ename.as_str()), (ExecutionStatus::Error, "EndLost"));
        let (mut run, now) = self::run();
        reply(&mut run, json!({"status": "ok"}), now);
        run.assume_reply_lost(now);
        assert_eq!(run.finished(now).unwrap().status, ExecutionStatus::Ok, "only its idle was lost");
    }

    #[test]
    fn aborted_reply_needs_no_idle() {
        let (mut run, now) = run();
        reply(&mut run, json!({"status": "aborted"}), now);
        assert_eq!(run.finished(now).unwrap().status, ExecutionStatus::Cancelled);
    }

    #[test]
    fn recorded_stop_reason_wins_over_the_reply() {
        let (mut run, now) = run();
        run.stop(StopReason::Timeout(Duration::from_secs(1)));
        run.stop(StopReason::Interrupt);
        reply(&mut run, json!({"status": "error", "ename": "KeyboardInterrupt"}), now);
        idle(&mut run, now);
        assert_eq!(run.finished(now).unwrap().status, ExecutionStatus::Timeout);
        let exit = KernelExit { code: None, signal: Some(9), out_of_memory: false, reason: None, start_log: String::new() };
        assert_eq!(run.kernel_died(&exit, 512, now).status, ExecutionStatus::Timeout);
    }

    #[test]
    fn kernel_death_names_signal_and_memory() {
        let (run, now) = run();
        let mut exit =
            KernelExit { code: None, signal: Some(11), out_of_memory: false, reason: None, start_log: "oops".into() };
        let result = run.kernel_died(&exit, 512, now);
        assert_eq!(result.status, ExecutionStatus::KernelDied);
        let evalue = result.error.unwrap().evalue;
        assert!(evalue.contains("SIGSEGV") && !evalue.contains("oops"), "{evalue}");
        exit.out_of_memory = true;
        assert_eq!(run.kernel_died(&exit, 512, now).status, ExecutionStatus::MemoryExceeded);
    }
}
