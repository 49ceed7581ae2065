//! What a run's messages mean. Pure: messages in, meaning out.
//!
//! A run has ended when its `execute_reply` *and* the iopub `idle` of the same parent were seen, in whichever order. Kernels
//! in the field break this: an aborted request has no `idle` (IRkernel), and an `idle` can be late or missing, so a reply
//! without one ends the run after [`IDLE_GRACE`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::agent_protocol::{KernelExit, RunUsage};
use crate::ids::RunId;
use crate::wire::content::{self, ErrorInfo, ExecutionState, ReplyStatus};
use crate::wire::{Channel, Header};

/// How long after the reply, and after the last that came, an `idle` is waited for; nbclient waits as long.
const IDLE_GRACE: Duration = Duration::from_secs(4);
/// How long at most: a thread of the cell may go on printing for ever.
const IDLE_AT_LAST: Duration = Duration::from_secs(60);

/// The time, on both clocks: one for waiting, one for telling.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub instant: Instant,
    pub time: SystemTime,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Without an error.
    Ok,
    /// The code raised one.
    Error,
    /// It was interrupted.
    Interrupted,
    /// Its time was up.
    Timeout,
    /// The session's memory was.
    MemoryExceeded,
    /// It produced more output than it may.
    OutputExceeded,
    /// The kernel died under it.
    KernelDied,
    /// It was taken out of the queue before it began.
    Cancelled,
}

impl RunStatus {
    /// The name in the contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Interrupted => "interrupted",
            Self::Timeout => "timeout",
            Self::MemoryExceeded => "memory_exceeded",
            Self::OutputExceeded => "output_exceeded",
            Self::KernelDied => "kernel_died",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the kernel that ran it is gone.
    pub fn kernel_is_gone(self) -> bool {
        matches!(self, Self::KernelDied | Self::MemoryExceeded)
    }
}

/// A run's end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// How it ended.
    pub status: RunStatus,
    /// The kernel's counter.
    pub execution_count: Option<i64>,
    /// The error, where there was one; for a death or a limit, ours.
    pub error: Option<ErrorInfo>,
    /// When the request was handed to the kernel.
    pub started_at: SystemTime,
    /// How long it took.
    pub wall: Duration,
    /// Times of the run's messages, as nbclient records them in `metadata.execution`.
    pub timing: BTreeMap<String, String>,
    /// Whether the kernel has ended, whatever the status: an escalated interrupt also ends it.
    pub kernel_gone: bool,
    /// What it has used. None where the kernel ended under it.
    pub used: Option<RunUsage>,
}

impl RunResult {
    /// The error as an output of nbformat, where the kernel could not tell it itself: it was stopped, or dead.
    pub fn untold_error(&self) -> Option<Value> {
        let is_told = matches!(self.status, RunStatus::Ok | RunStatus::Error | RunStatus::Interrupted);
        let ErrorInfo { ename, evalue, traceback } = self.error.as_ref().filter(|_| !is_told)?;
        Some(json!({"output_type": "error", "ename": ename, "evalue": evalue, "traceback": traceback}))
    }

    /// The end of a run that the kernel was never given, or of which nothing is known.
    pub(super) fn without_run(status: RunStatus, why: &str, now: SystemTime) -> Self {
        Self {
            status,
            execution_count: None,
            error: Some(error_info("NotRun", why.to_owned())),
            started_at: now,
            wall: Duration::ZERO,
            timing: BTreeMap::new(),
            kernel_gone: false,
            used: None,
        }
    }
}

/// The figures of a run as the contract names them.
pub fn metrics(result: &RunResult) -> Value {
    let mut metrics = serde_json::json!({"wall_ms": result.wall.as_secs_f64() * 1000.0});
    if let Some(used) = &result.used {
        metrics["cpu_ms"] = (used.cpu_seconds * 1000.0).into();
        metrics["peak_memory_bytes"] = used.peak_memory_bytes.into();
    }
    metrics
}

/// Why we stopped a run, recorded before the first signal is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum StopReason {
    Interrupt,
    Timeout(Duration),
    OutputExceeded(u64),
}

/// The run that the kernel works on.
#[derive(Debug)]
pub(super) struct ActiveRun {
    /// What is known of it; all that is written down.
    facts: RunFacts,
    started: Instant,
    /// How long iopub must have been quiet after the reply. Deno sends output, even results, after its `idle`.
    late_output: Duration,
    last_message: Instant,
    replied_at: Option<Instant>,
}

/// What is known of a run that has not ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RunFacts {
    id: RunId,
    started_at: SystemTime,
    reply: Option<ReplyStatus>,
    idle: bool,
    error: Option<ErrorInfo>,
    execution_count: Option<i64>,
    timing: BTreeMap<String, String>,
    stop: Option<StopReason>,
    used: Option<RunUsage>,
}

/// What a message is to the run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// An output, to be passed on.
    Output,
    /// A question to the user.
    Input,
    /// Only the run's own business.
    Internal,
}

impl ActiveRun {
    pub fn new(id: RunId, late_output: Duration, now: Now) -> Self {
        let facts = RunFacts {
            id,
            started_at: now.time,
            reply: None,
            idle: false,
            error: None,
            execution_count: None,
            timing: BTreeMap::new(),
            stop: None,
            used: None,
        };
        Self { facts, started: now.instant, late_output, last_message: now.instant, replied_at: None }
    }

    /// A run as it was written down by an earlier server.
    pub fn restore(facts: RunFacts, late_output: Duration, now: Now) -> Self {
        let since = now.time.duration_since(facts.started_at).unwrap_or_default();
        let started = now.instant.checked_sub(since).unwrap_or(now.instant);
        let replied_at = facts.reply.is_some().then_some(now.instant);
        Self { facts, started, late_output, last_message: now.instant, replied_at }
    }

    /// What is to be written down of it.
    pub fn facts(&self) -> &RunFacts {
        &self.facts
    }

    /// The `msg_id` of its request.
    pub fn id(&self) -> &RunId {
        &self.facts.id
    }

    /// When it was handed to the kernel.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Nobody has listened until now: that nothing came says nothing.
    pub fn heard(&mut self, now: Instant) {
        self.last_message = now;
    }

    /// Takes a message whose parent is this run.
    pub fn take(&mut self, channel: Channel, header: &Header, content: impl FnOnce() -> Value, now: Instant) -> Meaning {
        self.last_message = now;
        match (channel, header.msg_type.as_str()) {
            (Channel::Iopub, "status") => match content::execution_state(&content()) {
                ExecutionState::Busy => self.note("iopub.status.busy", header),
                ExecutionState::Idle => {
                    self.facts.idle = true;
                    self.note("iopub.status.idle", header);
                }
                _ => {}
            },
            (Channel::Iopub, "execute_input") => {
                self.facts.execution_count = content::execution_count(&content()).or(self.facts.execution_count);
                self.note("iopub.execute_input", header);
            }
            (Channel::Iopub, "error") => {
                self.facts.error = Some(ErrorInfo::read(&content()));
                return Meaning::Output;
            }
            (Channel::Iopub, _) => return Meaning::Output,
            (Channel::Stdin, "input_request") => return Meaning::Input,
            (Channel::Shell, "execute_reply") => {
                let content = content();
                self.facts.execution_count = content::execution_count(&content).or(self.facts.execution_count);
                self.facts.reply = Some(content::reply_status(&content));
                self.replied_at = Some(now);
                self.note("shell.execute_reply", header);
                if content::has_payload(&content) {
                    // Help and the like, which kernels send in the reply: the fold makes an output of it.
                    return Meaning::Output;
                }
            }
            _ => {}
        }
        Meaning::Internal
    }

    /// The kernel has gone on to later requests, and no reply was seen: it was among events that were lost.
    pub fn reply_lost(&mut self, now: Instant) {
        if self.facts.reply.is_none() {
            let error = error_info(
                "EndLost",
                "the end of the cell was lost with output that the sandbox could not hold; the kernel is ready again"
                    .to_owned(),
            );
            self.facts.error = Some(error.clone());
            self.facts.reply = Some(ReplyStatus::Error(error));
            self.replied_at = Some(now);
        }
        self.facts.idle = true;
    }

    fn note(&mut self, what: &str, header: &Header) {
        let date = if header.date.is_empty() { content::now_iso8601() } else { header.date.clone() };
        self.facts.timing.insert(what.to_owned(), date);
    }

    /// What it has used.
    pub fn used(&mut self, used: RunUsage) {
        self.facts.used = Some(used);
    }

    /// Records why the run is being stopped; the first reason stands.
    pub fn stop(&mut self, reason: StopReason) {
        self.facts.stop.get_or_insert(reason);
    }

    /// Whether somebody is stopping it.
    pub fn is_stopping(&self) -> bool {
        self.facts.stop.is_some()
    }

    /// When a run whose reply was seen has ended, if nothing more comes: at once after its `idle`, else when that is given up.
    pub fn deadline(&self) -> Option<Instant> {
        let (reply, at) = (self.facts.reply.as_ref()?, self.replied_at?);
        let quiet = self.last_message + self.late_output;
        let is_all = self.facts.idle || *reply == ReplyStatus::Aborted;
        // What still comes shows that its idle is behind it: a hundred megabytes take their time.
        let given_up = (at.max(self.last_message) + IDLE_GRACE).min(at + IDLE_AT_LAST);
        Some(if is_all { quiet } else { quiet.max(given_up) })
    }

    /// The result, if the messages seen so far end the run.
    pub fn finished(&self, now: Instant) -> Option<RunResult> {
        self.deadline().filter(|at| *at <= now)?;
        let (status, error) = self.outcome()?;
        Some(self.result(status, error, now, false))
    }

    /// How it ended, if its reply was seen.
    fn outcome(&self) -> Option<(RunStatus, Option<ErrorInfo>)> {
        // Output and time limits are ours to report even where the code then ended by itself.
        Some(match (self.facts.reply.as_ref()?, self.facts.stop) {
            (_, Some(stop)) => (stop.status(), Some(stop.error())),
            (ReplyStatus::Ok, None) => (RunStatus::Ok, None),
            (ReplyStatus::Error(error), None) => {
                (RunStatus::Error, Some(self.facts.error.clone().unwrap_or_else(|| error.clone())))
            }
            (ReplyStatus::Aborted, None) => (RunStatus::Cancelled, None),
        })
    }

    /// The result after the kernel's end.
    pub fn died(&self, exit: &KernelExit, memory_mb: u64, now: Instant) -> RunResult {
        // It had ended before; only what might still have come of it was waited for.
        if let Some((status, error)) = self.outcome() {
            return self.result(status, error, now, true);
        }
        let (status, error) = match self.facts.stop {
            Some(stop) => (stop.status(), stop.error()),
            None if exit.out_of_memory => (RunStatus::MemoryExceeded, memory_error(memory_mb)),
            None => (RunStatus::KernelDied, death_error(exit)),
        };
        self.result(status, Some(error), now, true)
    }

    /// The result when the whole sandbox is gone.
    pub fn sandbox_gone(&self, why: &str, now: Instant) -> RunResult {
        if let Some((status, error)) = self.outcome() {
            return self.result(status, error, now, true);
        }
        let error = error_info("SandboxGone", format!("the sandbox ended under the running cell: {why}"));
        self.result(RunStatus::KernelDied, Some(error), now, true)
    }

    /// The result when the kernel would not take the request.
    pub fn refused(&self, reason: &str, now: Instant) -> RunResult {
        self.result(RunStatus::KernelDied, Some(error_info("NotRun", reason.to_owned())), now, true)
    }

    fn result(&self, status: RunStatus, error: Option<ErrorInfo>, now: Instant, kernel_gone: bool) -> RunResult {
        RunResult {
            status,
            execution_count: self.facts.execution_count,
            error,
            started_at: self.facts.started_at,
            wall: now.duration_since(self.started),
            timing: self.facts.timing.clone(),
            kernel_gone,
            used: self.facts.used,
        }
    }
}

impl StopReason {
    fn status(self) -> RunStatus {
        match self {
            Self::Interrupt => RunStatus::Interrupted,
            Self::Timeout(_) => RunStatus::Timeout,
            Self::OutputExceeded(_) => RunStatus::OutputExceeded,
        }
    }

    fn error(self) -> ErrorInfo {
        match self {
            Self::Interrupt => error_info("Interrupted", "the cell was interrupted".to_owned()),
            Self::Timeout(after) => {
                error_info("CellTimeout", format!("the cell was stopped after its time limit of {} s", after.as_secs_f64()))
            }
            Self::OutputExceeded(limit) => error_info(
                "OutputExceeded",
                format!("the cell was stopped after {} MB of output, its limit; what came until then is kept", limit >> 20),
            ),
        }
    }
}

fn error_info(ename: &str, evalue: String) -> ErrorInfo {
    ErrorInfo { ename: ename.to_owned(), traceback: vec![format!("{ename}: {evalue}")], evalue }
}

fn memory_error(memory_mb: u64) -> ErrorInfo {
    error_info(
        "OutOfMemory",
        format!("the kernel was killed: the session used up its {memory_mb} MB of memory (--memory gives more)"),
    )
}

fn death_error(exit: &KernelExit) -> ErrorInfo {
    let how = match (exit.signal, exit.code) {
        (Some(signal), _) => format!("by signal {signal}{}", signal_name(signal)),
        (None, Some(code)) => format!("with exit code {code}"),
        (None, None) => "in an unknown way".to_owned(),
    };
    let last_words =
        if exit.last_words.is_empty() { String::new() } else { format!("; its last words: {}", exit.last_words) };
    error_info("KernelDied", format!("the kernel process ended {how} while the cell ran{last_words}"))
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV: a crash in native code)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn header(msg_type: &str) -> Header {
        Header { msg_type: msg_type.to_owned(), ..Header::default() }
    }

    fn run() -> (ActiveRun, Instant) {
        let now = Instant::now();
        (ActiveRun::new(RunId("run".to_owned()), Duration::ZERO, Now { instant: now, time: SystemTime::now() }), now)
    }

    fn idle(run: &mut ActiveRun, now: Instant) {
        run.take(Channel::Iopub, &header("status"), || json!({"execution_state": "idle"}), now);
    }

    fn reply(run: &mut ActiveRun, content: Value, now: Instant) {
        run.take(Channel::Shell, &header("execute_reply"), || content, now);
    }

    #[test]
    fn reply_and_idle_in_either_order_end_a_run() {
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
            assert_eq!((result.status, result.execution_count), (RunStatus::Ok, Some(3)));
        }
    }

    #[test]
    fn an_idle_that_never_comes_is_given_up() {
        let (mut run, now) = run();
        reply(&mut run, json!({}), now);
        assert!(run.finished(now + IDLE_GRACE / 2).is_none());
        assert_eq!(run.finished(now + IDLE_GRACE).unwrap().status, RunStatus::Ok);
    }

    #[test]
    fn what_still_comes_after_the_reply_is_waited_for() {
        let (mut run, now) = run();
        reply(&mut run, json!({}), now);
        for seconds in 1..100 {
            let then = now + Duration::from_secs(seconds);
            run.take(Channel::Iopub, &header("stream"), || json!({}), then);
            assert_eq!(run.finished(then).is_some(), then >= now + IDLE_AT_LAST, "{seconds}");
            assert_eq!(
                run.finished(then + IDLE_GRACE / 2).is_some(),
                then + IDLE_GRACE / 2 >= now + IDLE_AT_LAST,
                "{seconds}"
            );
            assert!(run.finished(then + IDLE_GRACE).is_some());
        }
    }

    #[test]
    fn output_after_idle_still_belongs_to_the_run() {
        let now = Instant::now();
        let late = Duration::from_millis(150);
        let mut run = ActiveRun::new(RunId("run".to_owned()), late, Now { instant: now, time: SystemTime::now() });
        reply(&mut run, json!({"status": "ok"}), now);
        idle(&mut run, now);
        assert!(run.finished(now).is_none());
        let meaning = run.take(Channel::Iopub, &header("stream"), || json!({}), now + late / 2);
        assert_eq!(meaning, Meaning::Output);
        assert!(run.finished(now + late).is_none());
        assert!(run.finished(now + late / 2 + late).is_some());
    }

    #[test]
    fn a_reply_that_was_lost_ends_the_run_by_name() {
        let (mut run, now) = run();
        run.reply_lost(now);
        let result = run.finished(now).unwrap();
        assert_eq!((result.status, result.error.unwrap().ename.as_str()), (RunStatus::Error, "EndLost"));
        let (mut run, now) = self::run();
        reply(&mut run, json!({"status": "ok"}), now);
        run.reply_lost(now);
        assert_eq!(run.finished(now).unwrap().status, RunStatus::Ok, "only its idle was lost");
    }

    #[test]
    fn aborted_needs_no_idle() {
        let (mut run, now) = run();
        reply(&mut run, json!({"status": "aborted"}), now);
        assert_eq!(run.finished(now).unwrap().status, RunStatus::Cancelled);
    }

    #[test]
    fn the_reason_we_recorded_wins_over_what_the_kernel_says() {
        let (mut run, now) = run();
        run.stop(StopReason::Timeout(Duration::from_secs(1)));
        run.stop(StopReason::Interrupt);
        reply(&mut run, json!({"status": "error", "ename": "KeyboardInterrupt"}), now);
        idle(&mut run, now);
        assert_eq!(run.finished(now).unwrap().status, RunStatus::Timeout);
        let exit = KernelExit { code: None, signal: Some(9), out_of_memory: false, reason: None, last_words: String::new() };
        assert_eq!(run.died(&exit, 512, now).status, RunStatus::Timeout);
    }

    #[test]
    fn deaths_say_how() {
        let (run, now) = run();
        let mut exit =
            KernelExit { code: None, signal: Some(11), out_of_memory: false, reason: None, last_words: "oops".into() };
        let result = run.died(&exit, 512, now);
        assert_eq!(result.status, RunStatus::KernelDied);
        let evalue = result.error.unwrap().evalue;
        assert!(evalue.contains("SIGSEGV") && evalue.contains("oops"), "{evalue}");
        exit.out_of_memory = true;
        assert_eq!(run.died(&exit, 512, now).status, RunStatus::MemoryExceeded);
    }
}
