//! What a command prints, and whether it could.
//!
//! A closed pipe downstream (`| head`) is no reason to stop the code, let alone to panic. A full disk is no reason to stop either,
//! but whoever asked must learn that the output is not whole: [`failure`] tells at the end.

use std::io::{self, Write};
use std::sync::OnceLock;

use serde_json::Value;

use crate::output::{CellKey, Outputs, StreamStyle, text_of};
use crate::wire::Message;

/// The first write that failed.
static FAILURE: OnceLock<String> = OnceLock::new();

/// A line on standard error. One that nobody reads any more is no reason to stop.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// A line on standard output.
macro_rules! tell {
    ($($text:tt)*) => {
        $crate::cli::print::to_stdout(&format!("{}\n", format_args!($($text)*)))
    };
}

/// Writes to standard output, at once.
pub(super) fn to_stdout(text: &str) {
    bytes_to_stdout(text.as_bytes());
}

/// As [`to_stdout`], for what need not be text.
pub(super) fn bytes_to_stdout(bytes: &[u8]) {
    let mut stdout = io::stdout();
    note("standard output", stdout.write_all(bytes).and_then(|()| stdout.flush()));
}

/// Writes what the code said to standard error.
pub(super) fn to_stderr(text: &str) {
    note("standard error", io::stderr().write_all(text.as_bytes()));
}

fn note(place: &str, result: io::Result<()>) {
    if let Err(error) = result
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        let _ = FAILURE.set(format!("cannot write to {place}: {error}"));
    }
}

/// Why not everything could be printed, if so.
pub(super) fn failure() -> Option<&'static str> {
    FAILURE.get().map(String::as_str)
}

/// An error with its causes, each said once: some name their cause themselves, and others leave that to whoever shows them.
pub(super) fn explain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        told if told.contains(&cause) => told.to_owned(),
        told => format!("{told}: {cause}"),
    })
}

/// An output as text for a terminal: streams as they are, displays in a line of their own. Empty where there is none.
pub(super) fn as_text(msg_type: &str, message: &Message) -> String {
    if msg_type == "stream" {
        let content = message.content_value();
        return content.get("text").and_then(Value::as_str).unwrap_or_default().to_owned();
    }
    let cell = CellKey(0);
    let mut one = Outputs::new(StreamStyle::Terminal);
    one.apply(cell, msg_type, &message.content);
    let text = text_of(one.outputs(cell));
    let text = text.trim_end_matches('\n');
    if text.trim().is_empty() { String::new() } else { format!("{text}\n") }
}

/// Whether an output belongs on standard error.
pub(super) fn is_for_stderr(msg_type: &str, message: &Message) -> bool {
    msg_type == "error"
        || msg_type == "stream" && message.content_value().get("name").and_then(Value::as_str) == Some("stderr")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn every_cause_is_said_once() {
        let names_its_cause = || serde_json::from_str::<Value>("{").map_err(|source| NamesItsCause { source });
        let error = names_its_cause().context("cannot begin").unwrap_err();
        assert_eq!(explain(&error), "cannot begin: bad JSON: EOF while parsing an object at line 1 column 1");
        assert_eq!(explain(&anyhow::anyhow!("alone")), "alone");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("bad JSON: {source}")]
    struct NamesItsCause {
        source: serde_json::Error,
    }
}
