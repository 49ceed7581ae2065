//! Stage 1: reads the notebook file and finds its kernel.

use serde_json::Value;

use super::plan::Job;
use super::progress::NotebookProgress;
use super::settings::Settings;
use crate::cli::notebook_file::read_notebook;
use crate::kernels::{self, KernelSpec};
use crate::manager::run_record;
use crate::notebook::Notebook;
use crate::output::StreamStyle;

pub(super) struct LoadedNotebook {
    pub notebook: Notebook,
    pub kernel: &'static KernelSpec,
    /// The record of an earlier run (`metadata.cellkeep`), which `--frozen` compares with.
    pub earlier_record: Option<Value>,
}

impl LoadedNotebook {
    pub fn load(settings: &Settings, job: &Job, progress: &NotebookProgress) -> anyhow::Result<Self> {
        let mut notebook = read_notebook(&job.source)?;
        for warning in notebook.warnings() {
            progress.notice(&format!("warning: {warning}"));
        }
        let kernel = match &settings.kernel {
            Some(name) => kernels::find(name)?,
            None => kernels::for_notebook(notebook.kernelspec_name(), notebook.language())?,
        };
        if notebook.kernelspec_name().is_none() && settings.style != StreamStyle::Nbclient {
            // The executed notebook opens with the kernel that made its outputs.
            notebook.set_kernelspec(kernel.kernelspec_name(), &kernel.display_name, &kernel.language);
        }
        let earlier_record = run_record::record_in(&notebook).cloned();
        Ok(Self { notebook, kernel, earlier_record })
    }
}
