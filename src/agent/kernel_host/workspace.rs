//! Reports which files of the workspace have changed, and sends the content of those that an execution leaves as artifacts.
//!
//! A report belongs to the newest execution, running or not. It is made before the reply that ends the execution, before the kernel's
//! exit, and some time after a change in between.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::KernelHost;
use crate::agent::executions::CollectError;
use crate::agent::workspace_changes::shortened;
use crate::agent_protocol::{ChangeKind, CollectedFile, Event, FileChange, FileChanges, KernelEvent};

/// How long changes are gathered before they are reported in the middle of an execution: first, and at most. It doubles with each report.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// The largest file that is kept as an artifact, bytes. It is in the memory of the sandbox until the manager has it.
const MAX_COLLECTED: u64 = 32 << 20;
/// The most bytes that are hashed for one report, in a tenth of a second: nothing else is done meanwhile.
const MAX_HASHED: u64 = 32 << 20;

/// When the next report in the middle of an execution is due.
pub(super) struct ReportTimer {
    pub due: Option<Instant>,
    interval: Duration,
}

impl Default for ReportTimer {
    fn default() -> Self {
        Self { due: None, interval: FIRST_INTERVAL }
    }
}

impl ReportTimer {
    /// Something has changed.
    pub fn start(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + self.interval);
    }

    fn reported(&mut self) {
        self.interval = (self.interval * 2).min(MAX_INTERVAL);
    }
}

impl KernelHost {
    /// Waits for a change of the workspace for which no report is planned yet.
    pub(super) async fn workspace_changed(&self) {
        match self.report_timer.due {
            None if self.sandbox.is_latest_executor(&self.session) => self.changes.changed().await,
            _ => std::future::pending().await,
        }
    }

    /// Reports what has changed since the last report.
    pub(super) fn report_changes(&mut self) {
        self.report_timer.due = None;
        let changes = self.sandbox.changes.borrow_mut().take(&self.sandbox.files);
        if changes.is_empty() {
            return;
        }
        self.report_timer.reported();
        self.executions.note_changes(&changes);
        let mut changes = shortened(changes);
        if self.executions.hashes_files() {
            self.add_hashes(&mut changes);
        }
        let msg_id = self.executions.newest_id();
        self.emit_kernel(KernelEvent::FilesChanged { msg_id, changes });
    }

    /// Reports the last changes of an execution, and sends the files that it leaves as artifacts.
    pub(super) fn finish_changes(&mut self, execution: &str) {
        self.report_changes();
        self.report_timer = ReportTimer::default();
        for change in self.executions.take_artifacts(execution) {
            self.collect(execution, change);
        }
    }

    fn collect(&mut self, execution: &str, mut change: FileChange) {
        let read = self.executions.reserve_artifact(execution, change.size, MAX_COLLECTED);
        let read = read.map_err(CollectError::reason).and_then(|()| self.read_whole(&change));
        let data = match read {
            Ok(data) => data,
            Err(reason) => {
                change.not_kept = Some(reason);
                Bytes::new()
            }
        };
        (change.artifact, change.size) = (change.not_kept.is_none(), change.size.max(data.len() as u64));
        let file = CollectedFile { msg_id: execution.to_owned(), change };
        self.flush_streams();
        self.store(&Event::File { generation: self.kernel.generation, file, data });
    }

    /// The content of a file that may not have grown since it was seen.
    fn read_whole(&self, change: &FileChange) -> Result<Bytes, String> {
        let mut content = Vec::new();
        loop {
            let (stat, chunk) =
                self.sandbox.files.get(&change.path, content.len() as u64, u64::MAX).map_err(|refused| refused.reason)?;
            if stat.size > change.size {
                return Err("it was still being written when the cell ended".to_owned());
            }
            content.extend_from_slice(&chunk);
            if chunk.is_empty() || content.len() as u64 >= stat.size {
                return Ok(content.into());
            }
        }
    }

    fn add_hashes(&self, changes: &mut FileChanges) {
        let mut room = MAX_HASHED;
        for change in changes.files.iter_mut().filter(|change| change.change != ChangeKind::Deleted) {
            if change.size <= room {
                room -= change.size;
                change.sha256 = self.hash(change);
            }
        }
    }

    fn hash(&self, change: &FileChange) -> Option<String> {
        let file = self.sandbox.files.open_plain(&change.path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).ok()?;
        let mut hasher = Sha256::new();
        // A file that grows meanwhile must not be read for ever.
        let mut file = std::io::Read::take(std::fs::File::from(file), change.size);
        std::io::copy(&mut file, &mut hasher).ok()?;
        Some(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
