//! The stages that one notebook goes through: load → parameterize → start → execute → record → write.
//!
//! Each stage is a struct in a file of its name and consumes the one before it. A notebook whose session started is written
//! in any case: with the outputs until then, whatever failed.

use std::sync::Arc;
use std::time::Instant;

use super::execute::ExecutedNotebook;
use super::load::LoadedNotebook;
use super::outcome::Outcome;
use super::parameterize::ParameterizedNotebook;
use super::plan::Job;
use super::progress::ProgressDisplay;
use super::record::RecordedNotebook;
use super::settings::Settings;
use super::start::StartedKernel;
use super::write::WrittenNotebook;
use crate::cli::Failure;
use crate::cli::print::explain;
use crate::cli::signals::SignalForwarder;
use crate::notebook::Notebook;

/// Runs notebooks one by one; clones share everything.
#[derive(Clone)]
pub(in crate::cli) struct Pipeline {
    pub settings: Arc<Settings>,
    pub signals: Arc<SignalForwarder>,
    pub display: ProgressDisplay,
}

impl Pipeline {
    /// Runs one notebook and writes it. The notebook is `None` when a stage failed; the outcome says why.
    pub async fn run(&self, job: &Job) -> (Outcome, Option<Notebook>) {
        let started = Instant::now();
        let mut outcome = Outcome::new(&job.source, &job.run_id);
        outcome.target.clone_from(&job.target);
        let notebook = match self.run_stages(job, &mut outcome).await {
            Ok(notebook) => Some(notebook),
            Err(failure) => {
                outcome.exit = failure.exit;
                outcome.failure = Some(explain(&failure.error));
                None
            }
        };
        outcome.total_time = started.elapsed();
        (outcome, notebook)
    }

    async fn run_stages(&self, job: &Job, outcome: &mut Outcome) -> Result<Notebook, Failure> {
        let settings = &*self.settings;
        let progress = self.display.notebook(&job.source, job.target.as_deref());
        let loaded = LoadedNotebook::load(settings, job, &progress).map_err(Failure::usage)?;
        let parameterized = ParameterizedNotebook::new(loaded, settings, job, &progress).map_err(Failure::usage)?;
        outcome.parameters = parameterized.parameters.clone();
        let started = StartedKernel::start(&parameterized, settings, &self.signals, &progress).await?;
        outcome.ready_after = started.ready_after;
        let executed = ExecutedNotebook::execute(parameterized, started, settings, &self.signals, progress).await;
        let recorded = RecordedNotebook::record(executed, settings, job);
        Ok(WrittenNotebook::write(recorded, job, outcome).await?.notebook)
    }
}
