//! Percent cells, which editors and jupytext can read back: `# %%` before code, `# %% [markdown]` before text as comments.
//!
//! IPython syntax (magics, shell commands, help requests) is commented out. A comment that looks like commented-out syntax
//! gets one more comment sign, since the reader removes one from each such line.

use super::script::{commented, quotes_after};
use crate::notebook::{Cell, Notebook};
use serde_json::{Map, Value};

/// Cell magics that jupytext treats as languages: they become part of the marker.
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

/// Shell commands that IPython accepts without a prefix.
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

/// Splits `%%bash -s x` and the lines below into language, arguments and lines, if jupytext knows the language.
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
    let is_kept =
        |key: &str| !matches!(key, "execution" | "collapsed" | "scrolled" | "trusted" | "ExecuteTime" | "papermill");
    for (key, value) in cell.metadata().into_iter().flatten().filter(|(key, _)| is_kept(key)) {
        // Only plain words can precede an equals sign.
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

/// The YAML header: the format and the kernel.
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

/// Appends code with IPython syntax commented out.
fn code(source: &str, comment: &str, is_python: bool, out: &mut String) {
    let mut open = None;
    let mut continues = false;
    for line in source.split('\n') {
        let magic = open.is_none() && (continues || looks_magic(line, comment, is_python));
        if magic {
            let bare = line.trim_start();
            // A continuation line keeps its indentation after the comment sign.
            let indent = if continues { 0 } else { line.len() - bare.len() };
            out.push_str(&line[..indent]);
            out.push_str(comment);
            out.push(' ');
            out.push_str(&line[indent..]);
        } else {
            out.push_str(line);
        }
        out.push('\n');
        continues = magic && is_python && line.trim_end().ends_with('\\');
        if is_python {
            open = quotes_after(line, open);
        }
    }
}

/// Whether jupytext would remove a comment sign from a line, or this exporter must add one.
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

/// A text without leading comment signs.
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
    let after_sign = match value.len() - percent.len() {
        0 => value.strip_prefix('!'),
        1..=3 => Some(percent),
        _ => None,
    };
    is_name && after_sign.is_some_and(|text| text.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// `name?`
fn is_question(text: &str) -> bool {
    let mut text = text.trim_end();
    while let Some(rest) = text.strip_prefix("# ") {
        text = rest;
    }
    text.ends_with('?') && !text.contains(char::is_whitespace)
}

/// `ls -la`, `cd ..`: only at the start of a line, and not an assignment.
fn is_shell(line: &str) -> bool {
    let bare = uncommented(line, "#");
    COMMANDS.iter().filter_map(|command| bare.strip_prefix(command)).any(|rest| {
        let mut following = rest.chars();
        match following.next() {
            None => true,
            Some(first) => first.is_whitespace() && following.next().is_none_or(|next| !matches!(next, '=' | ',')),
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
    fn ipython_syntax_is_commented_out() {
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
