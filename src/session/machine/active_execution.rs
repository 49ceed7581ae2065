//! The execution that the kernel works on, with everything that is known of it besides its messages.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::context::Context;
use super::interrupt_escalation::{InterruptEscalation, Step};
use super::progress::{JournaledProgress, Progress};
use crate::ids::{CellNumber, ExecutionId};

/// After a server's start the agent replays what happened meanwhile. Until this has passed, an execution is not stopped at its
/// time limit: it may have ended in time while no server was there.
const REPLAY_GRACE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct ActiveExecution {
    pub number: CellNumber,
    pub progress: Progress,
    /// Bytes of output so far. The agent counts too and stops first, unless a tenant has taken it over.
    pub output_bytes: u64,
    pub timeout: Option<Duration>,
    escalation: Option<InterruptEscalation>,
    input: Option<InputRequest>,
    /// The source that the kernel was given, where the cell's was edited since.
    source: Option<String>,
    /// Whether the request may not have reached the agent: an earlier server was cut off.
    pub is_unconfirmed: bool,
    /// End of [`REPLAY_GRACE`].
    grace_until: Option<Instant>,
}

/// A question of the code to the user.
#[derive(Debug)]
struct InputRequest {
    /// Raw JSON of its header, which the answer must name as its parent.
    header: Bytes,
    is_answered: bool,
}

/// The part of [`ActiveExecution`] that is journaled.
#[derive(Serialize, Deserialize)]
pub(super) struct JournaledExecution {
    number: CellNumber,
    progress: JournaledProgress,
    output_bytes: u64,
    timeout: Option<Duration>,
    /// Raw JSON of the header of an input request.
    input: Option<String>,
    source: Option<String>,
}

impl ActiveExecution {
    pub fn new(number: CellNumber, progress: Progress, timeout: Option<Duration>) -> Self {
        Self {
            number,
            progress,
            output_bytes: 0,
            timeout,
            escalation: None,
            input: None,
            source: None,
            is_unconfirmed: false,
            grace_until: None,
        }
    }

    pub fn restore(stored: JournaledExecution, cx: Context) -> Self {
        let progress = Progress::restore(stored.progress, cx);
        // An escalation that was under way begins again.
        let escalation = progress.is_stopping().then(|| InterruptEscalation::new(cx.instant));
        let JournaledExecution { number, output_bytes, timeout, source, .. } = stored;
        let input = stored.input.map(|header| InputRequest { header: header.into(), is_answered: false });
        let grace_until = Some(cx.instant + REPLAY_GRACE);
        Self { number, progress, output_bytes, timeout, escalation, input, source, is_unconfirmed: true, grace_until }
    }

    pub fn to_journal(&self) -> JournaledExecution {
        JournaledExecution {
            number: self.number,
            progress: self.progress.to_journal().clone(),
            output_bytes: self.output_bytes,
            timeout: self.timeout,
            input: self.input.as_ref().map(|input| String::from_utf8_lossy(&input.header).into_owned()),
            source: self.source.clone(),
        }
    }

    /// The `msg_id` of the `execute_request`.
    pub fn id(&self) -> &ExecutionId {
        self.progress.id()
    }

    /// The source that the kernel was given, given what the cell holds now.
    pub fn submitted_source<'a>(&'a self, current: &'a str) -> &'a str {
        self.source.as_deref().unwrap_or(current)
    }

    /// The cell is edited while it runs: a later server may have to submit the former source again.
    pub fn keep_source(&mut self, former: String) {
        self.source.get_or_insert(former);
    }

    /// When the time limit is reached. `None` once the reply was seen: late output does not count as the cell's time.
    pub fn times_out_at(&self) -> Option<Instant> {
        let limit = self.timeout.filter(|_| !self.progress.is_stopping() && self.progress.ends_at().is_none())?;
        let at = self.progress.started().checked_add(limit)?;
        Some(self.grace_until.map_or(at, |grace| at.max(grace)))
    }

    // ---- interrupts ---------------------------------------------------------------------------------------------------

    pub fn begin_escalation(&mut self, cx: Context) {
        self.escalation.get_or_insert_with(|| InterruptEscalation::new(cx.instant));
    }

    pub fn skip_to_kill(&mut self, cx: Context) {
        if let Some(escalation) = &mut self.escalation {
            escalation.skip_to_kill(cx.instant);
        }
    }

    /// The link has caught up after a cut, which may have lost the last signal.
    pub fn resume_after_cut(&mut self, cx: Context) {
        self.progress.restart_silence(cx.instant);
        if let Some(escalation) = &mut self.escalation {
            escalation.repeat(cx.instant);
        }
    }

    pub fn next_step_at(&self) -> Option<Instant> {
        self.escalation.as_ref().and_then(InterruptEscalation::deadline)
    }

    pub fn take_due_step(&mut self, cx: Context) -> Option<Step> {
        self.escalation.as_mut().and_then(|escalation| escalation.take_due(cx.instant))
    }

    // ---- input --------------------------------------------------------------------------------------------------------

    /// The code asks for input; `header` is the raw header of its `input_request`.
    pub fn await_input(&mut self, header: Bytes) {
        self.input = Some(InputRequest { header, is_answered: false });
    }

    /// Marks the open question as answered and returns its header. The journal keeps the question, because an answer on its way to
    /// the agent is lost with the server.
    pub fn answer_input(&mut self) -> Option<Bytes> {
        let input = self.input.as_mut().filter(|input| !input.is_answered)?;
        input.is_answered = true;
        Some(input.header.clone())
    }

    /// The answer did not reach the agent, so the question is open again.
    pub fn reopen_input(&mut self) {
        if let Some(input) = &mut self.input {
            input.is_answered = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::REPLAY_GRACE;
    use crate::session::machine::bench::Bench;
    use crate::session::{ExecutionOptions, ExecutionStatus, NewCell};
    use crate::wire::Channel;

    /// A running cell with a time limit of ten seconds, and its execution id.
    fn begun() -> (Bench, String) {
        let mut bench = Bench::ready();
        let options = ExecutionOptions { timeout_seconds: Some(10.0), ..ExecutionOptions::default() };
        let cell = NewCell { id: Some("a".to_owned()), run: true, options, ..NewCell::default() };
        bench.machine.add_cell(bench.cx, cell, None).unwrap();
        let run = bench.cell("a").execution.id.clone().unwrap().0;
        (bench, run)
    }

    fn wait(bench: &mut Bench, seconds: u64) {
        bench.cx.instant += Duration::from_secs(seconds);
        bench.cx.time += Duration::from_secs(seconds);
        bench.machine.tick(bench.cx);
    }

    #[test]
    fn late_output_does_not_count_as_cell_time() {
        let (mut bench, run) = begun();
        wait(&mut bench, 9);
        bench.says(Channel::Shell, &run, "execute_reply", &json!({"status": "ok"}));
        for _ in 0..5 {
            wait(&mut bench, 3);
            bench.prints(&run, "much");
        }
        bench.says(Channel::Iopub, &run, "status", &json!({"execution_state": "idle"}));
        assert_eq!(bench.status("a"), Some(ExecutionStatus::Ok));
    }

    #[test]
    fn cell_that_ended_without_a_server_is_in_time() {
        let (mut bench, run) = begun();
        bench.restore(|resume| resume);
        wait(&mut bench, 15);
        bench.attach();
        bench.replies(&run);
        assert_eq!(bench.status("a"), Some(ExecutionStatus::Ok));
    }

    #[test]
    fn overdue_cell_is_stopped_after_replay_grace() {
        let (mut bench, run) = begun();
        bench.restore(|resume| resume);
        wait(&mut bench, 15);
        bench.attach();
        wait(&mut bench, REPLAY_GRACE.as_secs());
        bench.replies(&run);
        assert_eq!(bench.status("a"), Some(ExecutionStatus::Timeout));
    }
}
