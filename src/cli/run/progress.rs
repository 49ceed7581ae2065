//! Shows progress: bars on a terminal, lines elsewhere. Also saves unfinished notebooks every few seconds.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::notebook_file::save;
use crate::cli::print::{as_text, explain};
use crate::notebook::Notebook;
use crate::runner::Progress;
use crate::session::ExecutionStatus;
use crate::wire::Message;

const SAVE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum ProgressMode {
    /// A bar on a terminal, lines elsewhere
    Auto,
    /// A line for each cell
    Lines,
    /// Only failures
    None,
}

/// The display that all notebooks of a command share.
#[derive(Clone)]
pub(in crate::cli) struct ProgressDisplay {
    bars: Option<MultiProgress>,
    pub mode: ProgressMode,
    pub verbose: bool,
    /// Whether there are several notebooks; each line then begins with the path of its notebook.
    pub many: bool,
}

/// The progress of one notebook.
pub(in crate::cli) struct NotebookProgress {
    display: ProgressDisplay,
    bar: Option<ProgressBar>,
    label: String,
    /// Number and title of the running cell.
    current: String,
    /// The file that is saved while the notebook runs.
    target: Option<PathBuf>,
    last_save: Instant,
}

impl ProgressDisplay {
    pub fn new(mode: ProgressMode, verbose: bool, many: bool) -> Self {
        let on_terminal = mode == ProgressMode::Auto && std::io::stderr().is_terminal();
        Self { bars: on_terminal.then(MultiProgress::new), mode, verbose, many }
    }

    /// Prints a line above the bars.
    pub fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| eprint_line!("{text}")),
            None => eprint_line!("{text}"),
        }
    }

    /// Adds a notebook. `target`, unless it is `-`, is saved every few seconds while the notebook runs.
    pub fn notebook(&self, source: &Path, target: Option<&Path>) -> NotebookProgress {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(0));
            let template = "{bar:24.cyan/dim} {pos}/{len} {elapsed_precise} {wide_msg}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let label = if self.many { format!("{}: ", source.display()) } else { String::new() };
        let target = target.filter(|target| *target != Path::new("-")).map(Path::to_owned);
        NotebookProgress { display: self.clone(), bar, label, current: String::new(), target, last_save: Instant::now() }
    }
}

impl NotebookProgress {
    fn line(&self, text: &str) {
        self.display.line(&format!("{}{text}", self.label));
    }

    /// Prints a notice for the person at the terminal.
    pub fn notice(&self, text: &str) {
        self.line(&format!("cellkeep: {text}"));
    }

    pub fn update(&mut self, update: Progress<'_>) {
        match update {
            Progress::CellStarted { number, total, title, .. } => {
                let title: String = title.chars().filter(|c| !c.is_control()).take(80).collect();
                self.current = format!("[{number}/{total}] {title}");
                if let Some(bar) = &self.bar {
                    bar.set_length(total as u64);
                    bar.set_message(format!("{}{title}", self.label));
                } else if self.display.verbose {
                    self.line(&self.current);
                }
            }
            Progress::Output { msg_type, message } if self.display.verbose => self.output(msg_type, message),
            Progress::Output { .. } => {}
            Progress::Notice(text) => self.notice(text),
            Progress::CellFinished { result, notebook, .. } => {
                if let Some(bar) = &self.bar {
                    bar.inc(1);
                }
                let every_cell = self.bar.is_none() && self.display.mode != ProgressMode::None && !self.display.many;
                let every_cell = every_cell || self.display.mode == ProgressMode::Lines;
                if every_cell || !matches!(result.status, ExecutionStatus::Ok) {
                    self.line(&format!("{} ({}, {:.2} s)", self.current, result.status.name(), result.wall.as_secs_f64()));
                }
                self.save_if_due(notebook);
            }
        }
    }

    fn output(&self, msg_type: &str, message: &Message) {
        let text = as_text(msg_type, message);
        if !text.is_empty() {
            self.line(text.trim_end_matches('\n'));
        }
    }

    /// Saves the notebook, so that a killed run loses a few seconds at most. Not after every cell: writing the whole
    /// notebook each time would take quadratic time.
    fn save_if_due(&mut self, notebook: &Notebook) {
        if let Some(target) = self.target.as_ref().filter(|_| self.last_save.elapsed() >= SAVE_INTERVAL) {
            if let Err(error) = save(target, notebook) {
                self.line(&format!("warning: {}", explain(&error)));
            }
            self.last_save = Instant::now();
        }
    }
}

impl Drop for NotebookProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
