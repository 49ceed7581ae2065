//! Shows how runs go: bars on a terminal, lines elsewhere. Saves a notebook now and then while it runs.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::notebook_file::save;
use crate::cli::print::{as_text, explain};
use crate::notebook::Notebook;
use crate::runner::Progress;
use crate::session::RunStatus;
use crate::wire::Message;

/// Between two saves of an unfinished notebook.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// How progress is shown.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum ProgressKind {
    /// A bar on a terminal, lines elsewhere
    Auto,
    /// A line for each cell
    Lines,
    /// Nothing but what fails
    None,
}

/// Where all notebooks of a command are shown.
#[derive(Clone)]
pub(in crate::cli) struct Board {
    bars: Option<MultiProgress>,
    pub kind: ProgressKind,
    pub verbose: bool,
    /// Whether there are several notebooks, so that each line names its own.
    pub many: bool,
}

/// One notebook's progress.
pub(in crate::cli) struct Show {
    board: Board,
    bar: Option<ProgressBar>,
    label: String,
    current: String,
    target: Option<PathBuf>,
    saved: Instant,
}

impl Board {
    pub fn new(kind: ProgressKind, verbose: bool, many: bool) -> Self {
        let on_terminal = kind == ProgressKind::Auto && std::io::stderr().is_terminal();
        Self { bars: on_terminal.then(MultiProgress::new), kind, verbose, many }
    }

    /// Prints a line above the bars.
    pub fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| say!("{text}")),
            None => say!("{text}"),
        }
    }

    /// Shows a notebook; `target` is written now and then, if given.
    pub fn show(&self, source: &Path, target: Option<&Path>) -> Show {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(0));
            let template = "{bar:24.cyan/dim} {pos}/{len} {elapsed_precise} {wide_msg}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let label = if self.many { format!("{}: ", source.display()) } else { String::new() };
        let target = target.filter(|target| *target != Path::new("-")).map(Path::to_owned);
        Show { board: self.clone(), bar, label, current: String::new(), target, saved: Instant::now() }
    }
}

impl Show {
    fn line(&self, text: &str) {
        self.board.line(&format!("{}{text}", self.label));
    }

    /// Something that people should know.
    pub fn notice(&self, text: &str) {
        self.line(&format!("cellkeep: {text}"));
    }

    pub fn take(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::CellStarted { number, total, title, .. } => {
                let title: String = title.chars().filter(|c| !c.is_control()).take(80).collect();
                self.current = format!("[{number}/{total}] {title}");
                if let Some(bar) = &self.bar {
                    bar.set_length(total as u64);
                    bar.set_message(format!("{}{title}", self.label));
                } else if self.board.verbose {
                    self.line(&self.current);
                }
            }
            Progress::Output { msg_type, message } if self.board.verbose => self.output(msg_type, message),
            Progress::Output { .. } => {}
            Progress::Notice(text) => self.notice(text),
            Progress::CellFinished { result, notebook, .. } => {
                if let Some(bar) = &self.bar {
                    bar.inc(1);
                }
                let each = self.bar.is_none() && self.board.kind != ProgressKind::None && !self.board.many;
                let each = each || self.board.kind == ProgressKind::Lines;
                if each || !matches!(result.status, RunStatus::Ok) {
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
        if let Some(target) = self.target.as_ref().filter(|_| self.saved.elapsed() >= SAVE_EVERY) {
            if let Err(error) = save(target, notebook) {
                self.line(&format!("warning: {}", explain(&error)));
            }
            self.saved = Instant::now();
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
