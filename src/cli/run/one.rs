//! One notebook, from its file to the executed one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use serde_json::{Map, Value, json};

use super::plan::Job;
use super::report::Outcome;
use super::show::{Board, Show};
use crate::cli::notebook_file::{read_notebook, save};
use crate::cli::options::{SandboxArgs, exit_of, write_artifacts};
use crate::cli::print::explain;
use crate::cli::signals::Following;
use crate::cli::{Exit, Failure};
use crate::config::Paths;
use crate::kernels::{self, Kernel};
use crate::manager::Session;
use crate::manager::record::{self, Surroundings};
use crate::notebook::parameters::{self, Parameters, Place};
use crate::notebook::{Cell, NewCell, Notebook};
use crate::output::{ArtifactOptions, CellKey, StreamStyle, artifacts};
use crate::runner::{RunOptions, RunReport, run_notebook};
use crate::wire::content::now_iso8601;

/// The tag of the cells that mark a failure.
const MARKER: &str = "papermill-error-cell-tag";

/// What all notebooks of a command have in common.
pub(in crate::cli) struct Settings {
    pub paths: Paths,
    pub sandbox: SandboxArgs,
    pub kernel: Option<String>,
    pub parameters: Parameters,
    pub given: super::given::GivenArgs,
    pub strict_parameters: bool,
    pub timeout: Option<Duration>,
    pub start_timeout: Option<Duration>,
    pub allow_errors: bool,
    pub style: StreamStyle,
    pub report_mode: bool,
    pub error_marker: bool,
    pub seed: Option<u32>,
    pub frozen: bool,
    pub no_record: bool,
    /// Whether nbval's tags and comments are obeyed.
    pub nbval: bool,
}

/// A notebook that is ready to be run.
pub(in crate::cli) struct Prepared {
    pub notebook: Notebook,
    pub kernel: &'static Kernel,
    pub parameters: Parameters,
}

/// Runs one notebook and writes it; tells in the outcome how that went.
pub(in crate::cli) async fn run_one(
    settings: &Settings,
    job: &Job,
    following: &Following,
    board: &Board,
) -> (Outcome, Option<Notebook>) {
    let begun = Instant::now();
    let mut outcome = Outcome::new(&job.source, &job.run_id);
    outcome.target.clone_from(&job.target);
    let show = board.show(&job.source, job.target.as_deref());
    let result = match prepare(settings, job, &show) {
        Ok(prepared) => execute(settings, job, following, prepared, show, &mut outcome).await,
        Err(error) => Err(Failure::usage(error)),
    };
    let notebook = match result {
        Ok(notebook) => Some(notebook),
        Err(failure) => {
            outcome.exit = failure.exit;
            outcome.failure = Some(explain(&failure.error));
            None
        }
    };
    outcome.whole = begun.elapsed();
    (outcome, notebook)
}

/// Reads a notebook and puts its parameters in.
pub(in crate::cli) fn prepare(settings: &Settings, job: &Job, show: &Show) -> anyhow::Result<Prepared> {
    let mut notebook = read_notebook(&job.source)?;
    for warning in notebook.warnings() {
        show.notice(&format!("warning: {warning}"));
    }
    let kernel = match &settings.kernel {
        Some(name) => kernels::find(name)?,
        None => kernels::for_notebook(notebook.kernelspec_name(), notebook.language())?,
    };
    if notebook.kernelspec_name().is_none() && settings.style != StreamStyle::Nbclient {
        // So that it opens with the kernel whose outputs it has.
        notebook.set_kernelspec(kernel.kernelspec_name(), &kernel.display_name, &kernel.language);
    }
    let mut parameters = settings.parameters.clone();
    let unknown = unknown(&notebook, kernel, &parameters);
    if !unknown.is_empty() {
        let told = format!("the notebook has no parameter {}", unknown.join(", "));
        if settings.strict_parameters {
            bail!("{told}");
        }
        show.notice(&format!("warning: {told}; it is given all the same"));
    }
    settings.given.add_paths(&mut parameters, &job.source, job.target.as_deref().unwrap_or(Path::new("")));
    if !parameters.is_empty() && parameters::place(&notebook) == Place::Top {
        show.notice("warning: no cell is tagged `parameters`, so they are put before the first one");
    }
    parameters::inject(&mut notebook, &kernel.language, &parameters)?;
    // nbclient leaves them, and a comparison goes by the cells' places.
    if settings.style != StreamStyle::Nbclient && !settings.nbval {
        remove_markers(&mut notebook);
    }
    if settings.nbval {
        take_over_tags(&mut notebook)?;
    }
    if settings.report_mode {
        hide_sources(&mut notebook)?;
    }
    Ok(Prepared { notebook, kernel, parameters })
}

/// The given parameters that the notebook does not declare.
fn unknown(notebook: &Notebook, kernel: &Kernel, parameters: &Parameters) -> Vec<String> {
    let declared = match parameters::declared(notebook, &kernel.language) {
        Some(declared) => declared,
        None if parameters::place(notebook) == Place::Top => Vec::new(),
        None => return Vec::new(),
    };
    let names = parameters.iter().map(|(name, _)| name);
    names.filter(|name| !declared.iter().any(|one| one.name == **name)).cloned().collect()
}

async fn execute(
    settings: &Settings,
    job: &Job,
    following: &Following,
    prepared: Prepared,
    mut show: Show,
    outcome: &mut Outcome,
) -> Result<Notebook, Failure> {
    let begun = Instant::now();
    let Prepared { mut notebook, kernel, parameters } = prepared;
    outcome.parameters = parameters;
    let expected = record::of(&notebook).cloned();
    if settings.frozen && expected.is_none() {
        return Err(Failure::usage(anyhow!(
            "--frozen: the notebook has no record of an earlier run; run it once without --frozen"
        )));
    }
    let env = settings.seed.map(|seed| record::seed_env(kernel, seed)).unwrap_or_default();
    let mut session = start(settings, kernel, env, following).await?;
    let told = following.add(session.handle.clone());
    outcome.ready_after = begun.elapsed();
    let facts = facts(settings, kernel, &session, expected.as_ref(), &show).await;
    let surroundings = match facts {
        Ok(surroundings) => surroundings,
        Err(failure) => {
            let _ = session.destroy().await;
            return Err(failure);
        }
    };
    let options = RunOptions {
        timeout: settings.timeout,
        allow_errors: settings.allow_errors,
        stream_style: settings.style,
        output_memory: Some(settings.sandbox.limits().output_memory()),
        interruption: following.interruption.clone(),
    };
    let started_at = now_iso8601();
    let progress = &mut |progress: crate::runner::Progress<'_>| show.take(progress);
    let ended = run_notebook(&session.handle, &mut session.events, &mut notebook, &options, progress).await;
    drop((show, told));
    // A record that was taken before the first cell names what all of them began with.
    if !settings.no_record {
        write_record(settings, job, outcome, surroundings.as_ref(), ended.as_ref().ok(), &started_at, &mut notebook);
    }
    if let (true, Ok(report)) = (settings.error_marker, &ended) {
        mark_failure(&mut notebook, report);
    }
    // Whatever happened: what was produced is written before anything else can go wrong.
    let saved = job.target.as_ref().map_or(Ok(()), |target| save(target, &notebook));
    let destroyed = session.destroy().await;
    saved.map_err(Failure::usage)?;
    let report = ended.map_err(Failure::no_sandbox)?;
    outcome.exit = exit_of(report.status());
    if let Some(folder) = &job.artifacts {
        outcome.files = write_artifacts(folder, notebook_artifacts(&notebook, &report)).map_err(Failure::usage)?;
    }
    outcome.report = Some(report);
    destroyed.map_err(Failure::no_sandbox)?;
    Ok(notebook)
}

/// Makes a session; gives up when its kernel takes too long, or somebody does not want it any more.
async fn start(
    settings: &Settings,
    kernel: &Kernel,
    env: Vec<(String, String)>,
    following: &Following,
) -> Result<Session, Failure> {
    let is_late = AtomicBool::new(false);
    let given_up = async {
        let Some(limit) = settings.start_timeout else { return following.asked().await };
        if tokio::time::timeout(limit, following.asked()).await.is_err() {
            is_late.store(true, Ordering::Relaxed);
        }
    };
    let started = settings.sandbox.session(settings.paths.clone(), kernel, env, given_up).await;
    match (settings.start_timeout, is_late.load(Ordering::Relaxed)) {
        (Some(limit), true) if started.is_err() => {
            let error = anyhow!("the kernel was not ready after {} s (--start-timeout)", limit.as_secs_f64());
            Err(Failure::no_sandbox(error))
        }
        _ => started,
    }
}

/// Seeds the kernel and asks what it runs in, before the first cell; refuses where that is not what the record says.
async fn facts(
    settings: &Settings,
    kernel: &Kernel,
    session: &Session,
    expected: Option<&Value>,
    show: &Show,
) -> Result<Option<Surroundings>, Failure> {
    let surroundings = match settings.no_record && !settings.frozen {
        true => None,
        false => match Surroundings::ask(&settings.paths, kernel, &session.handle, session.record.kind).await {
            Ok(surroundings) => Some(surroundings),
            Err(why) if settings.frozen => {
                return Err(Failure::usage(anyhow!("--frozen: what the kernel has cannot be told: {why}")));
            }
            Err(why) => {
                show.notice(&format!("the packages are not recorded: {why}"));
                None
            }
        },
    };
    if let (true, Some(expected), Some(now)) = (settings.frozen, expected, &surroundings) {
        let differences = now.differences(expected);
        if !differences.is_empty() {
            let all = differences.join("\n  ");
            return Err(Failure::usage(anyhow!("--frozen: this is not what the notebook was run with before:\n  {all}")));
        }
    }
    if let Some(seed) = settings.seed {
        match record::seed(&session.handle, kernel, seed).await {
            Ok(true) => {}
            Ok(false) => show.notice(&format!("--seed: {} has no random numbers that can be seeded", kernel.display_name)),
            Err(why) => return Err(Failure::no_sandbox(anyhow!("--seed: the kernel cannot be seeded: {why}"))),
        }
    }
    Ok(surroundings)
}

fn write_record(
    settings: &Settings,
    job: &Job,
    outcome: &Outcome,
    surroundings: Option<&Surroundings>,
    report: Option<&RunReport>,
    started_at: &str,
    notebook: &mut Notebook,
) {
    let mut record = Map::new();
    record.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
    if let Some(surroundings) = surroundings {
        surroundings.write(&mut record);
    }
    record.insert("limits".to_owned(), json!(settings.sandbox.limits()));
    record.insert("parameters".to_owned(), outcome.parameters.to_json());
    if let Some(seed) = settings.seed {
        record.insert("seed".to_owned(), json!(seed));
    }
    let status = report.map_or("session_lost", |report| report.status().name());
    let run = json!({"id": job.run_id, "start_time": started_at, "end_time": now_iso8601(), "status": status});
    record.insert("run".to_owned(), run);
    notebook.metadata_mut().insert(record::KEY.to_owned(), Value::Object(record));
}

/// Report mode: the code is hidden, and whatever else the cell says of itself stays.
fn hide_sources(notebook: &mut Notebook) -> anyhow::Result<()> {
    let code: Vec<usize> = notebook.cells().enumerate().filter(|(_, cell)| cell.is_code()).map(|(index, _)| index).collect();
    for index in code {
        let jupyter = notebook.cell_metadata_mut(index)?.entry("jupyter").or_insert_with(|| json!({}));
        if !jupyter.is_object() {
            *jupyter = json!({});
        }
        jupyter["source_hidden"] = json!(true);
    }
    Ok(())
}

/// What nbval's marks mean for the run.
fn take_over_tags(notebook: &mut Notebook) -> anyhow::Result<()> {
    for index in 0..notebook.len() {
        let Some(cell) = notebook.cell(index).filter(|cell| cell.is_code()) else { continue };
        let mut tags: Vec<String> = cell.tags().map(str::to_owned).collect();
        for (mark, tag) in [(Mark::Skip, "skip-execution"), (Mark::Raises, "raises-exception")] {
            if mark.is_on(cell) && !tags.iter().any(|own| own == tag) {
                tags.push(tag.to_owned());
            }
        }
        notebook.cell_metadata_mut(index)?.insert("tags".to_owned(), json!(tags));
    }
    Ok(())
}

/// The marks that nbval reads: a tag, or a comment of its own line.
#[derive(Clone, Copy)]
pub(in crate::cli) enum Mark {
    Skip,
    Raises,
    Ignore,
    Check,
}

impl Mark {
    pub fn is_on(self, cell: Cell<'_>) -> bool {
        let (tags, words): (&[&str], &[&str]) = match self {
            Self::Skip => (&["nbval-skip", "skip-execution"], &["NBVAL_SKIP"]),
            Self::Raises => (&["nbval-raises-exception", "raises-exception"], &["NBVAL_RAISES_EXCEPTION"]),
            Self::Ignore => (&["nbval-ignore-output"], &["NBVAL_IGNORE_OUTPUT", "PYTEST_VALIDATE_IGNORE_OUTPUT"]),
            Self::Check => (&["nbval-check-output"], &["NBVAL_CHECK_OUTPUT"]),
        };
        let is_comment = |line: &str| {
            let comment = line.trim_start().strip_prefix('#').or_else(|| line.trim_start().strip_prefix("//"));
            comment.is_some_and(|comment| words.contains(&comment.trim()))
        };
        tags.iter().any(|tag| cell.has_tag(tag)) || cell.source().lines().any(is_comment)
    }
}

/// The marks of an earlier run's failure say nothing of this one.
fn remove_markers(notebook: &mut Notebook) {
    let marked = |notebook: &Notebook| notebook.cells().position(|cell| !cell.is_code() && cell.has_tag(MARKER));
    while let Some(index) = marked(notebook) {
        if notebook.remove_cell(index).is_err() {
            return;
        }
    }
}

/// A note on top that leads to the cell that failed, and an anchor before that cell.
fn mark_failure(notebook: &mut Notebook, report: &RunReport) {
    let Some(cell) = report.failure() else { return };
    let note = |text: String| NewCell::markdown(text).with_tags(&[MARKER]);
    let red = "<span style=\"color:red; font-family:Helvetica Neue, Helvetica, Arial, sans-serif; font-size:2em;\">";
    let anchor = "<span id=\"papermill-error-cell\"></span>";
    notebook.insert_cell(cell.index, note(format!("{anchor}{red}This cell failed:</span>")));
    let number = cell.index + 1;
    notebook.insert_cell(
        0,
        note(format!("{red}This notebook failed in <a href=\"#papermill-error-cell\">cell {number}</a>.</span>")),
    );
}

fn notebook_artifacts(notebook: &Notebook, report: &RunReport) -> Vec<crate::output::Artifact> {
    let run: BTreeSet<&str> = report.cells.iter().map(|cell| cell.id.as_str()).collect();
    let all = notebook.cells().enumerate().filter(|(_, cell)| run.contains(cell.id()));
    all.flat_map(|(index, cell)| {
        artifacts(cell.outputs(), CellKey(u32::try_from(index).unwrap_or(u32::MAX)), index + 1, ArtifactOptions::default())
    })
    .collect()
}

/// The outcome of a notebook that nobody got to.
pub(in crate::cli) fn not_begun(job: &Job, why: &str) -> Outcome {
    Outcome { exit: Exit::Interrupted, failure: Some(why.to_owned()), ..Outcome::new(&job.source, &job.run_id) }
}
