//! Stage 2: injects the parameters and applies what tools' marks mean for this run.

use std::path::Path;

use anyhow::bail;
use serde_json::Value;

use super::load::LoadedNotebook;
use super::papermill;
use super::plan::Job;
use super::progress::NotebookProgress;
use super::settings::Settings;
use crate::cli::nbval;
use crate::kernels::KernelSpec;
use crate::notebook::Notebook;
use crate::notebook::parameters::{self, InjectionPoint, Parameters};
use crate::output::StreamStyle;

/// A notebook that is ready to run.
pub(super) struct ParameterizedNotebook {
    pub notebook: Notebook,
    pub kernel: &'static KernelSpec,
    pub earlier_record: Option<Value>,
    pub parameters: Parameters,
    /// The packages that it says it needs, if they are installed or shown.
    pub needed_packages: Vec<String>,
}

impl ParameterizedNotebook {
    pub fn new(loaded: LoadedNotebook, settings: &Settings, job: &Job, progress: &NotebookProgress) -> anyhow::Result<Self> {
        let LoadedNotebook { mut notebook, kernel, earlier_record, needed_packages } = loaded;
        let mut parameters = settings.parameters.clone();
        let undeclared = undeclared(&notebook, kernel, &parameters);
        if !undeclared.is_empty() {
            let message = format!("the notebook declares no parameter {}", undeclared.join(", "));
            if settings.strict_parameters {
                bail!("{message}");
            }
            progress.notice(&format!("warning: {message}; it is injected all the same"));
        }
        settings.parameter_args.add_paths(&mut parameters, &job.source, job.target.as_deref().unwrap_or(Path::new("")));
        if !parameters.is_empty() && parameters::injection_point(&notebook) == InjectionPoint::Top {
            progress.notice("warning: no cell is tagged `parameters`, so the parameters go before the first cell");
        }
        parameters::inject(&mut notebook, &kernel.language, &parameters)?;
        // nbclient leaves error markers in the notebook; nbval compares cells by their index, which removal would shift.
        if settings.style != StreamStyle::Nbclient && !settings.nbval {
            papermill::remove_error_markers(&mut notebook);
        }
        if settings.nbval {
            nbval::apply_marks(&mut notebook)?;
        }
        if settings.report_mode {
            papermill::hide_sources(&mut notebook)?;
        }
        Ok(Self { notebook, kernel, earlier_record, parameters, needed_packages })
    }
}

/// The given parameters that the notebook does not declare.
fn undeclared(notebook: &Notebook, kernel: &KernelSpec, parameters: &Parameters) -> Vec<String> {
    let declared = match parameters::declared(notebook, &kernel.language) {
        Some(declared) => declared,
        None if parameters::injection_point(notebook) == InjectionPoint::Top => Vec::new(),
        None => return Vec::new(),
    };
    let names = parameters.iter().map(|(name, _)| name);
    names.filter(|name| !declared.iter().any(|one| one.name == **name)).cloned().collect()
}
