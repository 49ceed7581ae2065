//! `cellkeep run`: run a notebook, write it with its outputs.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::options::{SandboxArgs, behind_links, exit_of, parse_seconds, write_artifacts, write_whole};
use super::print::{as_text, explain};
use super::signals::Signals;
use super::{Exit, Failure};
use crate::config::Paths;
use crate::kernels;
use crate::manager::Session;
use crate::notebook::Notebook;
use crate::notebook::parameters::{self, Literal, Parameters};
use crate::output::{ArtifactOptions, CellKey, StreamStyle, artifacts, strip_ansi};
use crate::runner::{Progress, RunOptions, RunReport, run_notebook};
use crate::session::RunStatus;
use crate::wire::Message;

/// The largest notebook that is read.
const MAX_NOTEBOOK: u64 = 512 << 20;
/// Between two saves of an unfinished notebook.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// Run a notebook in a sandbox and write it with its outputs. The notebook is written also when a cell fails.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cellkeep run analysis.ipynb                          writes analysis.out.ipynb
  cellkeep run analysis.ipynb -o done.ipynb --artifacts plots
  cellkeep run - < in.ipynb > out.ipynb
  cellkeep run report.ipynb -p year 2026 -r region 07 -f params.yaml
  cellkeep run big.ipynb --memory 4g --cpus 2 --timeout 600 --file data.csv

Exit codes: 0 all cells ok, 1 a cell failed, 2 usage or unreadable notebook, 3 no sandbox,
            124 a cell timed out, 130 interrupted, 138 the kernel died")]
pub(super) struct RunArgs {
    /// The notebook, or - for standard input
    #[arg(value_name = "NOTEBOOK|-")]
    notebook: PathBuf,
    /// Where to write it, or - for standard output [default: NOTEBOOK.out.ipynb]
    #[arg(short, long, value_name = "OUT|-")]
    output: Option<PathBuf>,
    /// The kernel to run it on [default: as the notebook says]
    #[arg(short, long, value_name = "NAME")]
    kernel: Option<String>,
    /// A parameter; True, False, None and numbers are read as such
    #[arg(short, long = "parameter", num_args = 2, value_names = ["NAME", "VALUE"], help_heading = "Parameters", allow_hyphen_values = true)]
    parameters: Vec<String>,
    /// A parameter whose value is text, whatever it looks like
    #[arg(short, long = "raw-parameter", num_args = 2, value_names = ["NAME", "STRING"], help_heading = "Parameters", allow_hyphen_values = true)]
    raw_parameters: Vec<String>,
    /// A YAML file with parameters; -p and -r go over it
    #[arg(short = 'f', long = "parameters-file", value_name = "FILE", help_heading = "Parameters")]
    parameter_files: Vec<PathBuf>,
    /// Stop a cell after so many seconds [default: never]
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// Go on after a cell that fails
    #[arg(long)]
    allow_errors: bool,
    /// Store outputs just as another tool does: nbclient keeps each piece of a stream as an output of its own, drops help
    /// (`len?`), and keeps the state of closed widgets
    #[arg(long, value_enum, value_name = "TOOL")]
    compat: Option<Compat>,
    /// Write images, documents and plot specifications into this folder
    #[arg(long, value_name = "DIR")]
    artifacts: Option<PathBuf>,
    /// Show the output of the cells as it comes
    #[arg(short, long)]
    verbose: bool,
    /// Print one JSON report on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// A tool whose form of outputs is asked for.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Compat {
    Nbclient,
}

pub(super) async fn run(paths: Paths, args: RunArgs) -> Result<Exit, Failure> {
    let begun = Instant::now();
    if args.json && args.output.as_deref() == Some(Path::new("-")) {
        return Err(Failure::usage(anyhow!("--json and -o - both want standard output; give the notebook a file")));
    }
    let mut notebook = read_notebook(&args.notebook).map_err(Failure::usage)?;
    for warning in notebook.warnings() {
        say!("warning: {warning}");
    }
    let kernel = match &args.kernel {
        Some(name) => kernels::find(name),
        None => kernels::for_notebook(notebook.kernelspec_name(), notebook.language()),
    };
    let kernel = kernel.map_err(Failure::usage)?;
    let parameters = read_parameters(&args).map_err(Failure::usage)?;
    if notebook.kernelspec_name().is_none() {
        // So that it opens with the kernel whose outputs it has.
        let name = kernel.kernelspec_name();
        notebook.set_kernelspec(name, &kernel.display_name, &kernel.language);
    }
    parameters::inject(&mut notebook, &kernel.language, &parameters).map_err(Failure::usage)?;
    let target = args.output.clone().unwrap_or_else(|| default_output(&args.notebook));
    check_target(&target).map_err(Failure::usage)?;
    let mut signals = Signals::listen()?;
    let mut session = args.sandbox.session(paths, kernel, &mut signals).await?;
    let ready_after = begun.elapsed();
    let following = signals.follow(session.handle.clone());
    let options = RunOptions {
        timeout: args.timeout,
        allow_errors: args.allow_errors,
        stream_style: args.compat.map_or(StreamStyle::Terminal, |Compat::Nbclient| StreamStyle::Nbclient),
        output_memory: Some(args.sandbox.limits().output_memory()),
        interruption: following.interruption.clone(),
    };
    let mut show = Show::new(&args, &target);
    let ended = execute(&mut session, &mut notebook, &options, &mut show).await;
    following.finish();
    show.done();
    // Whatever happened: what was produced is written before anything else can go wrong.
    let saved = save(&target, &notebook);
    let destroyed = session.destroy().await;
    saved.map_err(Failure::usage)?;
    let report = ended?;
    let files = match &args.artifacts {
        Some(folder) => write_artifacts(folder, notebook_artifacts(&notebook, &report)).map_err(Failure::usage)?,
        None => Vec::new(),
    };
    let told = Told { report: &report, target: &target, files: &files, ready_after, whole: begun.elapsed() };
    if args.json {
        tell!("{}", told.json());
    } else {
        told.lines();
    }
    destroyed.map_err(Failure::no_sandbox)?;
    Ok(exit_of(report.status()))
}

async fn execute(
    session: &mut Session,
    notebook: &mut Notebook,
    options: &RunOptions,
    show: &mut Show,
) -> Result<RunReport, Failure> {
    run_notebook(&session.handle, &mut session.events, notebook, options, &mut |progress| show.take(progress))
        .await
        .map_err(Failure::no_sandbox)
}

fn read_notebook(path: &Path) -> anyhow::Result<Notebook> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(MAX_NOTEBOOK + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        file.take(MAX_NOTEBOOK + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    }
    if bytes.len() as u64 > MAX_NOTEBOOK {
        bail!("{} is larger than {} MB; it cannot be run", path.display(), MAX_NOTEBOOK >> 20);
    }
    Notebook::parse(&bytes).with_context(|| format!("cannot read {} as a notebook", path.display()))
}

/// Files first, then `-p`, then `-r`: what is more particular wins, as in papermill.
fn read_parameters(args: &RunArgs) -> anyhow::Result<Parameters> {
    let mut all = Parameters::default();
    for path in &args.parameter_files {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let values: Literal = serde_yaml_ng::from_str(&text)
            .with_context(|| format!("{} is not a YAML mapping of names to values", path.display()))?;
        let Literal::Map(values) = values else { bail!("{} is not a YAML mapping of names to values", path.display()) };
        all.extend(values);
    }
    let pairs = |list: &[String]| list.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect::<Vec<_>>();
    all.extend(pairs(&args.parameters).into_iter().map(|(name, value)| (name, parameters::guess(&value))));
    all.extend(pairs(&args.raw_parameters).into_iter().map(|(name, value)| (name, Literal::Text(value))));
    Ok(all)
}

fn default_output(notebook: &Path) -> PathBuf {
    if notebook == Path::new("-") { PathBuf::from("-") } else { notebook.with_extension("out.ipynb") }
}

/// A result that cannot be written is found out before an hour of cells, not after.
fn check_target(target: &Path) -> anyhow::Result<()> {
    let target = &behind_links(target);
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if target == Path::new("-") || target.exists() && !target.is_dir() && !target.is_file() {
        return Ok(());
    }
    if target.is_dir() {
        bail!("{} is a folder; give the file to write", target.display());
    }
    std::fs::create_dir_all(parent)
        .with_context(|| format!("cannot make the folder {} for the executed notebook", parent.display()))?;
    let probe = parent.join(format!(".cellkeep-{}", crate::ids::random_uuid()));
    std::fs::write(&probe, b"")
        .and_then(|()| std::fs::remove_file(&probe))
        .with_context(|| format!("cannot write into {}", parent.display()))
}

fn save(target: &Path, notebook: &Notebook) -> anyhow::Result<()> {
    let text = notebook.print();
    if target == Path::new("-") {
        return std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output");
    }
    // A device or a pipe cannot be replaced by a file, only written to.
    if target.exists() && !target.is_file() {
        return std::fs::write(target, text).with_context(|| format!("cannot write {}", target.display()));
    }
    write_whole(target, text.as_bytes())
}

fn notebook_artifacts(notebook: &Notebook, report: &RunReport) -> Vec<crate::output::Artifact> {
    let run: BTreeSet<usize> = report.cells.iter().map(|cell| cell.index).collect();
    let all = notebook.cells().enumerate().filter(|(index, _)| run.contains(index));
    all.flat_map(|(index, cell)| {
        artifacts(cell.outputs(), CellKey(u32::try_from(index).unwrap_or(u32::MAX)), index + 1, ArtifactOptions::default())
    })
    .collect()
}

/// Shows progress: a bar on a terminal, lines elsewhere. Saves the notebook now and then.
struct Show {
    bar: Option<ProgressBar>,
    verbose: bool,
    current: String,
    target: PathBuf,
    saved: Instant,
}

impl Show {
    fn new(args: &RunArgs, target: &Path) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let template = "{bar:24.cyan/dim} {pos}/{len} {elapsed_precise} {wide_msg}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, verbose: args.verbose, current: String::new(), target: target.to_owned(), saved: Instant::now() }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say!("{text}")),
            None => say!("{text}"),
        }
    }

    fn take(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::CellStarted { number, total, title, .. } => {
                let title: String = title.chars().filter(|c| !c.is_control()).take(80).collect();
                self.current = format!("[{number}/{total}] {title}");
                if let Some(bar) = &self.bar {
                    bar.set_length(total as u64);
                    bar.set_message(title);
                } else if self.verbose {
                    say!("{}", self.current);
                }
            }
            Progress::Output { msg_type, message } if self.verbose => self.output(msg_type, message),
            Progress::Output { .. } => {}
            Progress::Notice(text) => self.line(&format!("cellkeep: {text}")),
            Progress::CellFinished { result, notebook, .. } => {
                if let Some(bar) = &self.bar {
                    bar.inc(1);
                }
                if self.bar.is_none() || !matches!(result.status, RunStatus::Ok) {
                    self.line(&format!("{} ({}, {:.2} s)", self.current, result.status.name(), result.wall.as_secs_f64()));
                }
                self.save_now_and_then(notebook);
            }
        }
    }

    fn output(&self, msg_type: &str, message: &Message) {
        let text = as_text(msg_type, message);
        if !text.is_empty() {
            self.line(text.trim_end_matches('\n'));
        }
    }

    /// A run that is killed keeps what it had a few seconds before. Not after every cell: that would be quadratic.
    fn save_now_and_then(&mut self, notebook: &Notebook) {
        if self.saved.elapsed() >= SAVE_EVERY && self.target != Path::new("-") {
            if let Err(error) = save(&self.target, notebook) {
                self.line(&format!("warning: {}", explain(&error)));
            }
            self.saved = Instant::now();
        }
    }

    fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What is told at the end.
struct Told<'a> {
    report: &'a RunReport,
    target: &'a Path,
    files: &'a [PathBuf],
    ready_after: Duration,
    whole: Duration,
}

impl Told<'_> {
    fn lines(&self) {
        if self.report.interrupted {
            say!("interrupted between two cells");
        }
        if let Some(cell) = self.report.failure() {
            say!("cell {} ({}): {}", cell.index + 1, cell.id, cell.status.name());
            if let Some(error) = &cell.error {
                say!("  {}: {}", error.ename, strip_ansi(&error.evalue));
            }
        }
        if self.target != Path::new("-") {
            say!("wrote {}", self.target.display());
        }
        for file in self.files {
            say!("wrote {}", file.display());
        }
        say!(
            "{} of {} cells in {:.2} s; kernel ready after {:.2} s, {:.2} s in all",
            self.report.cells.len(),
            self.report.total,
            self.report.wall.as_secs_f64(),
            self.ready_after.as_secs_f64(),
            self.whole.as_secs_f64()
        );
    }

    fn json(&self) -> Value {
        let milliseconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let cells: Vec<Value> = self
            .report
            .cells
            .iter()
            .map(|cell| {
                json!({
                    "index": cell.index, "id": cell.id, "status": cell.status.name(), "allowed": cell.allowed,
                    "wall_ms": milliseconds(cell.wall),
                    "error": cell.error.as_ref().map(|error| json!({"ename": error.ename, "evalue": error.evalue})),
                })
            })
            .collect();
        json!({
            "status": self.report.status().name(),
            "output": self.target,
            "artifacts": self.files,
            "cells": cells,
            "cells_total": self.report.total,
            "metrics": {
                "ready_ms": milliseconds(self.ready_after),
                "wall_ms": milliseconds(self.report.wall),
                "total_ms": milliseconds(self.whole),
            },
        })
    }
}
