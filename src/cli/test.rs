//! `cellkeep test`: run notebooks and compare what their cells show with what is stored in them.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use super::compare::{Rules, differences};
use super::notebook_file::{read_notebook, save};
use super::options::{SandboxArgs, parse_seconds};
use super::print::explain;
use super::run::{
    Board, GivenArgs, Job, Mark, Outcome, ProgressKind, ReportArgs, Settings, all, notebooks, run_one, table, worst,
};
use super::signals::Signals;
use super::{Exit, Failure};
use crate::config::Paths;
use crate::ids;
use crate::notebook::Notebook;
use crate::notebook::parameters::Parameters;
use crate::output::StreamStyle;
use crate::runner::CellReport;
use crate::session::RunStatus;

/// Run notebooks and compare their outputs with the stored ones, as nbval does: type by type, streams put together.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cellkeep test notebooks/ -j 4
  cellkeep test analysis.ipynb --sanitize rules.cfg --junit results.xml
  cellkeep test analysis.ipynb --update                store what the cells show now

Cells are marked by tags, or by a comment on a line of its own:
  nbval-ignore-output     NBVAL_IGNORE_OUTPUT       run it, do not compare
  nbval-check-output      NBVAL_CHECK_OUTPUT        compare it also with --lax
  nbval-raises-exception  NBVAL_RAISES_EXCEPTION    it may raise (also: raises-exception)
  nbval-skip              NBVAL_SKIP                do not run it (also: skip-execution)
A cell that was stored without having been run is run and not compared.

A file of rules has sections of pairs, in the order in which they are used:
  [dates]
  regex: \\d{4}-\\d\\d-\\d\\d
  replace: DATE

Exit codes: 0 all as stored, 1 a cell differs or failed, 2 usage or unreadable notebook, 3 no sandbox,
            124 a cell timed out, 130 interrupted, 138 the kernel died")]
pub(super) struct TestArgs {
    /// The notebooks, or folders with notebooks
    #[arg(value_name = "NOTEBOOK|DIR", required = true)]
    notebooks: Vec<PathBuf>,
    /// Notebooks that run at once
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Begin no more notebooks after one has failed
    #[arg(long)]
    fail_fast: bool,
    /// Replace by these rules, in stored and in fresh outputs, before comparing
    #[arg(long, value_name = "FILE")]
    sanitize: Vec<PathBuf>,
    /// Also overlook memory addresses, paths in /tmp and file names of cells
    #[arg(long)]
    ignore_volatile: bool,
    /// Compare only cells that are marked to be; the others must only run
    #[arg(long)]
    lax: bool,
    /// Store the fresh outputs in the notebooks
    #[arg(long)]
    update: bool,
    /// The kernel to run on [default: as the notebook says]
    #[arg(short, long, value_name = "NAME")]
    kernel: Option<String>,
    /// Stop a cell after so many seconds [default: never]
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// How progress is shown
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressKind,
    #[command(flatten)]
    reports: ReportArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// How outputs are compared.
struct Comparing {
    rules: Rules,
    lax: bool,
    update: bool,
    colours: bool,
}

pub(super) async fn test(paths: Paths, args: TestArgs) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let many = args.notebooks.len() > 1 || args.notebooks.iter().any(|path| path.is_dir());
    let job = |(source, _)| Job { source, target: None, artifacts: None, run_id: ids::random_uuid() };
    let jobs: Vec<Job> = notebooks(&args.notebooks).map_err(Failure::usage)?.into_iter().map(job).collect();
    let comparing = Arc::new(Comparing {
        rules: rules(&args.sanitize, args.ignore_volatile).map_err(Failure::usage)?,
        lax: args.lax,
        update: args.update,
        colours: std::io::stderr().is_terminal(),
    });
    // What failed is told with its differences.
    let kind = if args.progress == ProgressKind::Lines { ProgressKind::Lines } else { ProgressKind::None };
    let board = Board::new(if many { args.progress } else { kind }, false, many);
    let settings = Arc::new(Settings {
        paths,
        sandbox: args.sandbox,
        kernel: args.kernel,
        parameters: Parameters::default(),
        given: GivenArgs::default(),
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
        nbval: true,
    });
    let following = Arc::new(Signals::listen()?.follow());
    let work = {
        let (following, board) = (following.clone(), board.clone());
        move |job: Job| {
            let (settings, following) = (settings.clone(), following.clone());
            let (board, comparing) = (board.clone(), comparing.clone());
            async move {
                let (outcome, executed) = run_one(&settings, &job, &following, &board).await;
                compared(outcome, executed, &comparing, &board)
            }
        }
    };
    let outcomes = all(jobs, args.jobs, args.fail_fast, &following, &board, work).await?;
    following.finish();
    args.reports.write(&outcomes, many).map_err(Failure::usage)?;
    match &outcomes[..] {
        [one] if !many && one.failure.is_some() => {
            say!("error: {}", one.failure.as_deref().unwrap_or_default());
        }
        all => table(all, begun.elapsed()),
    }
    Ok(worst(&outcomes))
}

fn rules(files: &[PathBuf], volatile: bool) -> anyhow::Result<Rules> {
    let mut text = String::new();
    for path in files {
        let one = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Rules::parse(&one).with_context(|| format!("{} is no file of rules", path.display()))?;
        text.push_str(&one);
        text.push('\n');
    }
    let mut rules = Rules::parse(&text)?;
    if volatile {
        rules.add_volatile();
    }
    Ok(rules)
}

/// Compares an executed notebook with the file that it was.
fn compared(mut outcome: Outcome, executed: Option<Notebook>, comparing: &Comparing, board: &Board) -> Outcome {
    let Some(executed) = executed else { return outcome };
    let result = read_notebook(&outcome.source).and_then(|stored| compare(&mut outcome, stored, &executed, comparing));
    if let Err(error) = result {
        (outcome.exit, outcome.failure) = (Exit::Usage, Some(explain(&error)));
        return outcome;
    }
    for (index, text) in &outcome.differences {
        board.line(&format!("{}: cell {}: {text}", outcome.source.display(), index + 1));
    }
    if outcome.exit == Exit::Ok && !outcome.differences.is_empty() {
        outcome.exit = Exit::CellFailed;
    }
    outcome
}

fn compare(outcome: &mut Outcome, mut stored: Notebook, executed: &Notebook, comparing: &Comparing) -> anyhow::Result<()> {
    let cells = outcome.report.as_ref().map(|report| report.cells.clone()).unwrap_or_default();
    for run in &cells {
        let (Some(before), Some(after)) = (stored.cell(run.index), executed.cell(run.index)) else { continue };
        let raised = run.status == RunStatus::Error && !Mark::Raises.is_on(before);
        if let (true, Some(error)) = (raised, &run.error) {
            outcome.differences.push((run.index, format!("it raised {}: {}", error.ename, error.evalue)));
        }
        let is_compared = if comparing.lax { Mark::Check.is_on(before) } else { !Mark::Ignore.is_on(before) };
        if is_compared && !raised && before.execution_count().is_some() && !comparing.update {
            outcome.compared += 1;
            let found = differences(before.outputs(), after.outputs(), &comparing.rules, comparing.colours);
            outcome.differences.extend(found.into_iter().map(|text| (run.index, text)));
        }
    }
    if comparing.update {
        let was_cut = |run: &&CellReport| !matches!(run.status, RunStatus::Ok | RunStatus::Error);
        if let Some(cut) = cells.iter().find(was_cut) {
            let index = cut.index + 1;
            outcome.differences.push((cut.index, format!("it was not run to its end ({})", cut.status.name())));
            say!("{}: cell {index} was not run to its end, so nothing is stored", outcome.source.display());
            return Ok(());
        }
        for run in &cells {
            let Some(after) = executed.cell(run.index) else { continue };
            let count = after.execution_count().map(u64::cast_signed);
            stored.set_outputs(run.index, after.outputs().to_vec(), count)?;
        }
        save(&outcome.source, &stored)?;
        outcome.target = Some(outcome.source.clone());
    }
    Ok(())
}
