//! Notebooks from file to file, and into pages, against what everybody uses for that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::Lab;
use crate::flood::{FLOOD, Folder, lost_lines, texts_of, timed, usual_argv, write_kernel_spec};
use crate::serve::pool::wait_until_full;
use crate::serve::servers::Server;
use crate::table::{Figure, Goal, Rows, percentile};

const ROUNDS: usize = 5;
/// Papermill takes most of a minute for the large one.
const PAPERMILL_ROUNDS: usize = 1;
const EXPORTS: usize = 5;
const CELLS: usize = 501;
const POOL: &str = "python=2";

/// A notebook that is measured, and the seconds of everything that was done with it.
struct Subject {
    name: &'static str,
    source: PathBuf,
    executed: PathBuf,
    run: [Vec<f64>; 3],
    export: [Vec<f64>; 2],
}

pub(crate) fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let folder = Folder::new("notebooks")?;
    let folder = folder.0.as_path();
    write_kernel_spec(lab, folder, &usual_argv(lab))?;
    let many = std::iter::once("x = 0".to_owned()).chain((1..CELLS).map(|_| "x += 1\nprint(x)".to_owned()));
    let mut subjects = [
        Subject::write(folder, "1 cell", vec!["print(1)".to_owned()])?,
        Subject::write(folder, "501 cells", many.collect())?,
    ];
    let mut rows = Rows::default();
    let papermill = has(lab, "papermill", &mut rows);
    let nbconvert = has(lab, "nbconvert", &mut rows);
    // The first time everything is read from disk.
    for round in 0..=ROUNDS {
        for subject in &mut subjects {
            eprintln!("notebooks: {}, round {round} of {ROUNDS}", subject.name);
            let papermill = papermill && round <= PAPERMILL_ROUNDS;
            subject.run(lab, folder, papermill, round > 0)?;
        }
    }
    for _ in 0..if nbconvert { EXPORTS } else { 0 } {
        subjects.iter_mut().try_for_each(|subject| subject.export(lab, folder))?;
    }
    runs(&mut rows, &subjects, papermill);
    pooled(lab, &subjects[0], &mut rows)?;
    exports(&mut rows, &subjects, nbconvert);
    flood(lab, folder, &mut rows)?;
    rows.note(format!(
        "{ROUNDS} runs each, alternating, after one that warms the disk cache; {PAPERMILL_ROUNDS} of papermill's; medians"
    ));
    rows.note(
        "ours: in a sandbox with 1 CPU; theirs: python -m ipykernel_launcher of the same environment, with all CPUs"
            .to_owned(),
    );
    Ok(rows)
}

fn runs(rows: &mut Rows, subjects: &[Subject], papermill: bool) {
    for (subject, goals) in subjects.iter().zip([[None, None], [Some(0.5), Some(0.1)]]) {
        let [ours, nbclient, theirs] = subject.run.each_ref().map(|seconds| Figure::Seconds(percentile(seconds, 50)));
        let [half, tenth] = goals.map(|times| times.map(Goal::AtMostTimes));
        rows.compare(&format!("{}: `cellkeep run`", subject.name), ours, "nbclient", nbclient, half);
        if papermill {
            rows.compare(&format!("{}: `cellkeep run`", subject.name), ours, "papermill", theirs, tenth);
        }
    }
}

/// The one cell as a job on a server that keeps kernels ready.
fn pooled(lab: &Lab, subject: &Subject, rows: &mut Rows) -> anyhow::Result<()> {
    let server = Server::cellkeep(lab, &["--pool", POOL])?;
    let mut http = server.http()?;
    let notebook: Value = serde_json::from_slice(&fs::read(&subject.source)?)?;
    let mut seconds = Vec::new();
    for _ in 0..=ROUNDS {
        wait_until_full(&mut http)?;
        let began = Instant::now();
        let run = http.ask("POST", "/v1/runs?wait=60", Some(&json!({"notebook": notebook, "kernel": "python"})))?;
        seconds.push(began.elapsed().as_secs_f64());
        ensure!(run["status"] == "ok", "the run ended otherwise: {run}");
    }
    let (ours, theirs) = (percentile(&seconds[1..], 50), percentile(&subject.run[1], 50));
    let what = format!("{}: a job on a warm pool", subject.name);
    rows.compare(&what, Figure::Seconds(ours), "nbclient", Figure::Seconds(theirs), Some(Goal::AtMostTimes(0.1)));
    Ok(())
}

fn exports(rows: &mut Rows, subjects: &[Subject], nbconvert: bool) {
    if !nbconvert {
        return;
    }
    for (subject, goal) in subjects.iter().zip([0.010, 0.050]) {
        let [ours, theirs] = subject.export.each_ref().map(|seconds| Figure::Seconds(percentile(seconds, 50)));
        let what = format!("{}: to HTML", subject.name);
        rows.value(&what, ours, Some(Goal::Within(goal)));
        rows.compare(&what, ours, "nbconvert", theirs, Some(Goal::AtMostTimes(0.02)));
    }
}

/// Of a cell's many small writes, how many are in the file afterwards.
fn flood(lab: &Lab, folder: &Path, rows: &mut Rows) -> anyhow::Result<()> {
    eprintln!("notebooks: 60,000 flushed writes");
    let mut flood = Subject::write(folder, "60,000 writes", vec![FLOOD.to_owned()])?;
    let lost = |target: &Path| anyhow::Ok(Figure::Count(lost_lines(&texts_of(target)?[0])));
    flood.run[0].push(timed(&mut flood.ours(lab))?.1);
    let ours = lost(&flood.executed)?;
    flood.run[1].push(timed(&mut flood.nbclient(lab, folder))?.1);
    let theirs = lost(&flood.executed)?;
    rows.compare("60,000 flushed 1 KB writes: lines lost", ours, "nbclient", theirs, Some(Goal::None));
    let [ours, theirs, _] = flood.run.map(|seconds| Figure::Seconds(percentile(&seconds, 50)));
    rows.compare("60,000 flushed 1 KB writes: from file to file", ours, "nbclient", theirs, None);
    Ok(())
}

/// Whether the test environment has a peer.
fn has(lab: &Lab, peer: &str, rows: &mut Rows) -> bool {
    let there = lab.python.with_file_name(format!("jupyter-{peer}")).exists() || lab.python.with_file_name(peer).exists();
    if !there {
        rows.skip(peer, "it is not in target/test-venv; `make bench` installs it where PyPI answers".to_owned());
    }
    there
}

impl Subject {
    fn write(folder: &Path, name: &'static str, sources: Vec<String>) -> anyhow::Result<Self> {
        let file = name.replace([' ', ','], "-");
        let (source, executed) = (folder.join(format!("{file}.ipynb")), folder.join(format!("{file}.done.ipynb")));
        let cell = |(index, source): (usize, &String)| {
            json!({
                "cell_type": "code", "id": format!("c{index}"), "metadata": {}, "execution_count": null, "outputs": [],
                "source": source,
            })
        };
        let cells: Vec<Value> = sources.iter().enumerate().map(cell).collect();
        // Peers look the kernel up by this name; ours goes by the language.
        let kernelspec = json!({"name": "bench", "display_name": "bench", "language": "python"});
        let notebook = json!({"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernelspec}});
        fs::write(&source, notebook.to_string())?;
        Ok(Self { name, source, executed, run: Default::default(), export: Default::default() })
    }

    fn run(&mut self, lab: &Lab, folder: &Path, papermill: bool, counts: bool) -> anyhow::Result<()> {
        let mut commands = vec![self.ours(lab), self.nbclient(lab, folder)];
        commands.extend(papermill.then(|| self.papermill(lab, folder)));
        for (seconds, command) in self.run.iter_mut().zip(&mut commands) {
            let taken = timed(command)?.1;
            if counts {
                seconds.push(taken);
            }
        }
        Ok(())
    }

    fn export(&mut self, lab: &Lab, folder: &Path) -> anyhow::Result<()> {
        let mut ours = Command::new(env!("CARGO_BIN_EXE_cellkeep"));
        ours.arg("export").arg(&self.executed).arg("-o").arg(self.source.with_extension("html"));
        let mut theirs = peer(lab, folder, "jupyter-nbconvert");
        theirs.args(["--to", "html", "--output", "theirs"]).arg(&self.executed);
        for (seconds, mut command) in self.export.iter_mut().zip([ours, theirs]) {
            seconds.push(timed(&mut command)?.1);
        }
        Ok(())
    }

    fn ours(&self, lab: &Lab) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellkeep"));
        command.arg("--data").arg(lab.paths.data()).args(["run", "--sandbox", "process", "--kernel", "python", "--output"]);
        command.arg(&self.executed).arg(&self.source);
        command
    }

    fn nbclient(&self, lab: &Lab, folder: &Path) -> Command {
        let mut command = peer(lab, folder, "jupyter-execute");
        // Taken as a name beside the notebook.
        let name = self.executed.file_name().unwrap_or_default().to_string_lossy().into_owned();
        command.arg(&self.source).arg(format!("--output={name}"));
        command
    }

    fn papermill(&self, lab: &Lab, folder: &Path) -> Command {
        let mut command = peer(lab, folder, "papermill");
        command.arg(&self.source).arg(&self.executed).arg("--no-progress-bar");
        command
    }
}

/// A program of the test environment that finds the kernel `bench`.
fn peer(lab: &Lab, folder: &Path, program: &str) -> Command {
    let mut command = Command::new(lab.python.with_file_name(program));
    command.env("JUPYTER_PATH", folder).env("HOME", folder).env("IPYTHONDIR", folder.join("ipython")).current_dir(folder);
    command
}
