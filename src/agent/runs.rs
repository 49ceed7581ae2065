//! How much output each recent run has produced, and whether it may produce more.
//!
//! Several runs are remembered, because iopub has no order with the shell: what a run said may be read after its reply, when the
//! next has begun already.

use std::collections::VecDeque;

use bytes::Bytes;

use super::usage::Used;
use crate::agent_protocol::RunUsage;

/// Runs remembered. Output of an older one, or of none that we know, counts for the newest.
const REMEMBERED: usize = 8;

/// One run, as far as the agent must know it.
#[derive(Default)]
struct Run {
    msg_id: String,
    header: Bytes,
    output_bytes: u64,
    capped: bool,
    open: bool,
    begun: bool,
    refused: u32,
    /// What the sandbox had used when it began.
    before: Used,
    /// The most memory that was seen while it ran, bytes.
    seen_bytes: u64,
}

/// What may be done with an output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Pass it on.
    Enough,
    /// It crosses the limit: only so many bytes fit, and this is said once.
    Only { bytes: u64, msg_id: String },
    /// The limit was crossed before: drop it.
    None,
}

/// The recent runs of one kernel; never empty, so that output outside of any run has a place too.
pub(super) struct Runs {
    limit: u64,
    recent: VecDeque<Run>,
}

impl Runs {
    /// With a limit per run, bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, recent: VecDeque::from([Run::default()]) }
    }

    /// A run begins: its request has been handed to the kernel.
    pub fn begin(&mut self, msg_id: String, header: Bytes) {
        self.recent.push_front(Run { msg_id, header, open: true, ..Run::default() });
        self.recent.truncate(REMEMBERED);
    }

    /// What had been used when the newest run began.
    pub fn begin_from(&mut self, before: Used) {
        if let Some(run) = self.recent.front_mut() {
            (run.before, run.seen_bytes) = (before, before.memory_bytes);
        }
    }

    /// The kernel has said something of it other than a status: it works on it. `true` if it had not until now.
    pub fn begun(&mut self, msg_id: &str) -> bool {
        let run = self.recent.iter_mut().find(|run| run.msg_id == msg_id);
        run.is_some_and(|run| !std::mem::replace(&mut run.begun, true))
    }

    /// Whether the newest run waits in a queue: handed to the kernel, but not begun.
    pub fn is_waiting(&self) -> bool {
        self.recent.front().is_some_and(|run| run.open && !run.begun)
    }

    /// Its reply was seen. `true` if it was open until now.
    pub fn replied(&mut self, msg_id: &str) -> bool {
        self.recent.iter_mut().find(|run| run.msg_id == msg_id).is_some_and(|run| std::mem::take(&mut run.open))
    }

    /// Notes the memory of a moment for the run that is worked on.
    pub fn see_memory(&mut self, bytes: u64) {
        if let Some(run) = self.recent.front_mut().filter(|run| run.open) {
            run.seen_bytes = run.seen_bytes.max(bytes);
        }
    }

    /// What a run has used until `now`. A peak of the sandbox that is higher than before is its own; else its own is lower, and
    /// what was seen of it tells.
    pub fn used(&self, msg_id: &str, now: Used) -> RunUsage {
        let Some(run) = self.recent.iter().find(|run| run.msg_id == msg_id) else { return RunUsage::default() };
        let seen = run.seen_bytes.max(now.memory_bytes);
        RunUsage {
            cpu_seconds: (now.cpu_seconds - run.before.cpu_seconds).max(0.0),
            peak_memory_bytes: if now.peak_bytes > run.before.peak_bytes { now.peak_bytes } else { seen },
        }
    }

    /// The run that the kernel works on, if it works.
    pub fn open_run(&self) -> Option<String> {
        self.recent.front().filter(|run| run.open).map(|run| run.msg_id.clone())
    }

    /// Counts a message that was none for the newest run; gives how many it has had.
    pub fn refuse(&mut self) -> u32 {
        self.recent.front_mut().map_or(u32::MAX, |run| {
            run.refused = run.refused.saturating_add(1);
            run.refused
        })
    }

    /// Whether the kernel works on one, or is about to.
    pub fn is_open(&self) -> bool {
        self.recent.front().is_some_and(|run| run.open)
    }

    /// The header of the run that the kernel works on, if it works.
    pub fn open_header(&self) -> Option<Bytes> {
        self.recent.front().filter(|run| run.open).map(|run| run.header.clone())
    }

    /// Counts an output of `size` bytes for the run `msg_id`.
    pub fn take(&mut self, msg_id: &str, size: u64) -> Room {
        let known = self.recent.iter().position(|run| run.msg_id == msg_id).unwrap_or(0);
        let Some(run) = self.recent.get_mut(known) else { return Room::None };
        if run.capped {
            return Room::None;
        }
        let room = self.limit.saturating_sub(run.output_bytes);
        if size <= room {
            run.output_bytes += size;
            return Room::Enough;
        }
        run.capped = true;
        Room::Only { bytes: room, msg_id: run.msg_id.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_its_own_limit_also_when_outputs_come_late() {
        let mut runs = Runs::new(10);
        runs.begin("a".into(), Bytes::new());
        assert_eq!(runs.take("a", 6), Room::Enough);
        assert!(runs.replied("a") && !runs.replied("a"));
        runs.begin("b".into(), Bytes::new());
        assert_eq!(runs.take("b", 9), Room::Enough);
        assert_eq!(runs.take("a", 4), Room::Enough, "late, but its own");
        assert_eq!(runs.take("a", 3), Room::Only { bytes: 0, msg_id: "a".into() });
        assert_eq!(runs.take("a", 1), Room::None);
        assert_eq!(runs.take("b", 1), Room::Enough);
    }

    #[test]
    fn a_peak_that_was_there_before_is_not_the_runs_own() {
        let mut runs = Runs::new(10);
        let at = |cpu_seconds, memory_bytes, peak_bytes| Used { cpu_seconds, memory_bytes, peak_bytes };
        runs.begin("big".into(), Bytes::new());
        runs.begin_from(at(1.0, 10, 20));
        runs.see_memory(80);
        assert_eq!(runs.used("big", at(3.0, 30, 90)), RunUsage { cpu_seconds: 2.0, peak_memory_bytes: 90 });
        runs.replied("big");
        runs.see_memory(85);
        runs.begin("small".into(), Bytes::new());
        runs.begin_from(at(3.0, 30, 90));
        runs.see_memory(50);
        assert_eq!(runs.used("small", at(3.5, 40, 90)), RunUsage { cpu_seconds: 0.5, peak_memory_bytes: 50 });
        assert_eq!((runs.open_run().as_deref(), runs.used("?", at(9.0, 9, 9))), (Some("small"), RunUsage::default()));
    }

    #[test]
    fn a_run_waits_until_the_kernel_speaks_of_it() {
        let mut runs = Runs::new(10);
        assert!(!runs.is_waiting() && !runs.begun("a"));
        runs.begin("a".into(), Bytes::new());
        assert!(runs.is_waiting() && !runs.begun("b") && runs.is_waiting());
        assert!(runs.begun("a") && !runs.begun("a") && !runs.is_waiting());
        runs.begin("b".into(), Bytes::new());
        runs.replied("b");
        assert!(!runs.is_waiting(), "refused without a word");
    }

    #[test]
    fn each_run_has_its_own_refusals() {
        let mut runs = Runs::new(10);
        assert_eq!((runs.refuse(), runs.refuse()), (1, 2));
        runs.begin("a".into(), Bytes::new());
        assert_eq!(runs.refuse(), 1);
    }

    #[test]
    fn output_of_nobody_is_bounded_too() {
        let mut runs = Runs::new(10);
        assert_eq!(runs.take("", 8), Room::Enough);
        assert_eq!(runs.take("?", 8), Room::Only { bytes: 2, msg_id: String::new() });
        assert_eq!(runs.take("??", 8), Room::None);
    }
}
