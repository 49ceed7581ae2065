//! `cellkeep run`: run notebooks, write them with their outputs.

mod given;
mod inspect;
mod many;
mod one;
mod plan;
mod report;
mod show;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use clap::{Args, ValueEnum};

pub(super) use self::given::GivenArgs;
pub(super) use self::many::all;
pub(super) use self::one::{Mark, Settings, run_one};
pub(super) use self::plan::{Job, notebooks};
pub(super) use self::report::{Outcome, json_of, junit, table, worst};
pub(super) use self::show::{Board, ProgressKind};
use super::export::{LookArgs, Target, write_beside};
use super::options::{SandboxArgs, parse_seconds, write_safely};
use super::print::explain;
use super::signals::Signals;
use super::{Exit, Failure};
use crate::config::Paths;
use crate::ids;
use crate::notebook::Notebook;
use crate::notebook::parameters::Parameters;
use crate::output::StreamStyle;

/// Run notebooks in sandboxes and write them with their outputs. A notebook is written also when a cell fails.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cellkeep run analysis.ipynb                          writes analysis.out.ipynb
  cellkeep run analysis.ipynb -o done.ipynb --artifacts plots
  cellkeep run - < in.ipynb > out.ipynb
  cellkeep run report.ipynb -p year 2026 -r region 07 -f params.yaml -o 'out/{region}-{year}.ipynb'
  cellkeep run report.ipynb --inspect                  what parameters it takes, without running it
  cellkeep run report.ipynb --to html,pdf --no-input   also report.out.html and report.out.pdf
  cellkeep run notebooks/ -j 4 --output-dir done --junit results.xml
  cellkeep run big.ipynb --memory 4g --cpus 2 --timeout 600 --file data.csv
  cellkeep run paper.out.ipynb --frozen                only with the same image and packages as before

Exit codes: 0 all cells ok, 1 a cell failed, 2 usage or unreadable notebook, 3 no sandbox,
            124 a cell timed out, 130 interrupted, 138 the kernel died; of several notebooks, the worst")]
pub(super) struct RunArgs {
    /// The notebooks, folders with notebooks, or - for standard input
    #[arg(value_name = "NOTEBOOK|DIR|-", required = true)]
    notebooks: Vec<PathBuf>,
    /// Where to write it, or - for standard output; {NAME} is a parameter, {pm.run_uuid}, {pm.current_datetime_local} and
    /// {pm.current_datetime_utc} are the run's [default: NOTEBOOK.out.ipynb]
    #[arg(short, long, value_name = "OUT|-")]
    output: Option<PathBuf>,
    /// Write the notebooks into this folder, by the names they have; below folders that were named, as they lie there
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    output_dir: Option<PathBuf>,
    /// Notebooks that run at once
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Begin no more notebooks after one has failed
    #[arg(long)]
    fail_fast: bool,
    /// The kernel to run on [default: as the notebook says]
    #[arg(short, long, value_name = "NAME")]
    kernel: Option<String>,
    #[command(flatten)]
    given: GivenArgs,
    /// Refuse parameters that the notebook does not declare
    #[arg(long, help_heading = "Parameters")]
    strict_parameters: bool,
    /// Show what parameters the notebook takes and the cell that would be put in, and run nothing
    #[arg(long, help_heading = "Parameters")]
    inspect: bool,
    /// Stop a cell after so many seconds [default: never]
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// Give up when the kernel is not ready after so many seconds [default: 120]
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    start_timeout: Option<Duration>,
    /// Go on after a cell that fails
    #[arg(long)]
    allow_errors: bool,
    /// Store outputs just as another tool does: nbclient keeps each piece of a stream as an output of its own, drops help
    /// (`len?`), and keeps the state of closed widgets
    #[arg(long, value_enum, value_name = "TOOL")]
    compat: Option<Compat>,
    /// Hide the code of the written notebook (jupyter.source_hidden)
    #[arg(long)]
    report_mode: bool,
    /// Mark the cell that failed, and put a note about it on top
    #[arg(long)]
    error_marker: bool,
    /// Seed the random numbers of Python (random, numpy, hashes), R, Julia and bash, before the first cell and unseen by it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)), help_heading = "Reproducibility")]
    seed: Option<u32>,
    /// Refuse unless the image or environment and all packages are those that the notebook recorded
    #[arg(long, help_heading = "Reproducibility")]
    frozen: bool,
    /// Do not record the run in the notebook (metadata.cellkeep)
    #[arg(long, help_heading = "Reproducibility")]
    no_record: bool,
    /// Write documents of the executed notebook beside it: html, markdown, script, pdf
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FORMAT,...")]
    to: Vec<Target>,
    #[command(flatten)]
    look: LookArgs,
    /// Write images, documents and plot specifications into this folder; of several notebooks, into a folder for each
    #[arg(long, value_name = "DIR")]
    artifacts: Option<PathBuf>,
    /// Show the output of the cells as it comes
    #[arg(short, long)]
    verbose: bool,
    /// How progress is shown
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressKind,
    #[command(flatten)]
    reports: ReportArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// Reports for other programs.
#[derive(Args)]
pub(super) struct ReportArgs {
    /// Print one JSON report on standard output
    #[arg(long, help_heading = "Reports")]
    pub json: bool,
    /// Write the JSON report into this file
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    pub report: Option<PathBuf>,
    /// Write a JUnit report, which most CI systems show, into this file
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    pub junit: Option<PathBuf>,
}

/// A tool whose form of outputs is asked for.
#[derive(Clone, Copy, ValueEnum)]
enum Compat {
    Nbclient,
}

impl ReportArgs {
    /// Writes what is asked for.
    pub fn write(&self, outcomes: &[Outcome], many: bool) -> anyhow::Result<()> {
        let json = json_of(outcomes, many);
        if let Some(path) = &self.report {
            write_safely(path, format!("{json:#}\n").as_bytes())?;
        }
        if let Some(path) = &self.junit {
            write_safely(path, junit(outcomes).as_bytes())?;
        }
        if self.json {
            tell!("{json}");
        }
        Ok(())
    }
}

pub(super) async fn run(paths: Paths, args: RunArgs) -> Result<Exit, Failure> {
    let begun = Instant::now();
    if args.reports.json && args.output.as_deref() == Some(Path::new("-")) {
        return Err(Failure::usage(anyhow!("--json and -o - both want standard output; give the notebook a file")));
    }
    let many = args.notebooks.len() > 1 || args.notebooks.iter().any(|path| path.is_dir());
    let board = Board::new(args.progress, args.verbose, many);
    let parameters = args.given.read().map_err(Failure::usage)?;
    let jobs = plan(&args, &parameters, many).map_err(Failure::usage)?;
    let RunArgs { reports, jobs: at_once, fail_fast, inspect, to, look, .. } = args;
    let documents = Arc::new((to, look));
    let settings = Settings {
        paths,
        sandbox: args.sandbox,
        kernel: args.kernel,
        parameters,
        given: args.given,
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
        nbval: false,
    };
    if inspect {
        return inspect::inspect(&settings, &jobs, &board, reports.json).map_err(Failure::usage);
    }
    for target in jobs.iter().filter_map(|job| job.target.as_deref()) {
        plan::check_target(target).map_err(Failure::usage)?;
    }
    let (following, settings) = (Arc::new(Signals::listen()?.follow()), Arc::new(settings));
    let work = {
        let (following, board) = (following.clone(), board.clone());
        move |job: Job| {
            let (settings, following, board) = (settings.clone(), following.clone(), board.clone());
            let documents = documents.clone();
            async move {
                let (mut outcome, notebook) = run_one(&settings, &job, &following, &board).await;
                if let Some(notebook) = notebook
                    && let Err(error) = write_documents(&documents, &job, &notebook, &mut outcome).await
                {
                    (outcome.exit, outcome.failure) = (Exit::Usage, Some(explain(&error)));
                }
                outcome
            }
        }
    };
    let outcomes = all(jobs, at_once, fail_fast, &following, &board, work).await?;
    following.finish();
    reports.write(&outcomes, many).map_err(Failure::usage)?;
    match &outcomes[..] {
        [one] if !many => {
            if let Some(failure) = &one.failure {
                return Err(Failure { exit: one.exit, error: anyhow!("{failure}") });
            }
            if !reports.json {
                one.lines();
            }
        }
        all => table(all, begun.elapsed()),
    }
    Ok(worst(&outcomes))
}

/// Makes the documents that are asked for of an executed notebook.
async fn write_documents(
    (to, look): &(Vec<Target>, LookArgs),
    job: &Job,
    notebook: &Notebook,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    // What goes to standard output has its documents here, by the notebook's name.
    let target = job.target.as_deref().filter(|target| *target != Path::new("-")).unwrap_or(Path::new("notebook.ipynb"));
    outcome.files.extend(write_beside(notebook, target, to, look).await?);
    Ok(())
}

/// What is to be run, and where each goes.
fn plan(args: &RunArgs, parameters: &Parameters, many: bool) -> anyhow::Result<Vec<Job>> {
    if many && args.output.is_some() {
        bail!("-o is for one notebook; several go into a folder with --output-dir");
    }
    if many && args.notebooks.iter().any(|path| path == Path::new("-")) {
        bail!("standard input is one notebook, and cannot be run with others");
    }
    let mut targets = HashSet::new();
    let mut jobs = Vec::new();
    for (source, below) in notebooks(&args.notebooks)? {
        let run_id = ids::random_uuid();
        let fill = |path: &Path| plan::filled(path, parameters, &run_id);
        let source = fill(&source)?;
        let target = match (&args.output, &args.output_dir) {
            (Some(output), _) => fill(output)?,
            (None, Some(folder)) => fill(folder)?.join(&below),
            (None, None) => plan::default_output(&source),
        };
        if !targets.insert(target.clone()) {
            bail!("two of the notebooks would be written to {}; run them one by one", target.display());
        }
        let folder = |folder: &PathBuf| if many { folder.join(below.with_extension("")) } else { folder.clone() };
        jobs.push(Job { source, target: Some(target), artifacts: args.artifacts.as_ref().map(folder), run_id });
    }
    Ok(jobs)
}
