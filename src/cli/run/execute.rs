//! Stage 4: runs the cells.

use super::parameterize::ParameterizedNotebook;
use super::progress::NotebookProgress;
use super::settings::Settings;
use super::start::StartedKernel;
use crate::cli::signals::SignalForwarder;
use crate::kernels::KernelSpec;
use crate::manager::Session;
use crate::manager::run_record::EnvironmentRecord;
use crate::notebook::Notebook;
use crate::notebook::parameters::Parameters;
use crate::runner::{Progress, RunError, RunOptions, RunReport, run_notebook};
use crate::wire::content::now_iso8601;

/// A notebook with the outputs of its run, whole or until the session was lost.
pub(super) struct ExecutedNotebook {
    pub notebook: Notebook,
    pub kernel: &'static KernelSpec,
    pub parameters: Parameters,
    pub environment: Option<EnvironmentRecord>,
    /// Still alive; the write stage destroys it.
    pub session: Session,
    /// ISO 8601, UTC.
    pub started_at: String,
    pub result: Result<RunReport, RunError>,
}

impl ExecutedNotebook {
    pub async fn execute(
        parameterized: ParameterizedNotebook,
        started: StartedKernel,
        settings: &Settings,
        signals: &SignalForwarder,
        mut progress: NotebookProgress,
    ) -> Self {
        let ParameterizedNotebook { mut notebook, kernel, parameters, .. } = parameterized;
        let StartedKernel { mut session, environment, forwarding, .. } = started;
        let options = RunOptions {
            timeout: settings.timeout,
            allow_errors: settings.allow_errors,
            stream_style: settings.style,
            output_memory: Some(settings.sandbox.limits(kernel).output_memory()),
            interrupt: signals.interrupt.clone(),
        };
        let started_at = now_iso8601();
        let show = &mut |update: Progress<'_>| progress.update(update);
        let result = run_notebook(&session.handle, &mut session.events, &mut notebook, &options, show).await;
        drop((progress, forwarding));
        Self { notebook, kernel, parameters, environment, session, started_at, result }
    }
}
