//! The code of a notebook as a program, or as percent cells that editors and jupytext read back.

use super::visibility::{CellVisibility, Visibility};
use super::{ExportOptions, Exported, ScriptStyle, language, percent};
use crate::languages::{self, Language};
use crate::notebook::Notebook;

/// How a language writes code and comments.
struct Script {
    extension: &'static str,
    mime: &'static str,
    comment: &'static str,
    shebang: Option<&'static str>,
    ipython_lines: bool,
}

/// For an unknown language. Almost all languages with a kernel use `#` for comments.
const OTHER: Script = Script { extension: "txt", mime: "text/plain", comment: "#", shebang: None, ipython_lines: false };

impl From<&'static Language> for Script {
    fn from(language: &'static Language) -> Self {
        let Language { extension, mime, line_comment: comment, shebang, ipython_lines, .. } = language;
        Self { extension, mime, comment, shebang: shebang.as_deref(), ipython_lines: *ipython_lines }
    }
}

pub(super) fn script(notebook: &Notebook, options: &ExportOptions) -> Exported {
    let language = language(notebook);
    // A kernel that calls itself some Python has IPython's lines.
    let other = Script { ipython_lines: language.contains("python"), ..OTHER };
    let script = languages::find(&language).map_or(other, Script::from);
    let body = match options.script_style {
        ScriptStyle::Plain => script.plain(notebook, options),
        ScriptStyle::Percent => percent::cells(notebook, script.comment, script.extension, script.ipython_lines),
    };
    Exported::plain(body, script.mime, script.extension)
}

impl Script {
    fn plain(&self, notebook: &Notebook, options: &ExportOptions) -> String {
        let is_python = self.ipython_lines;
        let mut out = String::new();
        if let Some(shebang) = self.shebang {
            out.push_str(shebang);
            out.push('\n');
        }
        for cell in notebook.cells() {
            let visible = CellVisibility::of(cell, options);
            if visible.cell == Visibility::Hidden || cell.is_code() && visible.input == Visibility::Hidden {
                continue;
            }
            let source = cell.source();
            let source = source.trim_end();
            if source.trim().is_empty() {
                continue;
            }
            out.push('\n');
            if !cell.is_code() || is_python && source.starts_with("%%") {
                commented(source, self.comment, &mut out);
            } else if is_python {
                push_lines(&mut out, source, |line, in_string| (is_magic(line) && !in_string).then_some("# "));
            } else {
                out.push_str(source);
                out.push('\n');
            }
        }
        out
    }
}

/// Appends a text as comments.
pub(super) fn commented(text: &str, comment: &str, out: &mut String) {
    for line in text.split('\n') {
        out.push_str(comment);
        if !line.is_empty() {
            out.push(' ');
            out.push_str(line);
        }
        out.push('\n');
    }
}

/// Whether a line of Python is IPython syntax: a magic, a shell command, a help request.
fn is_magic(line: &str) -> bool {
    let line = line.trim_start();
    let word = |text: &str| text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    match line.chars().next() {
        Some('%') => word(line[1..].trim_start_matches('%')) && !line.starts_with("%%%"),
        Some('!') => !line.starts_with("!="),
        Some('?') => true,
        _ => {
            // `name?`, `name??`, and `files = !ls`, `x = %magic`.
            let question = line.trim_end().trim_end_matches('?');
            let asks = question.len() < line.trim_end().len()
                && !question.is_empty()
                && question.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'));
            let assigned = line.split_once('=').is_some_and(|(name, value)| {
                let name = name.trim();
                let value = value.trim_start();
                !name.is_empty()
                    && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b',' | b' '))
                    && (value.starts_with('!') && !value.starts_with("!=") || value.starts_with('%') && word(&value[1..]))
            });
            asks || assigned
        }
    }
}

/// Appends lines with prefixes. `prefix` gets the line, and whether it starts inside a triple-quoted string.
fn push_lines<'a>(out: &mut String, source: &str, prefix: impl Fn(&str, bool) -> Option<&'a str>) {
    let mut open: Option<&str> = None;
    for line in source.split('\n') {
        out.push_str(prefix(line, open.is_some()).unwrap_or_default());
        out.push_str(line);
        out.push('\n');
        open = quotes_after(line, open);
    }
}

/// The triple quotes that are open at the end of a line of Python.
pub(super) fn quotes_after<'q>(line: &str, mut open: Option<&'q str>) -> Option<&'q str> {
    let mut at = 0;
    let bytes = line.as_bytes();
    while at < bytes.len() {
        let rest = &bytes[at..];
        match open {
            Some(quotes) if rest.starts_with(quotes.as_bytes()) => {
                open = None;
                at += 3;
            }
            Some(_) => at += if rest[0] == b'\\' { 2 } else { 1 },
            None if rest.starts_with(b"\"\"\"") => {
                open = Some("\"\"\"");
                at += 3;
            }
            None if rest.starts_with(b"'''") => {
                open = Some("'''");
                at += 3;
            }
            None if rest[0] == b'#' => return None,
            None if matches!(rest[0], b'"' | b'\'') => at += string_len(rest),
            None => at += 1,
        }
    }
    open
}

/// Length in bytes of a string with single quotes, on one line.
fn string_len(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            byte if byte == bytes[0] => return at + 1,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::notebook_of;
    use serde_json::{Value, json};

    fn of(cells: Value, style: ScriptStyle) -> String {
        script(&notebook_of(cells), &ExportOptions { script_style: style, ..ExportOptions::default() }).body
    }

    fn code(id: &str, source: &str) -> Value {
        json!({"cell_type": "code", "id": id, "metadata": {"tags": ["a"]}, "source": source, "outputs": [], "execution_count": null})
    }

    #[test]
    fn plain_scripts_comment_out_other_syntax() {
        let cells = json!([
            {"cell_type": "markdown", "id": "m", "metadata": {}, "source": "# T\n\ntext"},
            code("a", "%matplotlib inline\nx = '''\n!no\n'''\n!ls\nx?\nfiles = !ls\ny = x != 1"),
            code("b", "%%bash\necho 1"),
        ]);
        let expected = "#!/usr/bin/env python3\n\n# # T\n#\n# text\n\n# %matplotlib inline\nx = '''\n!no\n'''\n# !ls\n# x?\n\
            # files = !ls\ny = x != 1\n\n# %%bash\n# echo 1\n";
        assert_eq!(of(cells, ScriptStyle::Plain), expected);
    }

    #[test]
    fn comment_signs_depend_on_the_language() {
        let mut notebook = notebook_of(json!([{"cell_type": "markdown", "id": "m", "metadata": {}, "source": "t"}]));
        for (language, extension, line) in [
            ("R", "R", "# t"),
            ("typescript", "ts", "// t"),
            ("bash", "sh", "# t"),
            ("q", "txt", "# t"),
            ("c99", "txt", "# t"),
        ] {
            notebook.set_language_info(json!({"name": language}));
            let exported = script(&notebook, &ExportOptions::default());
            assert!(exported.extension == extension && exported.body.ends_with(&format!("\n{line}\n")), "{}", exported.body);
        }
    }
}
