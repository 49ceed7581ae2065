//! Accounts output, memory and CPU of the recent executions.
//!
//! Several executions are remembered because iopub is not ordered with shell: output may arrive after the reply, when the
//! next execution has started.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::artifact_patterns::matches_any;
use super::usage::UsageSample;
use crate::agent_protocol::{ChangeKind, ExecutionContext, ExecutionUsage, FileChange, FileChanges};

/// Executions remembered. Output of older or unknown ones is charged to the newest.
const MAX_REMEMBERED: usize = 32;
/// The most artifacts of one execution.
const MAX_ARTIFACTS: usize = 1000;

#[derive(Default)]
struct Execution {
    msg_id: String,
    header: Bytes,
    output_bytes: u64,
    capped: bool,
    /// The reply has not arrived yet.
    running: bool,
    /// The kernel has sent a message about it other than a status.
    started: bool,
    rejected: u32,
    /// The sandbox's usage when it was submitted.
    baseline: UsageSample,
    /// Highest memory sample while it ran, bytes.
    sampled_bytes: u64,
    context: ExecutionContext,
    /// The files that it leaves as artifacts, by path. `None` if it leaves none, or they were taken.
    artifacts: Option<BTreeMap<String, FileChange>>,
}

/// Why a file is not kept as an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CollectError {
    /// It is larger than this many bytes.
    TooLarge(u64),
    /// With the output of the execution, it would exceed the limit of output, in bytes.
    OverLimit(u64),
}

impl CollectError {
    pub fn reason(self) -> String {
        match self {
            Self::TooLarge(limit) => format!("it is larger than {} MB", limit >> 20),
            Self::OverLimit(limit) => format!("the cell would exceed its limit of {} MB of output", limit >> 20),
        }
    }
}

/// How much of an output the limit allows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OutputAllowance {
    Full,
    /// The output crosses the limit: `bytes` are left. Returned once per execution.
    Partial {
        bytes: u64,
        msg_id: String,
    },
    /// The limit was exceeded before.
    Exhausted,
}

/// The recent executions of one kernel, newest first. Never empty, so that output outside of any execution is charged too.
pub(super) struct Executions {
    limit: u64,
    recent: VecDeque<Execution>,
}

impl Executions {
    /// `limit`: output of each execution, bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, recent: VecDeque::from([Execution::default()]) }
    }

    /// Adds an execution whose request was handed to the kernel.
    pub fn submit(&mut self, msg_id: String, header: Bytes, context: ExecutionContext) {
        let artifacts = (!context.artifacts.is_empty()).then(BTreeMap::new);
        self.recent.push_front(Execution { msg_id, header, context, artifacts, running: true, ..Execution::default() });
        self.recent.truncate(MAX_REMEMBERED);
    }

    /// Sets the usage at the submission of the newest execution.
    pub fn set_baseline(&mut self, baseline: UsageSample) {
        if let Some(run) = self.recent.front_mut() {
            (run.baseline, run.sampled_bytes) = (baseline, baseline.memory_bytes);
        }
    }

    /// Marks an execution as started. `true` if it was not started before.
    pub fn mark_started(&mut self, msg_id: &str) -> bool {
        let run = self.recent.iter_mut().find(|run| run.msg_id == msg_id);
        run.is_some_and(|run| !std::mem::replace(&mut run.started, true))
    }

    /// Whether the newest execution was submitted but has not started.
    pub fn is_queued(&self) -> bool {
        self.recent.front().is_some_and(|run| run.running && !run.started)
    }

    /// Marks an execution as finished by its reply. `true` if it was running before.
    pub fn finish(&mut self, msg_id: &str) -> bool {
        self.recent.iter_mut().find(|run| run.msg_id == msg_id).is_some_and(|run| std::mem::take(&mut run.running))
    }

    /// Records a memory sample for the running execution.
    pub fn sample_memory(&mut self, bytes: u64) {
        if let Some(run) = self.recent.front_mut().filter(|run| run.running) {
            run.sampled_bytes = run.sampled_bytes.max(bytes);
        }
    }

    /// The usage of an execution until `now`. If the sandbox's peak rose during the execution, that is its peak; else its
    /// peak is the highest sample.
    pub fn usage(&self, msg_id: &str, now: UsageSample) -> ExecutionUsage {
        let Some(run) = self.recent.iter().find(|run| run.msg_id == msg_id) else { return ExecutionUsage::default() };
        let sampled = run.sampled_bytes.max(now.memory_bytes);
        ExecutionUsage {
            cpu_seconds: (now.cpu_seconds - run.baseline.cpu_seconds).max(0.0),
            peak_memory_bytes: if now.peak_bytes > run.baseline.peak_bytes { now.peak_bytes } else { sampled },
        }
    }

    /// The `msg_id` of the running execution.
    pub fn running_id(&self) -> Option<String> {
        self.recent.front().filter(|run| run.running).map(|run| run.msg_id.clone())
    }

    /// Counts a rejected message for the newest execution, and returns the count.
    pub fn count_rejected(&mut self) -> u32 {
        self.recent.front_mut().map_or(u32::MAX, |run| {
            run.rejected = run.rejected.saturating_add(1);
            run.rejected
        })
    }

    /// Whether an execution is submitted or running.
    pub fn is_running(&self) -> bool {
        self.recent.front().is_some_and(|run| run.running)
    }

    /// The header of the running execution's request.
    pub fn running_header(&self) -> Option<Bytes> {
        self.recent.front().filter(|run| run.running).map(|run| run.header.clone())
    }

    /// The header of the request of a recent execution.
    pub fn header(&self, msg_id: &str) -> Option<Bytes> {
        self.recent.iter().find(|run| run.msg_id == msg_id).map(|run| run.header.clone())
    }

    /// The header of the request of the newest execution, also after its end.
    pub fn newest_header(&self) -> Option<Bytes> {
        self.recent.front().map(|run| run.header.clone()).filter(|header| !header.is_empty())
    }

    /// The `msg_id` of the newest execution, running or not; empty if there is none.
    pub fn newest_id(&self) -> String {
        self.recent.front().map(|run| run.msg_id.clone()).unwrap_or_default()
    }

    /// Whether the newest execution wants changed files to be hashed.
    pub fn hashes_files(&self) -> bool {
        self.recent.front().is_some_and(|run| run.context.hash_files)
    }

    /// Remembers the files that the newest execution leaves as artifacts, until they are taken.
    pub fn note_changes(&mut self, changes: &FileChanges) {
        let Some(run) = self.recent.front_mut() else { return };
        let Some(artifacts) = &mut run.artifacts else { return };
        for change in changes.files.iter().filter(|change| matches_any(&run.context.artifacts, &change.path)) {
            if change.change == ChangeKind::Deleted {
                artifacts.remove(&change.path);
            } else if artifacts.len() < MAX_ARTIFACTS || artifacts.contains_key(&change.path) {
                artifacts.insert(change.path.clone(), change.clone());
            }
        }
    }

    /// The files that an execution leaves as artifacts.
    pub fn take_artifacts(&mut self, msg_id: &str) -> Vec<FileChange> {
        let run = self.recent.iter_mut().find(|run| run.msg_id == msg_id);
        run.and_then(|run| run.artifacts.take()).unwrap_or_default().into_values().collect()
    }

    /// Charges an artifact of `size` bytes as output of an execution.
    ///
    /// # Errors
    /// If it is larger than `max`, or the output would exceed the limit. Nothing is charged then.
    pub fn reserve_artifact(&mut self, msg_id: &str, size: u64, max: u64) -> Result<(), CollectError> {
        if size > max {
            return Err(CollectError::TooLarge(max));
        }
        let over_limit = Err(CollectError::OverLimit(self.limit));
        let Some(run) = self.recent.iter_mut().find(|run| run.msg_id == msg_id && !run.capped) else { return over_limit };
        if size > self.limit.saturating_sub(run.output_bytes) {
            return over_limit;
        }
        run.output_bytes += size;
        Ok(())
    }

    /// Charges an output of `size` bytes to an execution.
    pub fn charge_output(&mut self, msg_id: &str, size: u64) -> OutputAllowance {
        let known = self.recent.iter().position(|run| run.msg_id == msg_id).unwrap_or(0);
        let Some(run) = self.recent.get_mut(known) else { return OutputAllowance::Exhausted };
        if run.capped {
            return OutputAllowance::Exhausted;
        }
        let room = self.limit.saturating_sub(run.output_bytes);
        if size <= room {
            run.output_bytes += size;
            return OutputAllowance::Full;
        }
        run.capped = true;
        OutputAllowance::Partial { bytes: room, msg_id: run.msg_id.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_output_is_charged_to_its_execution() {
        let mut executions = Executions::new(10);
        executions.submit("a".into(), Bytes::new(), ExecutionContext::default());
        assert_eq!(executions.charge_output("a", 6), OutputAllowance::Full);
        assert!(executions.finish("a") && !executions.finish("a"));
        executions.submit("b".into(), Bytes::new(), ExecutionContext::default());
        assert_eq!(executions.charge_output("b", 9), OutputAllowance::Full);
        assert_eq!(executions.charge_output("a", 4), OutputAllowance::Full, "late, but its own");
        assert_eq!(executions.charge_output("a", 3), OutputAllowance::Partial { bytes: 0, msg_id: "a".into() });
        assert_eq!(executions.charge_output("a", 1), OutputAllowance::Exhausted);
        assert_eq!(executions.charge_output("b", 1), OutputAllowance::Full);
    }

    #[test]
    fn earlier_peak_is_not_charged_to_execution() {
        let mut executions = Executions::new(10);
        let at = |cpu_seconds, memory_bytes, peak_bytes| UsageSample { cpu_seconds, memory_bytes, peak_bytes };
        executions.submit("big".into(), Bytes::new(), ExecutionContext::default());
        executions.set_baseline(at(1.0, 10, 20));
        executions.sample_memory(80);
        assert_eq!(executions.usage("big", at(3.0, 30, 90)), ExecutionUsage { cpu_seconds: 2.0, peak_memory_bytes: 90 });
        executions.finish("big");
        executions.sample_memory(85);
        executions.submit("small".into(), Bytes::new(), ExecutionContext::default());
        executions.set_baseline(at(3.0, 30, 90));
        executions.sample_memory(50);
        assert_eq!(executions.usage("small", at(3.5, 40, 90)), ExecutionUsage { cpu_seconds: 0.5, peak_memory_bytes: 50 });
        assert_eq!(
            (executions.running_id().as_deref(), executions.usage("?", at(9.0, 9, 9))),
            (Some("small"), ExecutionUsage::default())
        );
    }

    #[test]
    fn execution_is_queued_until_kernel_mentions_it() {
        let mut executions = Executions::new(10);
        assert!(!executions.is_queued() && !executions.mark_started("a"));
        executions.submit("a".into(), Bytes::new(), ExecutionContext::default());
        assert!(executions.is_queued() && !executions.mark_started("b") && executions.is_queued());
        assert!(executions.mark_started("a") && !executions.mark_started("a") && !executions.is_queued());
        executions.submit("b".into(), Bytes::new(), ExecutionContext::default());
        executions.finish("b");
        assert!(!executions.is_queued(), "finished without having started");
    }

    #[test]
    fn last_state_of_matching_files_is_kept() {
        let change = |path: &str, change, size| FileChange {
            path: path.to_owned(),
            change,
            size,
            sha256: None,
            artifact: false,
            not_kept: None,
        };
        let mut executions = Executions::new(100);
        let context = ExecutionContext { artifacts: vec!["*.csv".to_owned()], ..ExecutionContext::default() };
        executions.submit("a".into(), Bytes::new(), context);
        for files in [
            vec![change("a.csv", ChangeKind::Created, 1), change("b.txt", ChangeKind::Created, 1)],
            vec![change("a.csv", ChangeKind::Modified, 2), change("c.csv", ChangeKind::Created, 1)],
            vec![change("c.csv", ChangeKind::Deleted, 0)],
        ] {
            executions.note_changes(&FileChanges { files, truncated: false });
        }
        assert_eq!(executions.take_artifacts("a"), [change("a.csv", ChangeKind::Modified, 2)]);
        assert!(executions.take_artifacts("a").is_empty());
    }

    #[test]
    fn artifacts_count_as_output() {
        let mut executions = Executions::new(10);
        executions.submit("a".into(), Bytes::new(), ExecutionContext::default());
        assert_eq!(executions.reserve_artifact("a", 6, 6), Ok(()));
        assert_eq!(executions.reserve_artifact("a", 7, 6), Err(CollectError::TooLarge(6)));
        assert_eq!(executions.reserve_artifact("a", 5, 6), Err(CollectError::OverLimit(10)));
        assert_eq!(executions.charge_output("a", 4), OutputAllowance::Full);
        assert_eq!(executions.reserve_artifact("?", 0, 6), Err(CollectError::OverLimit(10)));
    }

    #[test]
    fn rejections_are_counted_per_execution() {
        let mut executions = Executions::new(10);
        assert_eq!((executions.count_rejected(), executions.count_rejected()), (1, 2));
        executions.submit("a".into(), Bytes::new(), ExecutionContext::default());
        assert_eq!(executions.count_rejected(), 1);
    }

    #[test]
    fn output_without_execution_is_bounded() {
        let mut executions = Executions::new(10);
        assert_eq!(executions.charge_output("", 8), OutputAllowance::Full);
        assert_eq!(executions.charge_output("?", 8), OutputAllowance::Partial { bytes: 2, msg_id: String::new() });
        assert_eq!(executions.charge_output("??", 8), OutputAllowance::Exhausted);
    }
}
