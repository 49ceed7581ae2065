//! What an execution asks of its sandbox besides running code, and what the agent reports of the workspace.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub artifact: bool,
    /// Why a file that a pattern matches is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_kept: Option<String>,
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
        self.files.iter().map(|file| size_of::<FileChange>() + file.path.len()).sum()
    }
}

/// The name of a file whose content an execution leaves as an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedFile {
    /// The `msg_id` of the `execute_request`.
    pub msg_id: String,
    pub change: FileChange,
}
