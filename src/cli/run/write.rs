//! Stage 6: writes the executed notebook, its artifacts and its documents, and ends the session.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::outcome::Outcome;
use super::plan::Job;
use super::record::RecordedNotebook;
use crate::cli::Failure;
use crate::cli::export::{LookArgs, Target, write_beside};
use crate::cli::notebook_file::save;
use crate::cli::options::{exit_for, write_artifacts};
use crate::notebook::Notebook;
use crate::output::{Artifact, ArtifactOptions, artifacts};
use crate::runner::RunReport;

/// A notebook that is on disk, with its artifacts. Its session is destroyed.
pub(super) struct WrittenNotebook {
    pub notebook: Notebook,
}

impl WrittenNotebook {
    /// Writes the notebook before anything else can fail, so that the outputs are kept whatever happens next.
    pub async fn write(recorded: RecordedNotebook, job: &Job, outcome: &mut Outcome) -> Result<Self, Failure> {
        let RecordedNotebook { notebook, session, result } = recorded;
        let saved = job.target.as_ref().map_or(Ok(()), |target| save(target, &notebook));
        let destroyed = session.destroy().await;
        saved.map_err(Failure::usage)?;
        let report = result.map_err(Failure::no_sandbox)?;
        outcome.exit = exit_for(report.status());
        if let Some(folder) = &job.artifacts {
            outcome.files = write_artifacts(folder, notebook_artifacts(&notebook, &report)).map_err(Failure::usage)?;
        }
        outcome.report = Some(report);
        destroyed.map_err(Failure::no_sandbox)?;
        Ok(Self { notebook })
    }
}

/// Artifacts of the cells that this run executed, found by id: markers may have shifted the indexes.
fn notebook_artifacts(notebook: &Notebook, report: &RunReport) -> Vec<Artifact> {
    let executed: BTreeSet<&str> = report.cells.iter().map(|cell| cell.id.as_str()).collect();
    let cells = notebook.cells().enumerate().filter(|(_, cell)| executed.contains(cell.id()));
    cells.flat_map(|(index, cell)| artifacts(cell.outputs(), index + 1, ArtifactOptions::default())).collect()
}

/// The documents of `--to`: their formats and looks.
pub(super) struct Documents {
    pub formats: Vec<Target>,
    pub look: LookArgs,
}

impl Documents {
    /// Writes the documents beside the executed notebook. One that goes to standard output has them in the working
    /// directory, as `notebook.*`.
    pub async fn write(&self, job: &Job, notebook: &Notebook) -> anyhow::Result<Vec<PathBuf>> {
        let target = job.target.as_deref().filter(|target| *target != Path::new("-")).unwrap_or(Path::new("notebook.ipynb"));
        write_beside(notebook, target, &self.formats, &self.look).await
    }
}
