//! Cells as language models see them.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::cell::{CellState, CellStatus, ExecutionMetrics};
use super::file_change::FileChangeView;
use crate::render::summary::{ArtifactInfo, Image, Summary, SummaryLimits, summarize};
use crate::session::{Cell, FileChanges, metrics};

/// A summary of a cell for a language model.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "id": "ae18a2f3", "state": "finished", "status": "error", "execution_count": 3, "state_lost": false,
    "text": "loading\nValueError: no such column\nCell In[3], line 2\n----> 2 frame['x']", "omitted_bytes": 0, "images": [],
    "files": [], "files_truncated": false, "metrics": {"wall_ms": 12.4}
})))]
pub(in crate::api) struct ModelView {
    id: String,
    state: CellState,
    /// Present when an execution has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    status: Option<CellStatus>,
    /// The execution counter of the kernel. Null if the kernel has not counted the execution.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    execution_count: Option<Option<i64>>,
    /// Whether the variables of the session are gone.
    state_lost: bool,
    /// All outputs as plain text: without colours, tables as markdown, errors with the frames of the person's code. Notes in
    /// brackets say what is not shown.
    text: String,
    /// The bytes of text that are left out.
    omitted_bytes: u64,
    /// The latest images, at most 6, in the order in which the text mentions them.
    images: Vec<ImageReference>,
    /// The files that the execution has changed, by path.
    files: Vec<FileChangeView>,
    /// Whether more files may have changed.
    files_truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ExecutionMetrics, nullable = false)]
    metrics: Option<Value>,
}

/// An image among the outputs of a cell.
#[derive(Serialize, ToSchema)]
struct ImageReference {
    mime: &'static str,
    /// The hash of the bytes, which `/v1/artifacts/{sha256}` returns.
    sha256: String,
    /// The size in bytes.
    bytes: u64,
    /// The width in pixels, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    width: Option<u32>,
    /// The height in pixels, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    height: Option<u32>,
}

impl From<Image> for ImageReference {
    fn from(Image { mime, sha256, bytes, size, .. }: Image) -> Self {
        Self { mime, sha256, bytes, width: size.map(|size| size.0), height: size.map(|size| size.1) }
    }
}

impl ModelView {
    /// Leaves out the changed files: a share does not show the workspace.
    pub fn hide_files(&mut self) {
        self.files.clear();
    }

    /// `artifacts`: those of the session, by their hashes.
    pub fn new(
        cell: &Cell,
        outputs: &[Value],
        artifacts: &HashMap<String, ArtifactInfo>,
        files: FileChanges,
        limits: SummaryLimits,
    ) -> Self {
        let Summary { text, images, omitted_bytes } = summarize(outputs, artifacts, limits);
        let result = cell.execution.result.as_ref();
        Self {
            id: cell.id.clone(),
            state: cell.execution.phase.into(),
            status: result.map(|result| result.status.into()),
            execution_count: result.map(|result| result.execution_count),
            state_lost: result.and_then(|result| result.error.as_ref()).is_some_and(|error| error.state_lost),
            text,
            omitted_bytes,
            images: images.into_iter().map(ImageReference::from).collect(),
            files: files.files.into_iter().map(FileChangeView::from).collect(),
            files_truncated: files.truncated,
            metrics: result.map(metrics),
        }
    }
}
