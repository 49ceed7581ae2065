//! Cells that print more than clients like, and what arrives.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use cellkeep::manager::Session;
use cellkeep::policy::Limits;
use cellkeep::sandbox::SandboxKind;
use serde_json::{Value, json};

use crate::peer::argv;
use crate::table::{Figure, Goal, Rows};
use crate::{Lab, run};

/// Numbered lines of 1,024 bytes, each flushed.
pub(crate) const FLOOD: &str = "for i in range(60000): print(f'{i:06d} ' + 'x'*1016, flush=True)";
/// How long nbclient waits by default for output after a cell's reply, and long enough for all of it, seconds.
const PATIENCE: [u32; 2] = [4, 120];
const LINES: usize = 60_000;
const LINE_LENGTH: usize = 1023;
/// One output as large as many a dump of a table.
pub(crate) const BIG: &str = "print('y'*50_000_000)";
const BIG_LENGTH: usize = 50_000_001;

/// One way to run the two cells.
struct Run {
    /// Text of each cell's outputs.
    texts: [String; 2],
    /// Seconds of each cell; `NAN` where the way does not show them.
    cells: [f64; 2],
    /// Seconds of the whole, from the start of the program or session to its end.
    whole: f64,
}

impl Run {
    fn cell(&self, index: usize) -> Figure {
        Figure::Seconds(self.cells[index])
    }

    fn lost_lines(&self) -> Figure {
        Figure::Count(lost_lines(&self.texts[0]))
    }

    fn lost_bytes(&self) -> Figure {
        let right = self.texts[1].bytes().filter(|byte| matches!(byte, b'y' | b'\n')).count();
        Figure::Count(BIG_LENGTH.saturating_sub(right))
    }
}

/// Lines of the flood that did not arrive whole and in order.
pub(crate) fn lost_lines(text: &str) -> usize {
    let (mut next, mut whole) = (0, 0);
    for line in text.lines().filter(|line| line.len() == LINE_LENGTH && line.ends_with('x')) {
        let number = line.get(..6).and_then(|number| number.parse::<usize>().ok());
        if let Some(number) = number.filter(|number| *number >= next) {
            whole += 1;
            next = number + 1;
        }
    }
    LINES - whole
}

pub(crate) async fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let folder = Folder::new("flood")?;
    let source = folder.0.join("in.ipynb");
    fs::write(&source, notebook().to_string())?;
    let nbclient = |argv: &[String], patience: u32| with_nbclient(lab, &folder.0, &source, argv, patience);
    eprintln!("flood: session");
    let session = in_session(lab, Limits::default()).await?;
    eprintln!("flood: nbclient, patient");
    let patient = nbclient(&argv(lab), PATIENCE[1])?;
    eprintln!("flood: session with all CPUs");
    let unthrottled = in_session(lab, all_cpus()).await?;
    eprintln!("flood: cellkeep run");
    let command = with_cellkeep(lab, &folder.0, &source)?;
    eprintln!("flood: nbclient");
    let hasty = nbclient(&argv(lab), PATIENCE[0])?;
    eprintln!("flood: nbclient with the usual launcher");
    let usual = nbclient(&usual_argv(lab), PATIENCE[0])?;

    let mut rows = Rows::default();
    for (name, ours) in [("session", &session), ("`cellkeep run`", &command)] {
        rows.compare(&format!("{name}: lines lost"), ours.lost_lines(), "nbclient", hasty.lost_lines(), Some(Goal::None));
        rows.compare(
            &format!("{name}: bytes lost of 50 MB"),
            ours.lost_bytes(),
            "nbclient",
            hasty.lost_bytes(),
            Some(Goal::None),
        );
    }
    for (name, ours) in [("session", &session), ("session with all CPUs", &unthrottled)] {
        for (what, index) in [("the flood", 0), ("the 50 MB", 1)] {
            rows.compare(&format!("{name}: {what}"), ours.cell(index), "nbclient+", patient.cell(index), None);
        }
    }
    rows.compare(
        "`cellkeep run`: both, from start to file",
        Figure::Seconds(command.whole),
        "nbclient+",
        Figure::Seconds(patient.whole),
        None,
    );
    rows.note("a line is lost unless it arrives whole and in order".to_owned());
    rows.note("times are of one run each, and equal runs differ by half: no more than a hint".to_owned());
    rows.note(format!(
        "a session has {} CPU if it asks for no more; nbclient's kernel has all of them",
        Limits::default().cpus
    ));
    rows.note(format!("nbclient: on our launcher, as it is: after a cell's reply it waits {} s for output", PATIENCE[0]));
    rows.note(format!(
        "nbclient+: waits {} s; loses {} lines and {} bytes",
        PATIENCE[1],
        patient.lost_lines(),
        patient.lost_bytes()
    ));
    rows.note(format!(
        "nbclient as it is, on the usual launcher (python -m ipykernel_launcher), loses {} lines and {} bytes, in {}",
        usual.lost_lines(),
        usual.lost_bytes(),
        Figure::Seconds(usual.whole)
    ));
    Ok(rows)
}

/// What a kernel without a sandbox has.
fn all_cpus() -> Limits {
    let cpus = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
    Limits { cpus, ..Limits::default() }
}

async fn in_session(lab: &Lab, limits: Limits) -> anyhow::Result<Run> {
    let began = Instant::now();
    let mut session = lab.session_with(SandboxKind::Process, limits).await?;
    let cells = async { anyhow::Ok([timed_cell(&mut session, FLOOD).await?, timed_cell(&mut session, BIG).await?]) }.await;
    session.destroy().await?;
    let [(flood, flood_seconds), (big, big_seconds)] = cells?;
    Ok(Run { texts: [flood, big], cells: [flood_seconds, big_seconds], whole: began.elapsed().as_secs_f64() })
}

async fn timed_cell(session: &mut Session, code: &str) -> anyhow::Result<(String, f64)> {
    let began = Instant::now();
    let text = run(session, code).await?;
    Ok((text, began.elapsed().as_secs_f64()))
}

fn with_cellkeep(lab: &Lab, folder: &Path, source: &Path) -> anyhow::Result<Run> {
    let target = folder.join("cellkeep.ipynb");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellkeep"));
    command.arg("--data").arg(lab.paths.data()).args(["run", "--sandbox", "process", "--output"]).arg(&target).arg(source);
    let (_, seconds) = timed(&mut command)?;
    Ok(Run { texts: texts_of(&target)?, cells: [f64::NAN; 2], whole: seconds })
}

fn with_nbclient(lab: &Lab, folder: &Path, source: &Path, argv: &[String], patience: u32) -> anyhow::Result<Run> {
    write_kernel_spec(lab, folder, argv)?;
    let target = folder.join("nbclient.ipynb");
    let mut command = Command::new(&lab.python);
    command.arg(crate::project().join("benches/peers/notebook.py")).arg(source).arg(&target).arg(patience.to_string());
    command.env("JUPYTER_PATH", folder).env("HOME", folder).env("IPYTHONDIR", folder.join("ipython"));
    let (said, seconds) = timed(&mut command)?;
    let said: Value = serde_json::from_str(&said).context("nbclient did not report its times")?;
    let cells = [0, 1].map(|index| said["cells"][index].as_f64().unwrap_or(f64::NAN));
    Ok(Run { texts: texts_of(&target)?, cells, whole: seconds })
}

/// Writes the kernelspec `bench`. Programs with the folder in `JUPYTER_PATH` find it.
pub(crate) fn write_kernel_spec(lab: &Lab, folder: &Path, argv: &[String]) -> anyhow::Result<()> {
    let spec = folder.join("kernels/bench");
    fs::create_dir_all(&spec)?;
    let json = json!({"argv": argv, "display_name": "bench", "language": "python", "env": lab.kernel.env});
    fs::write(spec.join("kernel.json"), json.to_string().replace("/opt/kernel", &lab.environment.display().to_string()))?;
    Ok(())
}

/// The kernel as everybody else starts it.
pub(crate) fn usual_argv(lab: &Lab) -> Vec<String> {
    let python = lab.environment.join("bin/python").display().to_string();
    [&python, "-m", "ipykernel_launcher", "-f", "{connection_file}"].map(str::to_owned).to_vec()
}

/// What a program prints, and the seconds that it takes; it must end well.
pub(crate) fn timed(command: &mut Command) -> anyhow::Result<(String, f64)> {
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

/// The text of the first two cells' stream outputs.
pub(crate) fn texts_of(path: &Path) -> anyhow::Result<[String; 2]> {
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

/// A folder that goes with its owner.
pub(crate) struct Folder(pub PathBuf);

impl Folder {
    /// A new, empty folder.
    pub fn new(kind: &str) -> anyhow::Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cellkeep-bench-{}-{kind}-{number}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
