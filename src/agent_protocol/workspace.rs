//! What an execution asks of its sandbox besides running code, and what the agent reports of the workspace.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The most files of a report, the longest path, and the longest reason, that a manager takes from an agent.
const MAX_FILES: usize = 1000;
const MAX_PATH: usize = 4096;
const MAX_REASON: usize = 300;

/// The circumstances of one execution. The object `cellkeep` in the metadata of its `execute_request`, which the agent and our
/// kernels' launchers read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecutionContext {
    /// Environment variables for the time of the execution, besides those of the session.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The working folder for the time of the execution, relative to the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Patterns of the files that are kept as artifacts if the execution creates or modifies them. A pattern without `/` matches
    /// names in all folders, one that ends in `/` everything in that folder.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// Whether the agent hashes the changed files.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hash_files: bool,
}

impl ExecutionContext {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How a file differs from what it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    Created,
    Modified,
    Deleted,
}

/// A change of a regular file of the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Relative to the workspace.
    pub path: String,
    pub change: ChangeKind,
    /// The size in bytes; 0 if deleted.
    pub size: u64,
    /// The hash of the content in lower-case hexadecimal digits, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Whether the content is kept as an artifact.
    #[serde(default)]
    pub artifact: bool,
    /// Why a file that a pattern matches is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_kept: Option<String>,
}

impl FileChange {
    /// Approximate memory size, bytes.
    pub fn size(&self) -> usize {
        let texts = [Some(&self.path), self.sha256.as_ref(), self.not_kept.as_ref()];
        size_of::<Self>() + texts.into_iter().flatten().map(String::len).sum::<usize>()
    }

    /// The change as a manager takes it from an agent, which a tenant may control. `None` if its path is too long.
    pub fn sanitized(self) -> Option<Self> {
        let is_hash = |hash: &String| hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let not_kept = self.not_kept.map(|mut reason| {
            reason.truncate(reason.floor_char_boundary(MAX_REASON));
            reason
        });
        let sha256 = self.sha256.filter(is_hash);
        // Only a file that comes with its content is an artifact.
        (self.path.len() <= MAX_PATH).then_some(Self { sha256, artifact: false, not_kept, ..self })
    }
}

/// Changes of files since the last report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChanges {
    /// By path.
    pub files: Vec<FileChange>,
    /// Whether more files may have changed than are named.
    pub truncated: bool,
}

impl FileChanges {
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && !self.truncated
    }

    /// Approximate memory size, bytes.
    pub fn size(&self) -> usize {
        self.files.iter().map(FileChange::size).sum()
    }

    /// As [`FileChange::sanitized`], for a bounded number of files.
    pub fn sanitized(self) -> Self {
        let all = self.files.len();
        let files: Vec<FileChange> = self.files.into_iter().take(MAX_FILES).filter_map(FileChange::sanitized).collect();
        Self { truncated: self.truncated || files.len() < all, files }
    }
}

/// The name of a file whose content an execution leaves as an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedFile {
    /// The `msg_id` of the `execute_request`.
    pub msg_id: String,
    pub change: FileChange,
}
