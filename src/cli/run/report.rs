//! What is told of runs at the end: lines for people, JSON, and JUnit for CI.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::Exit;
use crate::cli::options::exit_of;
use crate::notebook::parameters::Parameters;
use crate::output::strip_ansi;
use crate::runner::{CellReport, RunReport};

/// A notebook of which all is over.
pub(in crate::cli) struct Outcome {
    pub source: PathBuf,
    pub target: Option<PathBuf>,
    pub run_id: String,
    pub parameters: Parameters,
    pub exit: Exit,
    /// Why it was not run, or not to its end, beside what its cells say.
    pub failure: Option<String>,
    pub report: Option<RunReport>,
    pub files: Vec<PathBuf>,
    pub ready_after: Duration,
    pub whole: Duration,
    /// What a comparison with stored outputs has found, by cell.
    pub differences: Vec<(usize, String)>,
    /// Cells whose outputs were compared.
    pub compared: usize,
}

impl Outcome {
    pub fn new(source: &Path, run_id: &str) -> Self {
        Self {
            source: source.to_owned(),
            target: None,
            run_id: run_id.to_owned(),
            parameters: Parameters::default(),
            exit: Exit::Ok,
            failure: None,
            report: None,
            files: Vec::new(),
            ready_after: Duration::ZERO,
            whole: Duration::ZERO,
            differences: Vec::new(),
            compared: 0,
        }
    }

    /// One word for how it went.
    pub fn status(&self) -> &'static str {
        match (&self.report, &self.failure) {
            (_, Some(_)) if self.exit == Exit::Interrupted => "interrupted",
            (_, Some(_)) => "not_run",
            (Some(report), None) if exit_of(report.status()) != Exit::Ok => report.status().name(),
            (Some(_), None) if !self.differences.is_empty() => "different",
            (Some(report), None) => report.status().name(),
            (None, None) => "cancelled",
        }
    }

    /// The lines at the end of a command with one notebook.
    pub fn lines(&self) {
        let Some(report) = &self.report else { return };
        if report.interrupted {
            say!("interrupted between two cells");
        }
        if let Some(cell) = report.failure() {
            say!("cell {} ({}): {}", cell.index + 1, cell.id, cell.status.name());
            if let Some(error) = &cell.error {
                say!("  {}: {}", error.ename, strip_ansi(&error.evalue));
            }
        }
        for path in self.target.iter().filter(|path| *path != Path::new("-")).chain(&self.files) {
            say!("wrote {}", path.display());
        }
        say!(
            "{} of {} cells in {:.2} s; kernel ready after {:.2} s, {:.2} s in all",
            report.cells.len(),
            report.total,
            report.wall.as_secs_f64(),
            self.ready_after.as_secs_f64(),
            self.whole.as_secs_f64()
        );
    }

    fn why(&self) -> String {
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
                "total_ms": milliseconds(self.whole),
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

/// The exit code of several: the worst. What could not be run at all weighs more than a cell that failed.
pub(in crate::cli) fn worst(outcomes: &[Outcome]) -> Exit {
    let order = [Exit::Interrupted, Exit::NoSandbox, Exit::Usage, Exit::KernelDied, Exit::TimedOut, Exit::CellFailed];
    order.into_iter().find(|exit| outcomes.iter().any(|outcome| outcome.exit == *exit)).unwrap_or(Exit::Ok)
}

/// All of them as JSON: one as it is, several in a list.
pub(in crate::cli) fn json_of(outcomes: &[Outcome], many: bool) -> Value {
    match outcomes {
        [one] if !many => one.json(),
        all => json!({
            "status": if worst(all) == Exit::Ok { "ok" } else { "failed" },
            "notebooks": all.iter().map(Outcome::json).collect::<Vec<_>>(),
        }),
    }
}

/// The table at the end of a command with several notebooks.
pub(in crate::cli) fn table(outcomes: &[Outcome], wall: Duration) {
    let width =
        outcomes.iter().map(|outcome| outcome.source.display().to_string().chars().count()).max().unwrap_or(0).min(60);
    say!("");
    for outcome in outcomes {
        let cells = outcome.report.as_ref().map_or(0, |report| report.cells.len());
        let (path, status, why) = (outcome.source.display().to_string(), outcome.status(), outcome.why());
        say!("{status:<16} {path:<width$} {cells:>5} cells {:>8.2} s  {why}", outcome.whole.as_secs_f64());
    }
    let ok = outcomes.iter().filter(|outcome| outcome.exit == Exit::Ok).count();
    say!("{ok} of {} notebooks ok in {:.2} s", outcomes.len(), wall.as_secs_f64());
}

/// A JUnit report: a suite for each notebook, a case for each cell. Written by hand: the format is these few lines, and a crate
/// for it brings an XML writer, a calendar and more of its own.
pub(in crate::cli) fn junit(outcomes: &[Outcome]) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for outcome in outcomes {
        let cases = cases(outcome);
        let failures = cases.iter().filter(|case| case.failure.is_some()).count();
        let name = escape(&outcome.source.display().to_string());
        out.push_str(&format!(
            "  <testsuite name=\"{name}\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" time=\"{:.3}\">\n",
            cases.len(),
            outcome.whole.as_secs_f64()
        ));
        for case in cases {
            let head =
                format!("    <testcase classname=\"{name}\" name=\"{}\" time=\"{:.3}\"", escape(&case.name), case.seconds);
            match case.failure {
                None => out.push_str(&format!("{head}/>\n")),
                Some((kind, text)) => out.push_str(&format!(
                    "{head}>\n      <failure message=\"{}\">{}</failure>\n    </testcase>\n",
                    escape(&kind),
                    escape(&text)
                )),
            }
        }
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

struct Case {
    name: String,
    seconds: f64,
    failure: Option<(String, String)>,
}

fn cases(outcome: &Outcome) -> Vec<Case> {
    let mut cases: Vec<Case> =
        outcome.report.iter().flat_map(|report| &report.cells).map(|cell| case(cell, outcome)).collect();
    if cases.is_empty() || outcome.failure.is_some() {
        let failure = outcome.failure.clone().map(|failure| (outcome.status().to_owned(), failure));
        cases.push(Case { name: "notebook".to_owned(), seconds: outcome.whole.as_secs_f64(), failure });
    }
    cases
}

fn case(cell: &CellReport, outcome: &Outcome) -> Case {
    let failed = exit_of(cell.status) != Exit::Ok && !cell.allowed;
    let error = failed.then(|| {
        let (kind, text) = cell.error.as_ref().map_or((String::new(), String::new()), |error| {
            (format!("{}: {}", error.ename, strip_ansi(&error.evalue)), strip_ansi(&error.traceback.join("\n")))
        });
        (if kind.is_empty() { cell.status.name().to_owned() } else { kind }, text)
    });
    let different: Vec<&str> =
        outcome.differences.iter().filter(|(index, _)| *index == cell.index).map(|(_, text)| text.as_str()).collect();
    let difference = (!different.is_empty()).then(|| ("outputs differ".to_owned(), strip_ansi(&different.join("\n"))));
    Case {
        name: format!("cell {} ({})", cell.index + 1, cell.id),
        seconds: cell.wall.as_secs_f64(),
        failure: error.or(difference),
    }
}

/// Text for XML 1.0, which knows no control characters.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for symbol in text.chars() {
        match symbol {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push('\t'),
            control if control.is_control() || matches!(control, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn junit_is_xml_whatever_was_said() {
        let mut outcome = Outcome::new(Path::new("a<b>&\".ipynb"), "id");
        (outcome.failure, outcome.exit) = (Some("no \u{1b}[31m <sandbox>\n".to_owned()), Exit::NoSandbox);
        let xml = junit(&[outcome]);
        assert!(xml.contains("name=\"a&lt;b&gt;&amp;&quot;.ipynb\" tests=\"1\" failures=\"1\""), "{xml}");
        assert!(xml.contains(">no \u{fffd}[31m &lt;sandbox&gt;&#10;</failure>"), "{xml}");
    }

    #[test]
    fn the_worst_is_told() {
        let outcome = |exit| Outcome { exit, ..Outcome::new(Path::new("x"), "") };
        assert_eq!(worst(&[]), Exit::Ok);
        assert_eq!(worst(&[outcome(Exit::CellFailed), outcome(Exit::KernelDied), outcome(Exit::Ok)]), Exit::KernelDied);
        let all = [outcome(Exit::Ok), outcome(Exit::Ok)];
        assert_eq!(json_of(&all, true)["notebooks"].as_array().unwrap().len(), 2);
        assert!(json_of(&all[..1], true)["notebooks"].is_array() && json_of(&all[..1], false)["notebooks"].is_null());
    }
}
