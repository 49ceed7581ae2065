//! The cell that the kernel works on, with what its session has to know of it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ladder::Ladder;
use super::run::{ActiveRun, Now, RunFacts};

/// How long after a server's start a run is not said to have taken too long.
const HEARD: Duration = Duration::from_secs(20);

pub(super) struct Active {
    pub number: u32,
    pub run: ActiveRun,
    /// Bytes of output and questions so far. The agent counts too, and stops first, unless a tenant has taken it over.
    pub bytes: u64,
    pub timeout: Option<Duration>,
    pub ladder: Option<Ladder>,
    /// The header of the code's question, which the answer must name.
    pub input: Option<Bytes>,
    /// Whether that has been answered.
    pub answered: bool,
    /// The source that was handed to the kernel, where the cell's has been edited since.
    pub source: Option<String>,
    /// Written down by an earlier server, and not known to have reached the agent.
    pub unsure: bool,
    /// Until when the agent may tell what has happened before: it may have ended in time while there was no server.
    pub heard_by: Option<Instant>,
}

/// The same, to be written down.
#[derive(Serialize, Deserialize)]
pub(super) struct ActiveResume {
    number: u32,
    run: RunFacts,
    bytes: u64,
    timeout: Option<Duration>,
    /// JSON text, as the kernel sent it.
    input: Option<String>,
    source: Option<String>,
}

impl Active {
    /// One that is about to be handed to the kernel.
    pub fn new(number: u32, run: ActiveRun, timeout: Option<Duration>) -> Self {
        let (ladder, input, source, heard_by) = (None, None, None, None);
        Self { number, run, bytes: 0, timeout, ladder, input, answered: false, source, unsure: false, heard_by }
    }

    /// Goes on with one that an earlier server has written down.
    pub fn restore(stored: ActiveResume, late_output: Duration, now: Now) -> Self {
        let run = ActiveRun::restore(stored.run, late_output, now);
        // An escalation that was under way begins again.
        let ladder = run.is_stopping().then(|| Ladder::new(now.instant));
        let ActiveResume { number, bytes, timeout, input, source, .. } = stored;
        let (input, heard_by) = (input.map(Bytes::from), Some(now.instant + HEARD));
        Self { number, run, bytes, timeout, ladder, input, answered: false, source, unsure: true, heard_by }
    }

    /// What is to be written down of it.
    pub fn to_keep(&self) -> ActiveResume {
        ActiveResume {
            number: self.number,
            run: self.run.facts().clone(),
            bytes: self.bytes,
            timeout: self.timeout,
            input: self.input.as_ref().map(|header| String::from_utf8_lossy(header).into_owned()),
            source: self.source.clone(),
        }
    }

    /// When it has taken too long. One whose reply was seen has ended; what of its output is still to come takes none of its time.
    pub fn times_out_at(&self) -> Option<Instant> {
        let limit = self.timeout.filter(|_| !self.run.is_stopping() && self.run.deadline().is_none())?;
        let at = self.run.started().checked_add(limit)?;
        Some(self.heard_by.map_or(at, |heard| at.max(heard)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::HEARD;
    use crate::session::core_tests::Bench;
    use crate::session::{NewCell, RunOptions, RunStatus};
    use crate::wire::Channel;

    /// A cell that may take ten seconds, and its run.
    fn begun() -> (Bench, String) {
        let mut bench = Bench::ready();
        let options = RunOptions { timeout_seconds: Some(10.0), ..RunOptions::default() };
        let cell = NewCell { id: Some("a".to_owned()), run: true, options, ..NewCell::default() };
        bench.core.add_cell(bench.now, cell, None).unwrap();
        let run = bench.cell("a").run.run.clone().unwrap().0;
        (bench, run)
    }

    fn wait(bench: &mut Bench, seconds: u64) {
        bench.now.instant += Duration::from_secs(seconds);
        bench.now.time += Duration::from_secs(seconds);
        bench.core.tick(bench.now);
    }

    #[test]
    fn what_comes_after_the_reply_takes_none_of_a_cells_time() {
        let (mut bench, run) = begun();
        wait(&mut bench, 9);
        bench.says(Channel::Shell, &run, "execute_reply", &json!({"status": "ok"}));
        for _ in 0..5 {
            wait(&mut bench, 3);
            bench.prints(&run, "much");
        }
        bench.says(Channel::Iopub, &run, "status", &json!({"execution_state": "idle"}));
        assert_eq!(bench.status("a"), Some(RunStatus::Ok));
    }

    #[test]
    fn a_cell_that_ended_in_time_while_there_was_no_server_has_ended_in_time() {
        let (mut bench, run) = begun();
        bench.restore(|resume| resume);
        wait(&mut bench, 15);
        bench.attach();
        bench.replies(&run);
        assert_eq!(bench.status("a"), Some(RunStatus::Ok));
    }

    #[test]
    fn a_cell_that_goes_on_after_a_servers_start_is_stopped_then() {
        let (mut bench, run) = begun();
        bench.restore(|resume| resume);
        wait(&mut bench, 15);
        bench.attach();
        wait(&mut bench, HEARD.as_secs());
        bench.replies(&run);
        assert_eq!(bench.status("a"), Some(RunStatus::Timeout));
    }
}
