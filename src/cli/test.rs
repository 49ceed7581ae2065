//! `cellkeep test`: runs notebooks and compares their outputs with the stored ones.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use super::nbval::{CellMark, SanitizeRules, differences};
use super::notebook_file::{read_notebook, save};
use super::options::{SandboxArgs, parse_seconds};
use super::print::explain;
use super::run::{
    Job, Outcome, ParameterArgs, Pipeline, ProgressDisplay, ProgressMode, ReportArgs, Settings, find_notebooks, print_table,
    run_jobs, worst,
};
use super::signals::Signals;
use super::{Exit, Failure};
use crate::config::Paths;
use crate::ids;
use crate::notebook::Notebook;
use crate::notebook::parameters::Parameters;
use crate::output::StreamStyle;
use crate::runner::CellReport;
use crate::session::ExecutionStatus;

/// Run notebooks and compare their outputs with the stored ones, as nbval does: by type, with streams joined.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cellkeep test notebooks/ -j 4
  cellkeep test analysis.ipynb --sanitize rules.cfg --junit results.xml
  cellkeep test analysis.ipynb --update                store the new outputs

Cells are marked by tags, or by a comment on a line of its own:
  nbval-ignore-output     NBVAL_IGNORE_OUTPUT       run it, do not compare
  nbval-check-output      NBVAL_CHECK_OUTPUT        compare it also with --lax
  nbval-raises-exception  NBVAL_RAISES_EXCEPTION    it may raise (also: raises-exception)
  nbval-skip              NBVAL_SKIP                do not run it (also: skip-execution)
A cell that is stored without an execution count runs and is not compared.

A file of rules has pairs of lines, applied in order, and optional section headers:
  [dates]
  regex: \\d{4}-\\d\\d-\\d\\d
  replace: DATE

Exit codes: 0 all outputs as stored, 1 a cell differs or failed, 2 usage or unreadable notebook, 3 no sandbox,
            124 a cell timed out, 130 interrupted, 138 the kernel died")]
pub(super) struct TestArgs {
    /// Notebooks, or folders with notebooks
    #[arg(value_name = "NOTEBOOK|DIR", required = true)]
    notebooks: Vec<PathBuf>,
    /// How many notebooks run at once
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Start no further notebook after one has failed
    #[arg(long)]
    fail_fast: bool,
    /// Apply the replacement rules of this file to stored and new outputs before comparing
    #[arg(long, value_name = "FILE")]
    sanitize: Vec<PathBuf>,
    /// Also ignore memory addresses, paths in /tmp and file names of cells
    #[arg(long)]
    ignore_volatile: bool,
    /// Compare only cells that are marked with nbval-check-output; the others must only succeed
    #[arg(long)]
    lax: bool,
    /// Store the new outputs in the notebooks
    #[arg(long)]
    update: bool,
    /// The kernel to run on [default: the one that the notebook names]
    #[arg(short, long, value_name = "NAME")]
    kernel: Option<String>,
    /// Time limit of each cell in seconds [default: none]
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// How progress is shown
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressMode,
    #[command(flatten)]
    reports: ReportArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// Install the packages that the notebooks say they need
    #[arg(long, help_heading = "Packages")]
    install: bool,
}

/// How outputs are compared.
struct Comparison {
    rules: SanitizeRules,
    lax: bool,
    update: bool,
    colours: bool,
}

pub(super) async fn test(paths: Paths, args: TestArgs) -> Result<Exit, Failure> {
    let started = Instant::now();
    let many = args.notebooks.len() > 1 || args.notebooks.iter().any(|path| path.is_dir());
    let job = |(source, _)| Job { source, target: None, artifacts: None, run_id: ids::random_uuid() };
    let jobs: Vec<Job> = find_notebooks(&args.notebooks).map_err(Failure::usage)?.into_iter().map(job).collect();
    let comparison = Arc::new(Comparison {
        rules: read_rules(&args.sanitize, args.ignore_volatile).map_err(Failure::usage)?,
        lax: args.lax,
        update: args.update,
        colours: std::io::stderr().is_terminal(),
    });
    // One notebook needs no progress by default: its differences say which cells failed.
    let mode = if many || args.progress == ProgressMode::Lines { args.progress } else { ProgressMode::None };
    let display = ProgressDisplay::new(mode, false, many);
    let settings = Settings {
        paths,
        sandbox: args.sandbox,
        kernel: args.kernel,
        parameters: Parameters::default(),
        parameter_args: ParameterArgs::default(),
        strict_parameters: false,
        timeout: args.timeout,
        start_timeout: None,
        allow_errors: true,
        style: StreamStyle::Terminal,
        report_mode: false,
        error_marker: false,
        seed: None,
        frozen: false,
        no_record: true,
        install: args.install,
        inspect: false,
        nbval: true,
    };
    let signals = Arc::new(Signals::listen()?.forward());
    let pipeline = Pipeline { settings: Arc::new(settings), signals: signals.clone(), display: display.clone() };
    let work = move |job: Job| run_and_compare(pipeline.clone(), comparison.clone(), job);
    let outcomes = run_jobs(jobs, args.jobs, args.fail_fast, &signals, &display, work).await?;
    signals.finish();
    args.reports.write(&outcomes, many).map_err(Failure::usage)?;
    match &outcomes[..] {
        [one] if !many && one.failure.is_some() => {
            eprint_line!("error: {}", one.failure.as_deref().unwrap_or_default());
        }
        all => print_table(all, started.elapsed()),
    }
    Ok(worst(&outcomes))
}

fn read_rules(files: &[PathBuf], volatile: bool) -> anyhow::Result<SanitizeRules> {
    let mut text = String::new();
    for path in files {
        let one = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        SanitizeRules::parse(&one).with_context(|| format!("{} is not a valid file of rules", path.display()))?;
        text.push_str(&one);
        text.push('\n');
    }
    let mut rules = SanitizeRules::parse(&text)?;
    if volatile {
        rules.add_volatile();
    }
    Ok(rules)
}

/// Runs one notebook and compares it with its file.
async fn run_and_compare(pipeline: Pipeline, comparison: Arc<Comparison>, job: Job) -> Outcome {
    let (mut outcome, executed) = pipeline.run(&job).await;
    let Some(executed) = executed else { return outcome };
    let result = read_notebook(&outcome.source).and_then(|stored| compare(&mut outcome, stored, &executed, &comparison));
    if let Err(error) = result {
        (outcome.exit, outcome.failure) = (Exit::Usage, Some(explain(&error)));
        return outcome;
    }
    for (index, text) in &outcome.differences {
        pipeline.display.line(&format!("{}: cell {}: {text}", outcome.source.display(), index + 1));
    }
    if outcome.exit == Exit::Ok && !outcome.differences.is_empty() {
        outcome.exit = Exit::CellFailed;
    }
    outcome
}

fn compare(outcome: &mut Outcome, stored: Notebook, executed: &Notebook, comparison: &Comparison) -> anyhow::Result<()> {
    let cells = outcome.report.as_ref().map(|report| report.cells.clone()).unwrap_or_default();
    for run in &cells {
        let (Some(before), Some(after)) = (stored.cell(run.index), executed.cell(run.index)) else { continue };
        let raised = run.status == ExecutionStatus::Error && !CellMark::Raises.is_on(before);
        if let (true, Some(error)) = (raised, &run.error) {
            outcome.differences.push((run.index, format!("raised {}: {}", error.ename, error.evalue)));
        }
        let is_compared = if comparison.lax { CellMark::Check.is_on(before) } else { !CellMark::Ignore.is_on(before) };
        if is_compared && !raised && before.execution_count().is_some() && !comparison.update {
            outcome.compared += 1;
            let differences = differences(before.outputs(), after.outputs(), &comparison.rules, comparison.colours);
            outcome.differences.extend(differences.into_iter().map(|text| (run.index, text)));
        }
    }
    if comparison.update { update(outcome, stored, executed, &cells) } else { Ok(()) }
}

/// `--update`: stores the new outputs, unless a cell was stopped.
fn update(outcome: &mut Outcome, mut stored: Notebook, executed: &Notebook, cells: &[CellReport]) -> anyhow::Result<()> {
    let is_incomplete = |run: &&CellReport| !matches!(run.status, ExecutionStatus::Ok | ExecutionStatus::Error);
    if let Some(cell) = cells.iter().find(is_incomplete) {
        let index = cell.index + 1;
        outcome.differences.push((cell.index, format!("did not run to its end ({})", cell.status.name())));
        eprint_line!("{}: cell {index} did not run to its end, so nothing is stored", outcome.source.display());
        return Ok(());
    }
    for run in cells {
        let Some(after) = executed.cell(run.index) else { continue };
        let count = after.execution_count().map(u64::cast_signed);
        stored.set_outputs(run.index, after.outputs().to_vec(), count)?;
    }
    save(&outcome.source, &stored)?;
    outcome.target = Some(outcome.source.clone());
    Ok(())
}
