//! Reports at the end of a run: lines and a table for people, JSON for programs.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::outcome::{Outcome, worst};
use crate::cli::Exit;
use crate::output::strip_ansi;
use crate::runner::{CellReport, RunReport};

impl Outcome {
    /// Prints the lines at the end of a command with one notebook.
    pub fn print_summary(&self) {
        let Some(report) = &self.report else { return };
        if report.interrupted {
            eprint_line!("interrupted between two cells");
        }
        if let Some(cell) = report.failure() {
            eprint_line!("cell {} ({}): {}", cell.index + 1, cell.id, cell.status.name());
            if let Some(error) = &cell.error {
                eprint_line!("  {}: {}", error.ename, strip_ansi(&error.evalue));
            }
        }
        for path in self.target.iter().filter(|path| *path != Path::new("-")).chain(&self.files) {
            eprint_line!("wrote {}", path.display());
        }
        eprint_line!(
            "{} of {} cells in {:.2} s; kernel ready after {:.2} s, {:.2} s in total",
            report.cells.len(),
            report.total,
            report.wall.as_secs_f64(),
            self.ready_after.as_secs_f64(),
            self.total_time.as_secs_f64()
        );
    }

    /// The cause of a failure for the table; empty if there is none.
    fn cause(&self) -> String {
        if let Some(failure) = &self.failure {
            return failure.clone();
        }
        let failed = self.report.as_ref().and_then(RunReport::failure);
        if let Some(cell) = failed {
            let error = cell.error.as_ref().map(|error| format!(", {}: {}", error.ename, strip_ansi(&error.evalue)));
            return format!("cell {}{}", cell.index + 1, error.unwrap_or_default());
        }
        match self.differences.len() {
            0 => String::new(),
            count => format!("{count} of {} cells differ", self.compared),
        }
    }

    pub fn json(&self) -> Value {
        let milliseconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let cells: Vec<Value> = self.report.iter().flat_map(|report| &report.cells).map(cell_json).collect();
        let mut json = json!({
            "status": self.status(),
            "notebook": self.source,
            "run_id": self.run_id,
            "parameters": self.parameters.to_json(),
            "output": self.target,
            "artifacts": self.files,
            "cells": cells,
            "cells_total": self.report.as_ref().map_or(0, |report| report.total),
            "metrics": {
                "ready_ms": milliseconds(self.ready_after),
                "wall_ms": milliseconds(self.report.as_ref().map_or(Duration::ZERO, |report| report.wall)),
                "total_ms": milliseconds(self.total_time),
            },
        });
        if let Some(failure) = &self.failure {
            json["failure"] = json!(failure);
        }
        if self.compared > 0 {
            json["compared"] = json!(self.compared);
            let all = self.differences.iter().map(|(cell, text)| json!({"cell": cell, "difference": strip_ansi(text)}));
            json["differences"] = all.collect();
        }
        json
    }
}

fn cell_json(cell: &CellReport) -> Value {
    json!({
        "index": cell.index, "id": cell.id, "status": cell.status.name(), "allowed": cell.allowed,
        "wall_ms": (cell.wall.as_secs_f64() * 1e6).round() / 1e3,
        "error": cell.error.as_ref().map(|error| json!({"ename": error.ename, "evalue": error.evalue})),
    })
}

/// The JSON report: of one notebook its object, of several a list of them.
pub(in crate::cli) fn json_of(outcomes: &[Outcome], many: bool) -> Value {
    match outcomes {
        [one] if !many => one.json(),
        all => json!({
            "status": if worst(all) == Exit::Ok { "ok" } else { "failed" },
            "notebooks": all.iter().map(Outcome::json).collect::<Vec<_>>(),
        }),
    }
}

/// Prints the table at the end of a command with several notebooks.
pub(in crate::cli) fn print_table(outcomes: &[Outcome], wall: Duration) {
    let width =
        outcomes.iter().map(|outcome| outcome.source.display().to_string().chars().count()).max().unwrap_or(0).min(60);
    eprint_line!("");
    for outcome in outcomes {
        let cells = outcome.report.as_ref().map_or(0, |report| report.cells.len());
        let (path, status, why) = (outcome.source.display().to_string(), outcome.status(), outcome.cause());
        eprint_line!("{status:<16} {path:<width$} {cells:>5} cells {:>8.2} s  {why}", outcome.total_time.as_secs_f64());
    }
    let ok = outcomes.iter().filter(|outcome| outcome.exit == Exit::Ok).count();
    eprint_line!("{ok} of {} notebooks ok in {:.2} s", outcomes.len(), wall.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_notebooks_are_listed() {
        let outcome = |exit| Outcome { exit, ..Outcome::new(Path::new("x"), "") };
        let all = [outcome(Exit::Ok), outcome(Exit::Ok)];
        assert_eq!(json_of(&all, true)["notebooks"].as_array().unwrap().len(), 2);
        assert!(json_of(&all[..1], true)["notebooks"].is_array() && json_of(&all[..1], false)["notebooks"].is_null());
    }
}
