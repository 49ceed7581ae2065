//! The files that an execution has changed, as clients see them.

use serde::Serialize;
use utoipa::ToSchema;

use super::api_enum;
use crate::mime;
use crate::session::{ChangeKind, FileChange};

/// A regular file of the workspace that an execution has changed.
#[derive(Serialize, ToSchema)]
#[schema(as = FileChange, examples(json!({
    "path": "output/table.csv", "change": "created", "size": 1042, "media_type": "text/csv",
    "sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae", "artifact": true
})))]
pub(in crate::api) struct FileChangeView {
    /// The path in the workspace.
    path: String,
    change: ChangeKindName,
    /// The size in bytes; 0 if deleted.
    size: u64,
    /// The media type by the name of the file.
    media_type: String,
    /// The hash of the content, if it was requested or the file is an artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    sha256: Option<String>,
    /// Whether the content is kept as an artifact, which `/v1/artifacts/{sha256}` returns.
    artifact: bool,
    /// Why a file that was requested as an artifact is not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    not_kept: Option<String>,
}

impl From<FileChange> for FileChangeView {
    fn from(FileChange { path, change, size, sha256, artifact, not_kept }: FileChange) -> Self {
        let media_type = mime::of_name_or_bytes(&path).to_owned();
        Self { path, change: change.into(), size, media_type, sha256, artifact, not_kept }
    }
}

api_enum! {
    #[schema(as = ChangeKind)]
    ChangeKindName for ChangeKind { Created, Modified, Deleted }
}
