//! How the run of one notebook went.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::Exit;
use crate::cli::options::exit_for;
use crate::notebook::parameters::Parameters;
use crate::runner::RunReport;

/// The result of a notebook's run, for reports and the exit code.
pub(in crate::cli) struct Outcome {
    pub source: PathBuf,
    pub target: Option<PathBuf>,
    pub run_id: String,
    pub parameters: Parameters,
    pub exit: Exit,
    /// Why the notebook did not run, or not to its end, where its cells do not say it.
    pub failure: Option<String>,
    pub report: Option<RunReport>,
    /// Artifacts and documents that were written.
    pub files: Vec<PathBuf>,
    /// From the start of the session until its kernel was ready.
    pub ready_after: Duration,
    pub total_time: Duration,
    /// `cellkeep test`: what differs from the stored outputs, each with the index of its cell.
    pub differences: Vec<(usize, String)>,
    /// `cellkeep test`: how many cells were compared.
    pub compared: usize,
}

impl Outcome {
    pub fn new(source: &Path, run_id: &str) -> Self {
        Self {
            source: source.to_owned(),
            target: None,
            run_id: run_id.to_owned(),
            parameters: Parameters::default(),
            exit: Exit::Ok,
            failure: None,
            report: None,
            files: Vec::new(),
            ready_after: Duration::ZERO,
            total_time: Duration::ZERO,
            differences: Vec::new(),
            compared: 0,
        }
    }

    /// The outcome of a notebook that was not started.
    pub fn not_started(source: &Path, run_id: &str, exit: Exit, why: &str) -> Self {
        Self { exit, failure: Some(why.to_owned()), ..Self::new(source, run_id) }
    }

    /// The status as reports name it.
    pub fn status(&self) -> &'static str {
        match (&self.report, &self.failure) {
            (_, Some(_)) if self.exit == Exit::Interrupted => "interrupted",
            (_, Some(_)) => "not_run",
            (Some(report), None) if exit_for(report.status()) != Exit::Ok => report.status().name(),
            (Some(_), None) if !self.differences.is_empty() => "different",
            (Some(report), None) => report.status().name(),
            (None, None) => "cancelled",
        }
    }
}

/// The exit code of several notebooks: the worst. One that could not run at all outranks a failed cell.
pub(in crate::cli) fn worst(outcomes: &[Outcome]) -> Exit {
    let order = [Exit::Interrupted, Exit::NoSandbox, Exit::Usage, Exit::KernelDied, Exit::TimedOut, Exit::CellFailed];
    order.into_iter().find(|exit| outcomes.iter().any(|outcome| outcome.exit == *exit)).unwrap_or(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_notebooks_exit_with_worst_code() {
        let outcome = |exit| Outcome { exit, ..Outcome::new(Path::new("x"), "") };
        assert_eq!(worst(&[]), Exit::Ok);
        assert_eq!(worst(&[outcome(Exit::CellFailed), outcome(Exit::KernelDied), outcome(Exit::Ok)]), Exit::KernelDied);
    }
}
