//! Cells that print more than clients like, and what arrives.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use cellkeep::sandbox::SandboxKind;
use serde_json::{Value, json};

use crate::peer::argv;
use crate::table::{Figure, Goal, Rows};
use crate::{Lab, run};

/// Numbered lines of 1,024 bytes, each flushed.
pub(crate) const FLOOD: &str = "for i in range(60000): print(f'{i:06d} ' + 'x'*1016, flush=True)";
const LINES: usize = 60_000;
const LINE_LENGTH: usize = 1023;
/// One output as large as many a dump of a table.
const BIG: &str = "print('y'*50_000_000)";
const BIG_LENGTH: usize = 50_000_001;

/// One way to run the two cells.
struct Run {
    /// Text of each cell's outputs.
    texts: [String; 2],
    /// Seconds of each cell, where the way shows them.
    cells: Option<[f64; 2]>,
    /// Seconds of the whole, from the start of the program to its end.
    whole: Option<f64>,
}

pub(crate) async fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let folder = Folder::new()?;
    let source = folder.0.join("in.ipynb");
    fs::write(&source, notebook().to_string())?;
    eprintln!("flood: nbclient");
    let nbclient = with_nbclient(lab, &folder.0, &source, &argv(lab))?;
    eprintln!("flood: session");
    let session = in_session(lab).await?;
    eprintln!("flood: cellkeep run");
    let command = with_cellkeep(lab, &folder.0, &source)?;
    eprintln!("flood: nbclient with the usual launcher");
    let usual = with_nbclient(lab, &folder.0, &source, &usual_argv(lab))?;

    let mut rows = Rows::default();
    for (name, ours) in [("session", &session), ("`cellkeep run`", &command)] {
        rows.compare(&format!("{name}: lines lost"), lost_lines(ours), "nbclient", lost_lines(&nbclient), Some(Goal::None));
        rows.compare(
            &format!("{name}: bytes lost of 50 MB"),
            lost_bytes(ours),
            "nbclient",
            lost_bytes(&nbclient),
            Some(Goal::None),
        );
    }
    let cell = |run: &Run, index: usize| Figure::Seconds(run.cells.map_or(f64::NAN, |cells| cells[index]));
    rows.compare("session: the flood", cell(&session, 0), "nbclient", cell(&nbclient, 0), None);
    rows.compare("session: the 50 MB", cell(&session, 1), "nbclient", cell(&nbclient, 1), None);
    let whole = |run: &Run| Figure::Seconds(run.whole.unwrap_or(f64::NAN));
    rows.compare("`cellkeep run`: both, start and file included", whole(&command), "nbclient", whole(&nbclient), None);
    rows.note(
        "a line is lost unless it arrives whole and in its place; nbclient runs on the kernel with our launcher".to_owned(),
    );
    let (Figure::Count(lines), Figure::Count(bytes)) = (lost_lines(&usual), lost_bytes(&usual)) else { return Ok(rows) };
    rows.note(format!(
        "nbclient with the usual launcher (python -m ipykernel_launcher): {lines} lines and {bytes} of 50 MB lost, {} s",
        usual.whole.unwrap_or(f64::NAN).round()
    ));
    Ok(rows)
}

async fn in_session(lab: &Lab) -> anyhow::Result<Run> {
    let session = lab.session(SandboxKind::Process).await?;
    let mut texts = [String::new(), String::new()];
    let mut cells = [0.0; 2];
    for (index, code) in [FLOOD, BIG].into_iter().enumerate() {
        let began = Instant::now();
        let ran = run(&session, code).await;
        cells[index] = began.elapsed().as_secs_f64();
        match ran {
            Ok(text) => texts[index] = text,
            Err(error) => {
                session.destroy().await?;
                return Err(error);
            }
        }
    }
    session.destroy().await?;
    Ok(Run { texts, cells: Some(cells), whole: None })
}

fn with_cellkeep(lab: &Lab, folder: &Path, source: &Path) -> anyhow::Result<Run> {
    let target = folder.join("cellkeep.ipynb");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellkeep"));
    command.arg("--data").arg(lab.paths.data()).args(["run", "--sandbox", "process", "--output"]).arg(&target).arg(source);
    let (_, seconds) = timed(&mut command)?;
    Ok(Run { texts: read(&target)?, cells: None, whole: Some(seconds) })
}

fn with_nbclient(lab: &Lab, folder: &Path, source: &Path, argv: &[String]) -> anyhow::Result<Run> {
    let spec = folder.join("kernels/bench");
    fs::create_dir_all(&spec)?;
    let json = json!({"argv": argv, "display_name": "bench", "language": "python", "env": lab.kernel.env});
    let json = json.to_string().replace("/opt/kernel", &lab.environment.display().to_string());
    fs::write(spec.join("kernel.json"), json)?;
    let target = folder.join("nbclient.ipynb");
    let mut command = Command::new(&lab.python);
    command.arg(crate::project().join("benches/peers/notebook.py")).arg(source).arg(&target);
    command.env("JUPYTER_PATH", folder).env("HOME", folder).env("IPYTHONDIR", folder.join("ipython"));
    let (said, seconds) = timed(&mut command)?;
    let cells = serde_json::from_str::<Value>(&said)
        .ok()
        .and_then(|said| Some([said["cells"][0].as_f64()?, said["cells"][1].as_f64()?]));
    Ok(Run { texts: read(&target)?, cells, whole: Some(seconds) })
}

/// The kernel as everybody else starts it.
fn usual_argv(lab: &Lab) -> Vec<String> {
    let python = lab.environment.join("bin/python").display().to_string();
    [&python, "-m", "ipykernel_launcher", "-f", "{connection_file}"].map(str::to_owned).to_vec()
}

fn timed(command: &mut Command) -> anyhow::Result<(String, f64)> {
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), seconds))
}

fn notebook() -> Value {
    let cell = |(id, code): (&str, &str)| {
        json!({
            "cell_type": "code", "id": id, "metadata": {}, "execution_count": null, "outputs": [], "source": code,
        })
    };
    let cells = [("flood", FLOOD), ("big", BIG)].map(cell);
    json!({
        "cells": cells, "nbformat": 4, "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    })
}

/// The text of both cells' stream outputs.
fn read(path: &Path) -> anyhow::Result<[String; 2]> {
    let notebook: Value =
        serde_json::from_slice(&fs::read(path)?).with_context(|| format!("cannot read {}", path.display()))?;
    let text = |index: usize| {
        let outputs = notebook["cells"][index]["outputs"].as_array().into_iter().flatten();
        let mut all = String::new();
        for text in outputs.filter(|output| output["output_type"] == "stream").map(|output| &output["text"]) {
            let lines = text.as_array().into_iter().flatten().filter_map(Value::as_str);
            all.extend(text.as_str().into_iter().chain(lines));
        }
        all
    };
    Ok([text(0), text(1)])
}

fn lost_lines(run: &Run) -> Figure {
    let mut next = 0;
    let mut whole = 0;
    for line in run.texts[0].lines().filter(|line| line.len() == LINE_LENGTH && line.ends_with('x')) {
        if let Some(number) = line.get(..6).and_then(|number| number.parse::<usize>().ok()).filter(|number| *number >= next)
        {
            whole += 1;
            next = number + 1;
        }
    }
    Figure::Count(LINES - whole)
}

fn lost_bytes(run: &Run) -> Figure {
    let right = run.texts[1].bytes().filter(|byte| matches!(byte, b'y' | b'\n')).count();
    Figure::Count(BIG_LENGTH.saturating_sub(right))
}

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("cellkeep-bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
