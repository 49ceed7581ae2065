//! Prints to standard output and standard error, and remembers the first failure.
//!
//! A closed pipe downstream (`| head`) must neither stop the code nor panic. Other failures, such as a full disk, do not
//! stop the code either, but [`write_error`] reports at the end that the output is incomplete.

use std::io::{self, Write};
use std::sync::OnceLock;

use serde_json::Value;

use crate::output::{OutputTarget, Outputs, StreamStyle, text_of};
use crate::wire::Message;

/// The first write that failed.
static WRITE_ERROR: OnceLock<String> = OnceLock::new();

/// Prints a line to standard error; a failure is ignored.
macro_rules! eprint_line {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// Prints a line to standard output.
macro_rules! print_line {
    ($($text:tt)*) => {
        $crate::cli::print::to_stdout(&format!("{}\n", format_args!($($text)*)))
    };
}

/// Writes to standard output and flushes.
pub(super) fn to_stdout(text: &str) {
    bytes_to_stdout(text.as_bytes());
}

/// As [`to_stdout`], for bytes.
pub(super) fn bytes_to_stdout(bytes: &[u8]) {
    let mut stdout = io::stdout();
    remember_error("standard output", stdout.write_all(bytes).and_then(|()| stdout.flush()));
}

/// Writes to standard error, and remembers a failure.
pub(super) fn to_stderr(text: &str) {
    bytes_to_stderr(text.as_bytes());
}

/// As [`to_stderr`], for bytes.
pub(super) fn bytes_to_stderr(bytes: &[u8]) {
    remember_error("standard error", io::stderr().write_all(bytes));
}

fn remember_error(stream: &str, result: io::Result<()>) {
    if let Err(error) = result
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        let _ = WRITE_ERROR.set(format!("cannot write to {stream}: {error}"));
    }
}

/// The first write that failed, other than to a closed pipe.
pub(super) fn write_error() -> Option<&'static str> {
    WRITE_ERROR.get().map(String::as_str)
}

/// An error and its causes, joined by colons. A cause that an outer message already contains is not repeated.
pub(super) fn explain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |message, cause| match message.as_str() {
        "" => cause,
        message if message.contains(&cause) => message.to_owned(),
        message => format!("{message}: {cause}"),
    })
}

/// An output as text for a terminal: streams unchanged, displays on lines of their own. Empty if it has no text.
pub(super) fn as_text(msg_type: &str, message: &Message) -> String {
    if msg_type == "stream" {
        let content = message.content_value();
        return content.get("text").and_then(Value::as_str).unwrap_or_default().to_owned();
    }
    let cell = OutputTarget::cell(0);
    let mut outputs = Outputs::new(StreamStyle::Terminal);
    outputs.apply(cell, msg_type, &message.content);
    let text = text_of(outputs.outputs(cell));
    let text = text.trim_end_matches('\n');
    if text.trim().is_empty() { String::new() } else { format!("{text}\n") }
}

/// Whether an output goes to standard error.
pub(super) fn is_for_stderr(msg_type: &str, message: &Message) -> bool {
    msg_type == "error"
        || msg_type == "stream" && message.content_value().get("name").and_then(Value::as_str) == Some("stderr")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_are_not_repeated() {
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
