//! Percent cells, as editors and jupytext read them back: `# %%` with the code, `# %% [markdown]` with text as comments.
//!
//! What only IPython understands (magics, shell commands, questions) is commented, and what already looks like that in a
//! comment gets one comment sign more: the reader takes one off each line that looks so.

use super::script::{commented, quotes_after};
use crate::notebook::{Cell, Notebook};
use serde_json::{Map, Value};

/// Cell magics that the reader knows as languages of their own: they go into the marker.
const LANGUAGES: &[&str] = &[
    "R",
    "bash",
    "csharp",
    "fsharp",
    "html",
    "javascript",
    "js",
    "latex",
    "markdown",
    "perl",
    "pypy",
    "python",
    "python2",
    "python3",
    "ruby",
    "script",
    "sh",
    "sql",
    "svg",
];

/// Shell commands that IPython takes without a sign.
const COMMANDS: &[&str] = &["cat", "cd", "cp", "mv", "rm", "rmdir", "mkdir", "copy", "ddir", "echo", "ls", "ldir", "ren"];

pub(super) fn cells(notebook: &Notebook, comment: &str, extension: &str, is_python: bool) -> String {
    let mut out = header(notebook, comment, extension);
    for cell in notebook.cells() {
        out.push('\n');
        let source = cell.source();
        let magic = if cell.is_code() && is_python { language_magic(&source) } else { None };
        out.push_str(&marker(cell, comment, magic));
        if let Some((.., body)) = magic {
            commented(body, comment, &mut out);
        } else if source.is_empty() {
        } else if cell.is_code() {
            code(&source, comment, is_python, &mut out);
        } else {
            commented(&source, comment, &mut out);
        }
    }
    out
}

/// `%%bash -s x` and the lines below, where the reader has a place for it: language, arguments, and the lines.
fn language_magic(source: &str) -> Option<(&str, &str, &str)> {
    let (line, body) = source.strip_prefix("%%")?.split_once('\n')?;
    let (name, arguments) = line.split_once(' ').unwrap_or((line, ""));
    LANGUAGES.contains(&name).then_some((name, arguments.trim(), body))
}

fn marker(cell: Cell<'_>, comment: &str, magic: Option<(&str, &str, &str)>) -> String {
    let mut marker = format!("{comment} %%");
    if !cell.is_code() {
        marker.push_str(&format!(" [{}]", cell.cell_type().replace([']', '\n', '\r'], " ")));
    }
    let kept = |key: &str| !matches!(key, "execution" | "collapsed" | "scrolled" | "trusted" | "ExecuteTime" | "papermill");
    for (key, value) in cell.metadata().into_iter().flatten().filter(|(key, _)| kept(key)) {
        // Names that are no plain words cannot stand in front of an equals sign.
        if key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')) && !key.is_empty() {
            marker.push_str(&format!(" {key}={value}"));
        }
    }
    if let Some((name, arguments, _)) = magic {
        if !arguments.is_empty() {
            marker.push_str(&format!(" magic_args={}", Value::from(arguments)));
        }
        marker.push_str(&format!(" language={}", Value::from(name)));
    }
    marker.push('\n');
    marker
}

/// The YAML in front: the form and the kernel.
fn header(notebook: &Notebook, comment: &str, extension: &str) -> String {
    let mut lines = vec![
        "---".to_owned(),
        "jupyter:".to_owned(),
        "  jupytext:".to_owned(),
        "    text_representation:".to_owned(),
        format!("      extension: .{extension}"),
        "      format_name: percent".to_owned(),
        "      format_version: '1.3'".to_owned(),
    ];
    let empty = Map::new();
    let kernelspec = notebook.metadata().and_then(|metadata| metadata.get("kernelspec")?.as_object()).unwrap_or(&empty);
    let named: Vec<_> =
        ["display_name", "language", "name"].into_iter().filter_map(|key| Some((key, kernelspec.get(key)?))).collect();
    if !named.is_empty() {
        lines.push("  kernelspec:".to_owned());
        // JSON strings are YAML strings.
        lines.extend(named.iter().filter(|(_, value)| value.is_string()).map(|(key, value)| format!("    {key}: {value}")));
    }
    lines.push("---".to_owned());
    lines.iter().map(|line| format!("{comment} {line}\n")).collect()
}

/// Code with what is not the language's own as comments.
fn code(source: &str, comment: &str, is_python: bool, out: &mut String) {
    let mut open = None;
    let mut goes_on = false;
    for line in source.split('\n') {
        let magic = open.is_none() && (goes_on || looks_magic(line, comment, is_python));
        if magic {
            let bare = line.trim_start();
            // A line that goes on from the one before keeps its blanks behind the sign.
            let indent = if goes_on { 0 } else { line.len() - bare.len() };
            out.push_str(&line[..indent]);
            out.push_str(comment);
            out.push(' ');
            out.push_str(&line[indent..]);
        } else {
            out.push_str(line);
        }
        out.push('\n');
        goes_on = magic && is_python && line.trim_end().ends_with('\\');
        if is_python {
            open = quotes_after(line, open);
        }
    }
}

/// Whether the reader takes a line for something that was commented, however often it was.
fn looks_magic(line: &str, comment: &str, is_python: bool) -> bool {
    let indented = line.trim_start();
    let bare = uncommented(indented, comment);
    let percent = bare.trim_start_matches('%');
    if (1..=3).contains(&(bare.len() - percent.len())) && percent.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return true;
    }
    is_python
        && (is_command(bare.trim_start())
            || is_assigned(uncommented(line, comment))
            || is_question(indented)
            || is_shell(line))
}

/// A text without the comment signs in front of it.
fn uncommented<'a>(mut text: &'a str, comment: &str) -> &'a str {
    while let Some(rest) = text.strip_prefix(comment) {
        text = rest.strip_prefix(' ').unwrap_or(rest);
    }
    text
}

/// `!ls`, `?name`.
fn is_command(text: &str) -> bool {
    let Some(rest) = text.strip_prefix(['?', '!']) else { return false };
    rest.trim_start().starts_with(|c: char| c.is_ascii_alphabetic() || ".~$\\/{}".contains(c))
}

/// `files = !ls`, `x = %magic`.
fn is_assigned(text: &str) -> bool {
    let Some((name, value)) = text.split_once('=') else { return false };
    let (name, value) = (name.trim(), value.trim_start());
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$'));
    let percent = value.trim_start_matches('%');
    let behind = match value.len() - percent.len() {
        0 => value.strip_prefix('!'),
        1..=3 => Some(percent),
        _ => None,
    };
    is_name && behind.is_some_and(|text| text.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// `name?`
fn is_question(text: &str) -> bool {
    let mut text = text.trim_end();
    while let Some(rest) = text.strip_prefix("# ") {
        text = rest;
    }
    text.ends_with('?') && !text.contains(char::is_whitespace)
}

/// `ls -la`, `cd ..`: only at the start of a line, and no assignment.
fn is_shell(line: &str) -> bool {
    let bare = uncommented(line, "#");
    COMMANDS.iter().filter_map(|command| bare.strip_prefix(command)).any(|rest| {
        let mut behind = rest.chars();
        match behind.next() {
            None => true,
            Some(first) => first.is_whitespace() && behind.next().is_none_or(|next| !matches!(next, '=' | ',')),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::notebook_of;
    use serde_json::json;

    fn of(source: &str) -> String {
        let cell = json!({"cell_type": "code", "id": "a", "metadata": {"tags": ["a"]}, "source": source, "outputs": [], "execution_count": null});
        let text = json!({"cell_type": "markdown", "id": "m", "metadata": {}, "source": "t"});
        let body = cells(&notebook_of(json!([text, cell])), "#", "py", true);
        body.split_once("# %% [markdown]\n# t\n\n# %% tags=[\"a\"]").unwrap().1.to_owned()
    }

    #[test]
    fn magics_are_comments() {
        assert_eq!(of("%time x\n# %y\nx = 1"), "\n# %time x\n# # %y\nx = 1\n");
        assert_eq!(
            of("def f():\n    !ls \\\n  -la\n    return a % b"),
            "\ndef f():\n    # !ls \\\n#   -la\n    return a % b\n"
        );
        assert_eq!(
            of("x?\nfiles = !ls\ncd ..\ncd = 1\nx = '''\n%no\n'''"),
            "\n# x?\n# files = !ls\n# cd ..\ncd = 1\nx = '''\n%no\n'''\n"
        );
        assert_eq!(of("%%bash -s x\necho 1\n\nls"), " magic_args=\"-s x\" language=\"bash\"\n# echo 1\n#\n# ls\n");
        assert_eq!(of("%%time\nx = 1"), "\n# %%time\nx = 1\n");
        assert_eq!(of(""), "\n");
    }
}
