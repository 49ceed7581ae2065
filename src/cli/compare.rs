//! Compares a cell's stored outputs with fresh ones, as nbval does: type by type, streams put together by name.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};

use crate::output::{CellKey, Outputs, StreamStyle, strip_ansi};

/// Characters of one difference that are shown.
const MAX_SHOWN: usize = 20_000;

/// One rule of a sanitising file: what is replaced before comparing.
pub(super) struct Rule {
    pattern: Regex,
    replacement: String,
}

/// What is compared, and how.
#[derive(Default)]
pub(super) struct Rules {
    rules: Vec<Rule>,
}

impl Rules {
    /// Reads nbval's format: sections of lines `regex: ...` and `replace: ...`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (mut rules, mut pattern) = (Vec::new(), None);
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            let ill = |what: &str| anyhow::anyhow!("line {}: {what}", number + 1);
            if let Some(rest) = line.strip_prefix("regex:") {
                if pattern.is_some() {
                    return Err(ill("a `regex:` before it has no `replace:`"));
                }
                pattern = Some(Regex::new(rest.trim()).map_err(|error| ill(&error.to_string()))?);
            } else if let Some(rest) = line.strip_prefix("replace:") {
                let pattern = pattern.take().ok_or_else(|| ill("a `replace:` without a `regex:` before it"))?;
                rules.push(Rule { pattern, replacement: python_groups(rest.trim()) });
            } else if !(line.is_empty() || line.starts_with(['[', '#', ';'])) {
                return Err(ill("it is neither `regex:`, `replace:`, a [section] nor a # comment"));
            }
        }
        match pattern {
            Some(_) => Err(anyhow::anyhow!("the last `regex:` has no `replace:`")),
            None => Ok(Self { rules }),
        }
    }

    /// Adds what is different in every run: addresses, temporary paths.
    pub fn add_volatile(&mut self) {
        let patterns =
            [(r"0x[0-9a-fA-F]{6,16}", "0xADDRESS"), (r"/tmp/[\w./-]+", "/tmp/PATH"), (r"ipykernel_\d+", "ipykernel")];
        self.rules.extend(patterns.into_iter().filter_map(|(pattern, replacement)| {
            Some(Rule { pattern: Regex::new(pattern).ok()?, replacement: replacement.to_owned() })
        }));
    }

    fn apply(&self, text: &str) -> String {
        self.rules
            .iter()
            .fold(text.to_owned(), |text, rule| rule.pattern.replace_all(&text, rule.replacement.as_str()).into_owned())
    }
}

/// `\1` and `\g<name>` as the engine writes them.
fn python_groups(replacement: &str) -> String {
    let mut out = String::new();
    let mut rest = replacement.replace('$', "$$");
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let behind = rest[at + 1..].to_owned();
        let name: String = match behind.strip_prefix("g<") {
            Some(named) => named.split('>').next().unwrap_or_default().to_owned(),
            None => behind.chars().take_while(char::is_ascii_digit).collect(),
        };
        if name.is_empty() {
            out.push('\\');
            rest = behind;
        } else {
            out.push_str(&format!("${{{name}}}"));
            rest = behind[if behind.starts_with("g<") { name.len() + 3 } else { name.len() }.min(behind.len())..].to_owned();
        }
    }
    out + &rest
}

/// What a cell shows, by kind: `stdout`, `stderr`, `error`, and the types of displays and results.
type Shown = BTreeMap<String, Vec<String>>;

fn shown(outputs: &[Value], rules: &Rules) -> Shown {
    let mut all = Shown::new();
    for output in outputs {
        match output["output_type"].as_str() {
            Some("stream") => {
                let stream =
                    all.entry(output["name"].as_str().unwrap_or("stdout").to_owned()).or_insert_with(|| vec![String::new()]);
                stream[0].push_str(&text_of(&output["text"]));
            }
            // As in nbval, the traceback is not compared: it names lines and files.
            Some("error") => {
                let text = format!("{}: {}", text_of(&output["ename"]), text_of(&output["evalue"]));
                all.entry("error".to_owned()).or_default().push(strip_ansi(&text));
            }
            _ => {
                for (mime, value) in output["data"].as_object().into_iter().flatten() {
                    all.entry(mime.clone()).or_default().push(text_of(value));
                }
            }
        }
    }
    for (kind, texts) in &mut all {
        let is_stream = matches!(kind.as_str(), "stdout" | "stderr");
        for text in texts {
            *text = rules.apply(&if is_stream { on_terminal(text) } else { std::mem::take(text) });
        }
    }
    all
}

/// What a terminal shows of a stream: other tools store progress bars line by line.
fn on_terminal(text: &str) -> String {
    let (cell, mut outputs) = (CellKey(0), Outputs::new(StreamStyle::Terminal));
    outputs.apply(cell, "stream", json!({"name": "stdout", "text": text}).to_string().as_bytes());
    outputs.outputs(cell).first().map(|output| text_of(&output["text"])).unwrap_or_default()
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) if lines.iter().all(Value::is_string) => lines.iter().filter_map(Value::as_str).collect(),
        other => format!("{other:#}"),
    }
}

/// The differences between stored and fresh outputs, in words; empty where there is none. `colours`: for a terminal.
pub(super) fn differences(stored: &[Value], fresh: &[Value], rules: &Rules, colours: bool) -> Vec<String> {
    let (stored, fresh) = (shown(stored, rules), shown(fresh, rules));
    let mut all = Vec::new();
    for (kind, before) in &stored {
        match fresh.get(kind) {
            None => all.push(format!("{kind}: stored, but not there any more")),
            Some(after) if before.len() != after.len() => {
                all.push(format!("{kind}: {} stored, {} now", before.len(), after.len()));
            }
            Some(after) => {
                let pairs = before.iter().zip(after).filter(|(before, after)| before != after);
                all.extend(pairs.map(|(before, after)| difference(kind, before, after, colours)));
            }
        }
    }
    let new = fresh.iter().filter(|(kind, _)| !stored.contains_key(*kind));
    all.extend(new.map(|(kind, text)| {
        let first: String = text.concat().chars().filter(|c| !c.is_control()).take(80).collect();
        format!("{kind}: not stored, but there now: {first}")
    }));
    all
}

fn difference(kind: &str, before: &str, after: &str, colours: bool) -> String {
    let is_text = kind.starts_with("text/")
        || matches!(kind, "stdout" | "stderr" | "error" | "image/svg+xml")
        || kind.ends_with("json");
    if !is_text {
        let at = before.bytes().zip(after.bytes()).position(|(a, b)| a != b).unwrap_or(before.len().min(after.len()));
        return format!(
            "{kind}: the bytes differ: {} stored, {} now, from character {at} of their text on",
            before.len(),
            after.len()
        );
    }
    let mut text = format!("{kind}:\n");
    let diff = TextDiff::from_lines(before, after);
    for group in diff.grouped_ops(3) {
        for change in group.iter().flat_map(|part| diff.iter_changes(part)) {
            let (sign, colour) = match change.tag() {
                ChangeTag::Delete => ('-', "\u{1b}[31m"),
                ChangeTag::Insert => ('+', "\u{1b}[32m"),
                ChangeTag::Equal => (' ', ""),
            };
            let line = strip_ansi(change.value().trim_end_matches('\n'));
            let (colour, end) = if colours && !colour.is_empty() { (colour, "\u{1b}[0m") } else { ("", "") };
            text.push_str(&format!("    {colour}{sign}{line}{end}\n"));
        }
    }
    if text.len() > MAX_SHOWN {
        text.truncate(text.floor_char_boundary(MAX_SHOWN));
        text.push_str("\n    ... and more");
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(text: &str) -> Value {
        json!({"output_type": "stream", "name": "stdout", "text": text})
    }

    fn display(data: Value) -> Value {
        json!({"output_type": "display_data", "metadata": {}, "data": data})
    }

    fn compared(stored: &[Value], fresh: &[Value]) -> Vec<String> {
        differences(stored, fresh, &Rules::default(), false)
    }

    #[test]
    fn order_matters_within_a_kind_only() {
        let png = |text| display(json!({"image/png": text}));
        assert_eq!(compared(&[stream("a\n"), png("x"), stream("b\n")], &[png("x"), stream("a\nb\n")]), [""; 0]);
        assert_eq!(compared(&[stream("0%\r100%\n")], &[stream("100%\n")]), [""; 0], "as a terminal shows it");
        assert_eq!(compared(&[png("xa"), png("y")], &[png("y"), png("xa")]).len(), 2);
        assert_eq!(
            compared(&[png("xa")], &[png("xb")]),
            ["image/png: the bytes differ: 2 stored, 2 now, from character 1 of their text on"]
        );
        assert_eq!(compared(&[png("x")], &[]), ["image/png: stored, but not there any more"]);
        assert_eq!(compared(&[], &[stream("new")]), ["stdout: not stored, but there now: new"]);
        assert_eq!(compared(&[stream("same\nold\n")], &[stream("same\nnew\n")]), ["stdout:\n     same\n    -old\n    +new"]);
    }

    #[test]
    fn tracebacks_are_not_compared_but_errors_are() {
        let error = |value, trace| json!({"output_type": "error", "ename": "E", "evalue": value, "traceback": [trace]});
        assert_eq!(compared(&[error("v", "a")], &[error("v", "b")]), [""; 0]);
        assert_eq!(compared(&[error("v", "a")], &[error("w", "a")]).len(), 1);
    }

    #[test]
    fn rules_in_nbvals_format() {
        let text = "# comment\n[dates]\nregex: (\\d+)/(\\d+)\nreplace: \\2.\\1 $x\n\n[second]\nregex: a+\nreplace: A";
        let rules = Rules::parse(text).unwrap();
        assert_eq!(rules.apply("1/2 aaa"), "2.1 $x A");
        for bad in ["regex: a", "replace: a", "nonsense", "regex: (\nreplace: x", "regex: a\nregex: b\nreplace: c"] {
            assert!(Rules::parse(bad).is_err(), "{bad}");
        }
        let mut rules = Rules::default();
        rules.add_volatile();
        assert_eq!(rules.apply("<A at 0x7f0012345678> /tmp/x/y.py"), "<A at 0xADDRESS> /tmp/PATH");
    }
}
