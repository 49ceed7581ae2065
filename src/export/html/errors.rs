//! Errors in a page: the message first, then the traceback with the frames of libraries folded.

use super::{Page, terminal_text};
use crate::export::text::{field, text, trimmed};
use crate::output::strip_ansi;
use crate::render::escape;
use serde_json::Value;

impl Page<'_> {
    pub(super) fn error(&mut self, output: &Value) {
        let (name, value) = (strip_ansi(&field(output, "ename")), strip_ansi(&field(output, "evalue")));
        self.push("<div class=\"error\" role=\"group\" aria-label=\"Error\">\n<p><strong>");
        self.push_escaped(if name.is_empty() { "Error" } else { &name });
        self.push("</strong>");
        if !value.is_empty() {
            self.push(": ");
            let short: String = value.chars().take(2000).collect();
            self.push_escaped(&short);
        }
        self.push("</p>\n");
        let entries = output.get("traceback").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let entries: Vec<_> = entries.iter().map(text).filter(|entry| !is_rule(entry)).collect();
        let frames = entries.iter().filter(|entry| is_frame(entry)).count();
        if !entries.is_empty() {
            self.push("<details class=\"fold\" open><summary>Traceback</summary>\n<div class=\"frames\">\n");
            if frames == 0 {
                terminal_text::html(&entries.join("\n"), "wide", &mut self.out);
            } else {
                self.entries(&entries);
            }
            self.push("</div></details>\n");
        }
        self.push("</div>\n");
    }

    /// The user's own frames are open. Neighbouring frames of libraries are folded into one line.
    fn entries(&mut self, entries: &[std::borrow::Cow<'_, str>]) {
        let mut at = 0;
        while at < entries.len() {
            let run = entries[at..].iter().take_while(|entry| is_library(entry)).count();
            if run == 0 {
                terminal_text::html(trimmed(&entries[at]), "wide", &mut self.out);
                at += 1;
                continue;
            }
            let what = if run == 1 { first_line(&entries[at]) } else { format!("{run} frames of libraries") };
            self.push("<details class=\"fold\"><summary>");
            escape(&what, &mut self.out);
            self.push("</summary>\n");
            terminal_text::html(trimmed(&entries[at..at + run].join("\n")), "wide", &mut self.out);
            self.push("</details>\n");
            at += run;
        }
    }
}

/// The line of hyphens at the start of an IPython traceback.
fn is_rule(entry: &str) -> bool {
    let bare = strip_ansi(entry);
    bare.len() > 10 && bare.trim().bytes().all(|byte| byte == b'-')
}

/// Whether an entry is a stack frame of IPython.
fn is_frame(entry: &str) -> bool {
    let line = first_line(entry);
    line.starts_with("File ")
        || line.starts_with("Cell In")
        || line.starts_with("Input In")
        || line.starts_with("<ipython-input")
}

/// Whether an entry is a stack frame of an installed library.
fn is_library(entry: &str) -> bool {
    let line = first_line(entry);
    line.starts_with("File ")
        && ["/site-packages/", "/dist-packages/", "/lib/python", "<frozen ", "/usr/lib/"]
            .iter()
            .any(|place| line.contains(place))
}

fn first_line(entry: &str) -> String {
    let line = entry.lines().next().unwrap_or_default();
    strip_ansi(line).trim().chars().take(300).collect()
}
