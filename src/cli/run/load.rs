//! Stage 1: reads the notebook file and finds its kernel.

use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use super::plan::Job;
use super::progress::NotebookProgress;
use super::settings::Settings;
use crate::cli::notebook_file::read_notebook;
use crate::cli::packages;
use crate::kernels::{self, KernelSpec};
use crate::manager::run_record;
use crate::notebook::{self, Notebook};
use crate::output::StreamStyle;
use crate::policy::{PackageRequest, PackageRequestError};

pub(super) struct LoadedNotebook {
    pub notebook: Notebook,
    pub kernel: &'static KernelSpec,
    /// The record of an earlier run (`metadata.cellkeep`), which `--frozen` compares with.
    pub earlier_record: Option<Value>,
    /// The packages that it says it needs, if they are installed or shown.
    pub needed_packages: Vec<String>,
}

/// The packages of a `requirements.txt` beside the notebook.
fn beside(source: &Path) -> anyhow::Result<Vec<String>> {
    let path = source.with_file_name("requirements.txt");
    if source == Path::new("-") || !path.is_file() {
        return Ok(Vec::new());
    }
    let text = packages::read(&path)?;
    let request = PackageRequest::new(&[], Some(&text)).with_context(|| path.display().to_string());
    match request {
        Ok(request) => Ok(request.requirements.into_iter().collect()),
        Err(error) if error.downcast_ref() == Some(&PackageRequestError::Empty) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
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
        let mut needed_packages = Vec::new();
        if kernel.language == "python" && (settings.install || settings.inspect) {
            needed_packages = notebook::requirements(&notebook);
            match beside(&job.source) {
                Ok(more) => needed_packages.extend(more),
                Err(error) if settings.install => return Err(error),
                Err(_) => {}
            }
        }
        Ok(Self { notebook, kernel, earlier_record, needed_packages })
    }
}
