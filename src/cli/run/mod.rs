//! `cellkeep run`: runs notebooks and writes them with their outputs. [`pipeline`] lists the stages.

mod execute;
mod inspect;
mod junit;
mod load;
mod outcome;
mod papermill;
mod parallel;
mod parameter_args;
mod parameterize;
mod pipeline;
mod plan;
mod progress;
mod record;
mod report;
mod settings;
mod start;
mod write;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use clap::{Args, ValueEnum};

use self::junit::junit;
pub(super) use self::outcome::{Outcome, worst};
pub(super) use self::parallel::run_jobs;
pub(super) use self::parameter_args::ParameterArgs;
pub(super) use self::pipeline::Pipeline;
pub(super) use self::plan::{Job, find_notebooks};
pub(super) use self::progress::{ProgressDisplay, ProgressMode};
use self::report::json_of;
pub(super) use self::report::print_table;
pub(super) use self::settings::Settings;
use self::write::Documents;
use super::export::{LookArgs, Target};
use super::options::{SandboxArgs, parse_seconds, write_durably};
use super::print::explain;
use super::signals::Signals;
use super::{Exit, Failure};
use crate::config::Paths;
use crate::ids;
use crate::notebook::parameters::Parameters;
use crate::output::StreamStyle;

/// Run notebooks in sandboxes and write them with their outputs. A notebook is also written when a cell fails.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cellkeep run analysis.ipynb                          writes analysis.out.ipynb
  cellkeep run analysis.ipynb -o done.ipynb --artifacts plots
  cellkeep run - < in.ipynb > out.ipynb
  cellkeep run report.ipynb -p year 2026 -r region 07 -f params.yaml -o 'out/{region}-{year}.ipynb'
  cellkeep run report.ipynb --inspect                  show its parameters, run nothing
  cellkeep run report.ipynb --to html,pdf --no-input   also writes report.out.html and report.out.pdf
  cellkeep run notebooks/ -j 4 --output-dir done --junit results.xml
  cellkeep run big.ipynb --memory 4g --cpus 2 --timeout 600 --file data.csv
  cellkeep run analysis.ipynb --install                with the packages that it says it needs
  cellkeep run analysis.ipynb --packages 'polars>=1' --requirements more.txt
  cellkeep run paper.out.ipynb --frozen                fail unless image and packages are as recorded

Exit codes: 0 all cells ok, 1 a cell failed, 2 usage or unreadable notebook, 3 no sandbox,
            124 a cell timed out, 130 interrupted, 138 the kernel died; of several notebooks: the worst")]
pub(super) struct RunArgs {
    /// Notebooks, folders with notebooks, or - for standard input
    #[arg(value_name = "NOTEBOOK|DIR|-", required = true)]
    notebooks: Vec<PathBuf>,
    /// The file to write, or - for standard output. {NAME} is replaced by a parameter; {pm.run_uuid},
    /// {pm.current_datetime_local} and {pm.current_datetime_utc} by values of the run [default: NOTEBOOK.out.ipynb]
    #[arg(short, long, value_name = "OUT|-")]
    output: Option<PathBuf>,
    /// Write the notebooks into this folder under their own names; subfolders of named folders are kept
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    output_dir: Option<PathBuf>,
    /// How many notebooks run at once
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Start no further notebook after one has failed
    #[arg(long)]
    fail_fast: bool,
    /// The kernel to run on [default: the one that the notebook names]
    #[arg(short, long, value_name = "NAME")]
    kernel: Option<String>,
    #[command(flatten)]
    parameters: ParameterArgs,
    /// Fail if a parameter is not declared by the notebook
    #[arg(long, help_heading = "Parameters")]
    strict_parameters: bool,
    /// Install the packages that the notebook says it needs: in a PEP 723 block, in `%pip install` cells at the top, in a
    /// requirements.txt beside it
    #[arg(long, help_heading = "Packages")]
    install: bool,
    /// Show the packages that the notebook needs, the parameters that it declares and the cell that would be injected; run nothing
    #[arg(long, help_heading = "Parameters")]
    inspect: bool,
    /// Time limit of each cell in seconds [default: none]
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// Fail if the kernel is not ready after this many seconds [default: 120]
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    start_timeout: Option<Duration>,
    /// Continue after a failed cell
    #[arg(long)]
    allow_errors: bool,
    /// Store outputs exactly as another tool does. nbclient stores each stream message as an output of its own, drops help
    /// (`len?`), and keeps the state of closed widgets
    #[arg(long, value_enum, value_name = "TOOL")]
    compat: Option<Compat>,
    /// Hide the code in the written notebook (jupyter.source_hidden)
    #[arg(long)]
    report_mode: bool,
    /// Mark the failed cell, and add a note with a link to it on top
    #[arg(long)]
    error_marker: bool,
    /// Seed the random number generators of Python (random, numpy, hashes), R, Julia and bash before the first cell
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)), help_heading = "Reproducibility")]
    seed: Option<u32>,
    /// Fail unless the image or environment and all packages are those that the notebook recorded
    #[arg(long, help_heading = "Reproducibility")]
    frozen: bool,
    /// Do not record the run in the notebook (metadata.cellkeep)
    #[arg(long, help_heading = "Reproducibility")]
    no_record: bool,
    /// Also export the executed notebook, beside it: html, markdown, script, pdf
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FORMAT,...")]
    to: Vec<Target>,
    #[command(flatten)]
    look: LookArgs,
    /// Write images, documents and plot specifications into this folder; with several notebooks, into a subfolder for each
    #[arg(long, value_name = "DIR")]
    artifacts: Option<PathBuf>,
    /// Show the output of the cells as it arrives
    #[arg(short, long)]
    verbose: bool,
    /// How progress is shown
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressMode,
    #[command(flatten)]
    reports: ReportArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// Reports for other programs.
#[derive(Args)]
pub(super) struct ReportArgs {
    /// Print a JSON report on standard output
    #[arg(long, help_heading = "Reports")]
    pub json: bool,
    /// Write the JSON report to this file
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    pub report: Option<PathBuf>,
    /// Write a JUnit report to this file
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    pub junit: Option<PathBuf>,
}

/// A tool whose output format is imitated.
#[derive(Clone, Copy, ValueEnum)]
enum Compat {
    Nbclient,
}

impl ReportArgs {
    pub fn write(&self, outcomes: &[Outcome], many: bool) -> anyhow::Result<()> {
        let json = json_of(outcomes, many);
        if let Some(path) = &self.report {
            write_durably(path, format!("{json:#}\n").as_bytes())?;
        }
        if let Some(path) = &self.junit {
            write_durably(path, junit(outcomes).as_bytes())?;
        }
        if self.json {
            print_line!("{json}");
        }
        Ok(())
    }
}

pub(super) async fn run(paths: Paths, args: RunArgs) -> Result<Exit, Failure> {
    let started = Instant::now();
    if args.reports.json && args.output.as_deref() == Some(Path::new("-")) {
        return Err(Failure::usage(anyhow!("--json and -o - both write to standard output; give -o a file")));
    }
    let many = args.notebooks.len() > 1 || args.notebooks.iter().any(|path| path.is_dir());
    let display = ProgressDisplay::new(args.progress, args.verbose, many);
    let parameters = args.parameters.read().map_err(Failure::usage)?;
    let jobs = plan_jobs(&args, &parameters, many).map_err(Failure::usage)?;
    let RunArgs { reports, jobs: concurrency, fail_fast, inspect, to, look, .. } = args;
    let settings = Settings {
        paths,
        sandbox: args.sandbox,
        kernel: args.kernel,
        parameters,
        parameter_args: args.parameters,
        strict_parameters: args.strict_parameters,
        timeout: args.timeout,
        start_timeout: args.start_timeout,
        allow_errors: args.allow_errors,
        style: args.compat.map_or(StreamStyle::Terminal, |Compat::Nbclient| StreamStyle::Nbclient),
        report_mode: args.report_mode,
        error_marker: args.error_marker,
        seed: args.seed,
        frozen: args.frozen,
        no_record: args.no_record,
        install: args.install,
        inspect,
        nbval: false,
    };
    if settings.inspect {
        return inspect::inspect(&settings, &jobs, &display, reports.json).map_err(Failure::usage);
    }
    for target in jobs.iter().filter_map(|job| job.target.as_deref()) {
        plan::check_target(target).map_err(Failure::usage)?;
    }
    let signals = Arc::new(Signals::listen()?.forward());
    let pipeline = Pipeline { settings: Arc::new(settings), signals: signals.clone(), display: display.clone() };
    let documents = Arc::new(Documents { formats: to, look });
    let work = move |job: Job| run_and_export(pipeline.clone(), documents.clone(), job);
    let outcomes = run_jobs(jobs, concurrency, fail_fast, &signals, &display, work).await?;
    signals.finish();
    reports.write(&outcomes, many).map_err(Failure::usage)?;
    match &outcomes[..] {
        [one] if !many => {
            if let Some(failure) = &one.failure {
                return Err(Failure { exit: one.exit, error: anyhow!("{failure}") });
            }
            if !reports.json {
                one.print_summary();
            }
        }
        all => print_table(all, started.elapsed()),
    }
    Ok(worst(&outcomes))
}

async fn run_and_export(pipeline: Pipeline, documents: Arc<Documents>, job: Job) -> Outcome {
    let (mut outcome, notebook) = pipeline.run(&job).await;
    if let Some(notebook) = notebook {
        match documents.write(&job, &notebook).await {
            Ok(files) => outcome.files.extend(files),
            Err(error) => (outcome.exit, outcome.failure) = (Exit::Usage, Some(explain(&error))),
        }
    }
    outcome
}

/// Finds the notebooks and gives each its targets.
fn plan_jobs(args: &RunArgs, parameters: &Parameters, many: bool) -> anyhow::Result<Vec<Job>> {
    if many && args.output.is_some() {
        bail!("-o names the file of one notebook; use --output-dir for several");
    }
    if many && args.notebooks.iter().any(|path| path == Path::new("-")) {
        bail!("standard input (-) cannot be combined with other notebooks");
    }
    let mut targets = HashSet::new();
    let mut jobs = Vec::new();
    for (source, below) in find_notebooks(&args.notebooks)? {
        let run_id = ids::random_uuid();
        let expand = |path: &Path| plan::expand_placeholders(path, parameters, &run_id);
        let source = expand(&source)?;
        let target = match (&args.output, &args.output_dir) {
            (Some(output), _) => expand(output)?,
            (None, Some(folder)) => expand(folder)?.join(&below),
            (None, None) => plan::default_output(&source),
        };
        if !targets.insert(target.clone()) {
            bail!("two of the notebooks would be written to {}; run them separately", target.display());
        }
        let folder = |folder: &PathBuf| if many { folder.join(below.with_extension("")) } else { folder.clone() };
        jobs.push(Job { source, target: Some(target), artifacts: args.artifacts.as_ref().map(folder), run_id });
    }
    Ok(jobs)
}
