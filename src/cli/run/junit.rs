//! The JUnit report, which most CI systems show: a suite for each notebook, a case for each cell.
//!
//! Written without a crate: the format is these few lines, and a crate for it brings an XML writer and a calendar.

use super::outcome::Outcome;
use crate::cli::Exit;
use crate::cli::options::exit_for;
use crate::output::strip_ansi;
use crate::runner::CellReport;

pub(in crate::cli) fn junit(outcomes: &[Outcome]) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for outcome in outcomes {
        let cases = cases(outcome);
        let failures = cases.iter().filter(|case| case.failure.is_some()).count();
        let name = escape(&outcome.source.display().to_string());
        out.push_str(&format!(
            "  <testsuite name=\"{name}\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" time=\"{:.3}\">\n",
            cases.len(),
            outcome.total_time.as_secs_f64()
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
        cases.push(Case { name: "notebook".to_owned(), seconds: outcome.total_time.as_secs_f64(), failure });
    }
    cases
}

fn case(cell: &CellReport, outcome: &Outcome) -> Case {
    let failed = exit_for(cell.status) != Exit::Ok && !cell.allowed;
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

/// Escapes text for XML 1.0, in which most control characters are not allowed.
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
    use std::path::Path;

    use super::*;

    #[test]
    fn control_characters_become_valid_xml() {
        let mut outcome = Outcome::new(Path::new("a<b>&\".ipynb"), "id");
        (outcome.failure, outcome.exit) = (Some("no \u{1b}[31m <sandbox>\n".to_owned()), Exit::NoSandbox);
        let xml = junit(&[outcome]);
        assert!(xml.contains("name=\"a&lt;b&gt;&amp;&quot;.ipynb\" tests=\"1\" failures=\"1\""), "{xml}");
        assert!(xml.contains(">no \u{fffd}[31m &lt;sandbox&gt;&#10;</failure>"), "{xml}");
    }
}
