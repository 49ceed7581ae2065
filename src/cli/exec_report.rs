//! `cellkeep exec --json`: the report of `POST /v1/execute`.

use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;

use super::options::{SandboxArgs, write_durably};
use crate::ids;
use crate::kernels::KernelSpec;
use crate::manager::printable;
use crate::policy::NetworkPolicy;
use crate::report::{ExecutionReport, Finished, KeptFile, MAX_FILE_BYTES, Surroundings};
use crate::session::{EventBody, ExecutionResult};
use serde_json::Value;

/// Files that the execution leaves, as they come.
#[derive(Default)]
pub(super) struct CollectedFiles {
    files: Vec<KeptFile>,
    bytes: u64,
}

impl CollectedFiles {
    /// Keeps the file of an event. A later version of a file replaces an earlier one.
    pub fn add(&mut self, body: &EventBody) {
        let EventBody::ArtifactFile { change, data } = body else { return };
        if let Some(place) = self.files.iter().position(|file| file.change.path == change.path) {
            let former = self.files.swap_remove(place);
            self.bytes -= former.content.map_or(0, |content| content.len() as u64);
        }
        let fits = change.artifact && self.bytes + data.len() as u64 <= MAX_FILE_BYTES;
        let content = fits.then(|| data.to_vec());
        self.bytes += content.as_ref().map_or(0, |content| content.len() as u64);
        self.files.push(KeptFile { change: change.clone(), content });
    }

    /// Writes the files into a folder, and returns their paths. A file that was not kept is left out with a warning.
    pub fn write(&self, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let mut written = Vec::new();
        for KeptFile { change, content } in &self.files {
            // The sandbox chooses the path.
            let is_inside = Path::new(&change.path).components().all(|part| matches!(part, Component::Normal(_)));
            let Some(content) = content.as_ref().filter(|_| is_inside) else {
                let reason = change.not_kept.as_deref().unwrap_or("all files together are too large");
                eprint_line!("warning: {} is left out: {reason}", printable(&change.path));
                continue;
            };
            let path = folder.join(&change.path);
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            write_durably(&path, content)?;
            written.push(path);
        }
        Ok(written)
    }
}

/// What was run.
pub(super) struct Ran<'a> {
    pub kernel: &'a KernelSpec,
    pub code: &'a str,
    pub patterns: &'a [String],
    pub timeout_seconds: f64,
}

/// The report of the execution. Its id is of no session: the sandbox of the command is gone.
pub(super) fn report(
    ran: &Ran<'_>,
    sandbox: &SandboxArgs,
    outputs: &[Value],
    result: &ExecutionResult,
    files: CollectedFiles,
) -> ExecutionReport {
    let mut kept = files.files;
    kept.sort_by(|one, other| one.change.path.cmp(&other.change.path));
    let surroundings = Surroundings {
        names: Vec::new(),
        files: sandbox.file_names(),
        has_network: *sandbox.network() != NetworkPolicy::None,
        memory_mb: sandbox.limits(ran.kernel).memory_mb,
        timeout_seconds: ran.timeout_seconds,
    };
    ExecutionReport::new(Finished {
        execution_id: ids::random_uuid(),
        language: &ran.kernel.language,
        code: ran.code,
        result,
        outputs,
        files: kept,
        patterns: ran.patterns,
        sandbox_peak: None,
        surroundings: &surroundings,
    })
}
